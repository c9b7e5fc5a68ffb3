//! One operation from its first frame to its end.
//!
//! ```text
//!   hello, Open ─▶ plan, spawn ─▶ attached ──────────▶ exited ─▶ client has it ─▶ on record
//!                      │             │ client gone: hang up, or run on unseen ─▶ on record
//!                      └─ Failed ────┴───────────────────────────────────────────▶
//! ```
//! The daemon hears of an end only when the client has taken its last frame (or left): a VM made for one command is deleted
//! on that word, and its output must be out by then.

use super::input::{self, Feedback, InputEnd, Stdin};
use super::output::Output;
use super::plan::{self, Place};
use super::registry::{BeginError, Registry, Target};
use super::spawn::{self, Spawned, Streams};
use crate::ssh::setup::Keys;
use link::frames::{FrameReader, ReadError, write_frame};
use messages::error::{ErrorKind, WireError};
use messages::frame;
use messages::guest::{ExecSpec, ExitStatus, OnDisconnect, OperationFrame, OutputFrame};
use messages::ids::OperationId;
use messages::image::ImageConfig;
use messages::limits::GUEST_FRAME_MAX;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A host that opened a stream says what for within this.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// How long a client may take to hang up after the last frame before its operation counts as ended.
const FAREWELL: Duration = Duration::from_secs(10);
/// What a client said before it closed its side is on its way for no longer than this.
const LAST_FRAMES: Duration = Duration::from_secs(1);
/// How long the guest may take to find and start a program. A file system that does not answer is the usual reason for more.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// What shells report for a command that was not found, or not to be run.
const NOT_FOUND_STATUS: i32 = 127;
const NOT_RUN_STATUS: i32 = 126;

/// Where and how commands run, once the guest is up.
#[derive(Clone, Debug)]
pub struct World {
    pub place: Place,
    pub config: ImageConfig,
    /// Where there are no files for them.
    pub keys: Keys,
}

/// Runs operations.
#[derive(Debug)]
pub struct Executor {
    pub registry: Registry,
    world: Mutex<Option<World>>,
}

impl Executor {
    /// An executor that refuses everything until it has a [`World`].
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self { registry, world: Mutex::default() }
    }

    /// Commands run in `world` from now on.
    pub fn enter(&self, world: World) {
        *self.world.lock().unwrap_or_else(PoisonError::into_inner) = Some(world);
    }

    /// Where commands run; `None` while the guest boots.
    #[must_use]
    pub fn world(&self) -> Option<World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves one stream on the operation port. Ends with the stream and, unless it is left running, with the command.
pub async fn serve<S>(stream: S, executor: Arc<Executor>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (read, mut write) = tokio::io::split(stream);
    let mut frames = FrameReader::new(read, GUEST_FRAME_MAX);
    let (operation, exec) = match tokio::time::timeout(OPEN_DEADLINE, open(&mut frames)).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return tracing::warn!(%error, "an operation's stream did not begin with one"),
        Err(_) => return tracing::warn!("an operation's stream stayed silent"),
    };
    match executor.registry.begin(operation) {
        Ok(()) => {}
        Err(error @ BeginError::OpenedBefore(_)) => {
            return refuse(&mut write, WireError::from_error(ErrorKind::Conflict, &error)).await;
        }
        Err(error @ BeginError::TooMany) => {
            refuse(&mut write, WireError::from_error(ErrorKind::Resources, &error)).await;
            return executor.registry.ended(operation, ExitStatus::Code(NOT_RUN_STATUS));
        }
    }
    let status = match start(&executor, operation, exec).await {
        Ok(session) => session.run(frames, write).await,
        Err(error) => {
            let status = if error.kind == ErrorKind::NotFound { NOT_FOUND_STATUS } else { NOT_RUN_STATUS };
            refuse(&mut write, error).await;
            farewell(frames.into_inner()).await;
            ExitStatus::Code(status)
        }
    };
    executor.registry.ended(operation, status);
}

async fn open<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
) -> Result<(OperationId, ExecSpec), Box<dyn std::error::Error + Send + Sync>> {
    frames.hello().await?;
    let payload = frames.next().await?.ok_or("it was closed at once")?;
    match frame::decode_borrowed(payload)? {
        OperationFrame::Open { operation, exec } => Ok((operation, *exec)),
        _ => Err("its first frame opens nothing".into()),
    }
}

async fn refuse<W: AsyncWrite + Unpin>(write: &mut W, error: WireError) {
    let failed = write_frame(write, &OutputFrame::Failed(error), GUEST_FRAME_MAX).await;
    if failed.is_err() || write.shutdown().await.is_err() {
        tracing::debug!("the client left before it was refused");
    }
}

/// Waits for the client to close its side: then it has seen all there was.
async fn farewell<R: AsyncRead + Unpin>(mut read: R) {
    let mut dropped = [0; 4096];
    let closed = async { while matches!(read.read(&mut dropped).await, Ok(1..)) {} };
    if tokio::time::timeout(FAREWELL, closed).await.is_err() {
        tracing::debug!("a client held on to an ended operation");
    }
}

async fn start(executor: &Executor, operation: OperationId, exec: ExecSpec) -> Result<Session, WireError> {
    let not_up = || WireError::new(ErrorKind::WrongState, "the guest is still booting");
    let world = executor.world().ok_or_else(not_up)?;
    let (terminal, on_disconnect) = (exec.terminal.is_some(), exec.on_disconnect);
    let spawned = unless_stuck(START_DEADLINE, move || launch(&exec, &world)).await?;
    let target = Target::new(spawned.pid, spawned.terminal);
    executor.registry.started(operation, spawned.pid, target.clone(), on_disconnect);
    Ok(Session {
        pid: spawned.pid,
        stdin: Stdin::new(spawned.stdin, terminal),
        output: Output::new(spawned.child, spawned.stdout, spawned.stderr, {
            let target = target.clone();
            move || target.mark_gone()
        }),
        target,
        on_disconnect,
    })
}

