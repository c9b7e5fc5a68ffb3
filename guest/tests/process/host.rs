//! A host for one agent in a process machine: the other side of the link, over a socket pair made of a listening socket.

use fixtures::boot_spec;
pub(crate) use fixtures::exec_spec as exec;
use link::frames::{FrameReader, send_hello, write_frame};
use link::mux::{self, Attach, MuxHandle, MuxListener, MuxStream};
use messages::frame;
use messages::guest::*;
use messages::ids::{BootNonce, OperationId, VmId};
use messages::image::ImageConfig;
use messages::limits::{GUEST_FRAME_MAX, STREAM_CHUNK_MAX};
use messages::vm::Readiness;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::UnixListener;

/// Nothing that these tests wait for takes longer on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it took longer than the tests' patience")
}

pub(crate) struct Host {
    pub(crate) handle: MuxHandle,
    listener: MuxListener,
    pub(crate) agent: Child,
    pub(crate) directory: tempfile::TempDir,
    next: AtomicU8,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.agent.kill().ok();
        self.agent.wait().ok();
    }
}

pub(crate) struct Control {
    pub(crate) frames: FrameReader<ReadHalf<MuxStream>>,
    pub(crate) write: WriteHalf<MuxStream>,
    pub(crate) identity: Option<RunningIdentity>,
}

pub(crate) struct Operation {
    pub(crate) id: OperationId,
    pub(crate) frames: FrameReader<ReadHalf<MuxStream>>,
    pub(crate) write: WriteHalf<MuxStream>,
    pub(crate) credit: u64,
}

/// What a command did, in the end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) status: ExitStatus,
}

pub(crate) fn spec(nonce: u8) -> BootSpec {
    let config = ImageConfig { env: vec!["FROM_IMAGE=yes".into()], ..ImageConfig::default() };
    BootSpec { config, ..boot_spec(VmId([1; 8]), "test", BootNonce([nonce; 16])) }
}

pub(crate) fn shell(script: &str) -> ExecSpec {
    exec(&["sh", "-c", script])
}

impl Host {
    /// Starts an agent and its link.
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("l");
        let listener = UnixListener::bind(&socket).unwrap();
        let agent = Command::new(env!("CARGO_BIN_EXE_banger-agent"))
            .args(["--process", "--link"])
            .arg(&socket)
            .arg("--root")
            .arg(directory.path())
            .spawn()
            .unwrap();
        let (port, _) = within(listener.accept()).await.unwrap();
        let mux = mux::host(port, Attach::Fresh);
        tokio::spawn(mux.driver.run());
        Self { handle: mux.handle, listener: mux.listener, agent, directory, next: AtomicU8::new(1) }
    }

    /// Starts an agent and boots it.
    pub(crate) async fn booted() -> (Self, Control) {
        let mut host = Self::start().await;
        let mut control = host.control().await;
        assert!(control.identity.is_none());
        control.send(&DaemonFrame::Spec(Box::new(spec(1)))).await;
        for expected in [Readiness::Agent, Readiness::System] {
            let frame = control.next().await;
            assert!(matches!(frame, AgentFrame::Ready { level, .. } if level == expected), "{frame:?}");
        }
        (host, control)
    }

    /// The next control stream that the agent dials.
    pub(crate) async fn control(&mut self) -> Control {
        let incoming = within(self.listener.accept()).await.unwrap();
        assert_eq!(incoming.port, CONTROL_PORT);
        let (read, mut write) = tokio::io::split(incoming.accept().await.unwrap());
        send_hello(&mut write).await.unwrap();
        let mut frames = FrameReader::new(read, GUEST_FRAME_MAX);
        within(frames.hello()).await.unwrap();
        let Some(AgentFrame::Identify { running, .. }) = within(frames.message()).await.unwrap() else {
            panic!("the first frame identifies nobody")
        };
        Control { frames, write, identity: running }
    }

    /// Opens a stream for an operation, without a word.
    pub(crate) async fn stream(&self) -> MuxStream {
        within(self.handle.open(OPERATION_PORT)).await.unwrap()
    }

    /// Opens an operation.
    pub(crate) async fn open(&self, exec: ExecSpec) -> Operation {
        let id = OperationId([self.next.fetch_add(1, Ordering::Relaxed); 8]);
        self.open_as(id, exec).await
    }

    pub(crate) async fn open_as(&self, id: OperationId, exec: ExecSpec) -> Operation {
        let (read, mut write) = tokio::io::split(self.stream().await);
        send_hello(&mut write).await.unwrap();
        let open = OperationFrame::Open { operation: id, exec: Box::new(exec) };
        write_frame(&mut write, &open, GUEST_FRAME_MAX).await.unwrap();
        Operation { id, frames: FrameReader::new(read, GUEST_FRAME_MAX), write, credit: 0 }
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, exec: ExecSpec) -> Finished {
        self.open(exec).await.finish().await
    }

    /// Resident memory of the agent, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Control {
    pub(crate) async fn send(&mut self, frame: &DaemonFrame) {
        within(write_frame(&mut self.write, frame, GUEST_FRAME_MAX)).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> AgentFrame {
        within(self.frames.message()).await.unwrap().expect("the agent keeps its control stream")
    }

    /// The next frame that `wanted` takes; others are passed over.
    pub(crate) async fn until<T>(&mut self, wanted: impl Fn(AgentFrame) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(self.next().await) {
                return found;
            }
        }
    }

    pub(crate) async fn ended(&mut self, operation: OperationId) -> ExitStatus {
        self.until(|frame| match frame {
            AgentFrame::OperationEnded { operation: other, status } if other == operation => Some(status),
            _ => None,
        })
        .await
    }

    pub(crate) async fn ask(&mut self, question: GuestQuestion) -> Result<GuestAnswer, messages::error::WireError> {
        self.send(&DaemonFrame::Call { call: 7, question }).await;
        self.until(|frame| match frame {
            AgentFrame::Answer { call: 7, result } => Some(result),
            _ => None,
        })
        .await
    }
}