/// Finds the program and starts it. Waits for whatever file system that takes it to.
fn launch(exec: &ExecSpec, world: &World) -> Result<Spawned, WireError> {
    let plan = plan::plan(exec, &world.config, &world.place).map_err(|error| error.to_wire())?;
    let streams = match exec.terminal {
        Some(size) => Streams::Terminal(size),
        None => Streams::Pipes { stdin: exec.stdin },
    };
    spawn::spawn(&plan, streams).map_err(|error| error.to_wire())
}

/// Starts a command on a thread of its own: a dead file system holds up that one command, and no other. One that starts only after
/// `deadline` is killed, as nobody waits for it any more.
async fn unless_stuck(
    deadline: Duration,
    launch: impl FnOnce() -> Result<Spawned, WireError> + Send + 'static,
) -> Result<Spawned, WireError> {
    let (launched, answer) = tokio::sync::oneshot::channel();
    tokio::task::spawn_blocking(move || {
        if let Err(Ok(late)) = launched.send(launch()) {
            let target = Target::new(late.pid, late.terminal);
            tokio::spawn(target.hang_up());
        }
    });
    match tokio::time::timeout(deadline, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(WireError::new(ErrorKind::Guest, "the command's start was broken off")),
        Err(_) => {
            let said = format!("the guest did not start the command within {} s", deadline.as_secs());
            Err(WireError::new(ErrorKind::Guest, said)
                .hint("a file system of the guest's may hang: look at its mounts, or leave out --workdir"))
        }
    }
}

/// A command that runs.
struct Session {
    pid: u32,
    stdin: Stdin,
    output: Output,
    target: Target,
    on_disconnect: OnDisconnect,
}

/// How a client's presence ended.
enum Attached {
    Exited(ExitStatus),
    Left(InputEnd),
}

impl Session {
    async fn run<R, W>(mut self, mut frames: FrameReader<R>, mut write: W) -> ExitStatus
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        match self.attached(&mut frames, &mut write).await {
            Attached::Exited(status) => {
                // The command's last frame waits for the client as long as the client does not read, and no longer than it
                // stays.
                let last = async {
                    write_frame(&mut write, &OutputFrame::Exited(status), GUEST_FRAME_MAX).await?;
                    write.shutdown().await.map_err(ReadError::Io)
                };
                let gone = async { while matches!(frames.next().await, Ok(Some(_))) {} };
                let told = tokio::select! {
                    told = last => told.is_ok(),
                    () = gone => false,
                };
                if told {
                    farewell(frames.into_inner()).await;
                }
                tokio::spawn(self.output.drain_background());
                status
            }
            Attached::Left(end) => {
                drop((frames, write));
                self.unattended(end).await
            }
        }
    }

    async fn attached<R, W>(&mut self, frames: &mut FrameReader<R>, write: &mut W) -> Attached
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let feedback = Feedback::default();
        let Self { pid, stdin, output, target, .. } = self;
        let (pid, credit) = (*pid, stdin.credit());
        let delivery = async {
            write_frame(write, &OutputFrame::Started { pid }, GUEST_FRAME_MAX).await?;
            if credit > 0 {
                write_frame(write, &OutputFrame::StdinCredit(credit), GUEST_FRAME_MAX).await?;
            }
            output.deliver(write, &feedback).await
        };
        let mut input = std::pin::pin!(input::run(frames, stdin, target, &feedback));
        tokio::select! {
            delivered = delivery => match delivered {
                Ok(status) => Attached::Exited(status),
                // It takes no output any more. Whether it left on purpose stands in what it said before.
                Err(_) => Attached::Left(
                    tokio::time::timeout(LAST_FRAMES, input).await.unwrap_or(InputEnd::Disconnected),
                ),
            },
            end = &mut input => Attached::Left(end),
        }
    }

    /// The client is gone; the command goes, or goes on.
    async fn unattended(self, end: InputEnd) -> ExitStatus {
        if let InputEnd::Broken(error) = &end {
            tracing::warn!(%error, pid = self.pid, "a client broke the protocol");
        }
        let Self { stdin, mut output, target, on_disconnect, .. } = self;
        drop(stdin);
        let kill = !matches!(end, InputEnd::Detached) && on_disconnect == OnDisconnect::Kill;
        if kill {
            tokio::spawn(target.clone().hang_up());
        }
        let status = output.discard().await;
        if !kill {
            tokio::spawn(output.drain_background());
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::plan::Plan;
    use std::sync::mpsc;

    fn sleeper() -> Plan {
        Plan {
            program: "/bin/sleep".into(),
            argv0: "sleep".into(),
            arguments: vec!["1000".into()],
            environment: Vec::new(),
            directory: "/".into(),
            identity: None,
        }
    }

    #[tokio::test]
    async fn a_start_that_hangs_holds_up_nothing_and_what_comes_of_it_is_killed() {
        let (release, held) = mpsc::channel::<()>();
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let stuck = unless_stuck(Duration::from_millis(20), move || {
            held.recv().unwrap();
            let spawned = spawn::spawn(&sleeper(), Streams::Pipes { stdin: false }).unwrap();
            tell.send(spawned.pid).unwrap();
            Ok(spawned)
        });
        let error = stuck.await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Guest);
        release.send(()).unwrap();
        let pid = told.recv().await.unwrap();
        let lives = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while lives() {
            assert!(tokio::time::Instant::now() < deadline, "the late command still runs");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