/// A frame that owns its payload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Started(u32),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Credit(u32),
    StdinClosed,
    Exited(ExitStatus),
    Failed(messages::error::WireError),
    End,
}

impl Operation {
    pub(crate) async fn next(&mut self) -> Said {
        let Some(payload) = within(self.frames.next()).await.unwrap() else { return Said::End };
        match frame::decode_borrowed(payload).unwrap() {
            OutputFrame::Started { pid } => Said::Started(pid),
            OutputFrame::Stdout(bytes) => Said::Stdout(bytes.to_vec()),
            OutputFrame::Stderr(bytes) => Said::Stderr(bytes.to_vec()),
            OutputFrame::StdinCredit(credit) => {
                self.credit += u64::from(credit);
                Said::Credit(credit)
            }
            OutputFrame::StdinClosed => Said::StdinClosed,
            OutputFrame::Exited(status) => Said::Exited(status),
            OutputFrame::Failed(error) => Said::Failed(error),
        }
    }

    pub(crate) async fn pid(&mut self) -> u32 {
        match self.next().await {
            Said::Started(pid) => pid,
            other => panic!("not started: {other:?}"),
        }
    }

    pub(crate) async fn send(&mut self, frame: &OperationFrame<'_>) {
        within(write_frame(&mut self.write, frame, GUEST_FRAME_MAX)).await.unwrap();
    }

    /// Reads stdout until it holds `text`.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        let mut output = String::new();
        while !output.contains(text) {
            match self.next().await {
                Said::Stdout(bytes) => output.push_str(&String::from_utf8_lossy(&bytes)),
                Said::Started(_) | Said::Credit(_) => {}
                other => panic!("{other:?} after {output:?}"),
            }
        }
        output
    }

    pub(crate) async fn finish(mut self) -> Finished {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next().await {
                Said::Stdout(bytes) => stdout.extend(bytes),
                Said::Stderr(bytes) => stderr.extend(bytes),
                Said::Exited(status) => return Finished { stdout, stderr, status },
                Said::Started(_) | Said::Credit(_) | Said::StdinClosed => {}
                other => panic!("{other:?} after {}", String::from_utf8_lossy(&stdout)),
            }
        }
    }

    /// Sends `bytes` as stdin within the credit, reading all the while; returns what came back and the status.
    pub(crate) async fn pump(mut self, bytes: &[u8]) -> Finished {
        let (mut stdout, mut stderr, mut sent) = (Vec::new(), Vec::new(), 0);
        let (wake, mut credit) = tokio::sync::watch::channel(0_u64);
        let mut write = self.write;
        let sending = async {
            while sent < bytes.len() {
                let allowed = *credit.wait_for(|allowed| *allowed > sent as u64).await.unwrap();
                let room = usize::try_from(allowed).unwrap() - sent;
                let chunk = &bytes[sent..(sent + room.min(STREAM_CHUNK_MAX)).min(bytes.len())];
                write_frame(&mut write, &OperationFrame::Stdin(chunk), GUEST_FRAME_MAX).await.unwrap();
                sent += chunk.len();
            }
            write_frame(&mut write, &OperationFrame::StdinEnd, GUEST_FRAME_MAX).await.unwrap();
            std::future::pending::<()>().await;
        };
        let receiving = async {
            loop {
                let payload = self.frames.next().await.unwrap().expect("it ends with a status");
                match frame::decode_borrowed(payload).unwrap() {
                    OutputFrame::Stdout(bytes) => stdout.extend_from_slice(bytes),
                    OutputFrame::Stderr(bytes) => stderr.extend_from_slice(bytes),
                    OutputFrame::StdinCredit(more) => wake.send_modify(|allowed| *allowed += u64::from(more)),
                    OutputFrame::Exited(status) => return status,
                    OutputFrame::Started { .. } | OutputFrame::StdinClosed => {}
                    OutputFrame::Failed(error) => panic!("{error}"),
                }
            }
        };
        let status = within(async {
            tokio::select! {
                () = sending => unreachable!("it never ends"),
                status = receiving => status,
            }
        })
        .await;
        Finished { stdout, stderr, status }
    }

    /// Leaves without a word.
    pub(crate) async fn vanish(mut self) {
        self.write.shutdown().await.ok();
    }
}

/// Waits until `state` holds.
pub(crate) async fn eventually(what: &str, mut state: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !state() {
        assert!(tokio::time::Instant::now() < deadline, "not within the tests' patience: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process is there and no zombie.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}
