//! `banger vm logs` and `banger daemon logs`: copies a file to stdout, and what is added to it until there is no more.

use super::args::LogsArgs;
use super::client::{Absent, Client, unexpected};
use super::failure::{Failure, Outcome};
use super::sys::{drain, watch_file};
use super::vm::milliseconds;
use actors_sys::watched_fd::WatchedFd;
use messages::error::ErrorKind;
use messages::ids::VmRef;
use messages::reply::Reply;
use messages::request::{LogKind, RequestBody};
use messages::vm::VmState;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, UNIX_EPOCH};
use tokio::time::MissedTickBehavior;

/// How often to ask whether a VM that says nothing is still there.
const ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a daemon may take to answer that before it is asked again.
const ALIVE_DEADLINE: Duration = Duration::from_secs(10);
const CHUNK: usize = 64 << 10;

/// `banger vm logs`.
pub(super) async fn vm(client: &Client, args: LogsArgs) -> Outcome {
    let vm = args.vm.vm;
    let log = if args.vmm { LogKind::Vmm } else { LogKind::Console };
    let body = match args.since {
        Some(time) => {
            let since_ms = milliseconds(time.duration_since(UNIX_EPOCH).unwrap_or_default());
            RequestBody::VmLogsSince { vm: vm.clone(), log, since_ms }
        }
        None => RequestBody::VmLogs { vm: vm.clone(), log },
    };
    let answer = client.call(Absent::Start, body).await?;
    let (running, offset) = match answer.reply {
        Reply::Log { running } => (running, 0),
        Reply::LogSince { running, offset } => (running, offset),
        other => return Err(unexpected(&other)),
    };
    let Some(descriptor) = answer.descriptor else {
        return Err(Failure::new(ErrorKind::Protocol, "bangerd sent no log"));
    };
    let mut tail = Tail { file: File::from(descriptor), offset };
    tail.copy()?;
    if args.follow && running {
        follow(&mut tail, || runs(client, &vm)).await?;
    }
    Ok(0)
}

/// `banger daemon logs`.
pub(super) async fn daemon(client: &Client, follow_it: bool) -> Outcome {
    let path = client.paths.log();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            client.output.remark(&format!("no daemon has written a log yet (`{}`)", path.display()));
            return Ok(0);
        }
        Err(error) => return Err(Failure::io(ErrorKind::Host, format!("failed to open `{}`", path.display()), &error)),
    };
    let mut tail = Tail { file, offset: 0 };
    tail.copy()?;
    if follow_it {
        follow(&mut tail, || async { true }).await?;
    }
    Ok(0)
}

/// True unless the daemon knows better. Without a daemon nobody can tell, so the log is followed on.
async fn runs(client: &Client, vm: &VmRef) -> bool {
    match client.ask_running(RequestBody::ShowVm { vm: vm.clone() }).await {
        Ok(Reply::Vm(view)) => {
            matches!(view.state, VmState::Starting | VmState::Running | VmState::Stopping)
        }
        Err(Failure::Error(error)) => error.kind != ErrorKind::NotFound,
        _ => true,
    }
}

/// Copies what is added until `alive` says no, or Ctrl-C, which is the ordinary end.
async fn follow<F: Future<Output = bool>>(tail: &mut Tail, alive: impl Fn() -> F) -> Result<(), Failure> {
    let watch_failed = |error: io::Error| Failure::io(ErrorKind::Host, "failed to watch the log", &error);
    let watch = watch_file(tail.file.as_fd()).and_then(WatchedFd::new).map_err(watch_failed)?;
    let mut interval = tokio::time::interval(ALIVE_INTERVAL);
    // After a daemon that was slow, not all the questions that were left out.
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    loop {
        tail.copy()?;
        // A daemon that does not answer holds back neither the log nor the user who has seen enough. What the guest says
        // meanwhile ends the question, as an answer would: it lives.
        let gone = async {
            interval.tick().await;
            matches!(tokio::time::timeout(ALIVE_DEADLINE, alive()).await, Ok(false))
        };
        tokio::select! {
            ready = watch.readable() => {
                drain(watch.get_ref().as_fd());
                ready.map_err(watch_failed)?.clear_ready();
            }
            gone = gone => {
                if gone {
                    return tail.copy();
                }
            }
            _ = &mut interrupt => return Ok(()),
        }
    }
}

/// A log and how far it has been copied.
#[derive(Debug)]
struct Tail {
    file: File,
    offset: u64,
}

impl Tail {
    /// Copies from where it stopped to the end. The daemon bounds a log by punching holes into its start: those are passed
    /// over. A log that shrank begins anew.
    fn copy(&mut self) -> Result<(), Failure> {
        let unreadable = |error: io::Error| Failure::io(ErrorKind::Host, "failed to read the log", &error);
        if self.file.metadata().map_err(unreadable)?.len() < self.offset {
            self.offset = 0;
        }
        self.skip_hole();
        let mut buffer = vec![0; CHUNK];
        let mut stdout = io::stdout().lock();
        loop {
            match self.file.read_at(&mut buffer, self.offset) {
                Ok(0) => return Ok(stdout.flush()?),
                Ok(count) => {
                    stdout.write_all(&buffer[..count])?;
                    self.offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
    }

    fn skip_hole(&mut self) {
        let Ok(offset) = i64::try_from(self.offset) else { return };
        match lseek(&self.file, offset, Whence::SeekData) {
            Ok(data) => self.offset = u64::try_from(data).unwrap_or(self.offset),
            // ENXIO: nothing but a hole up to the end. Anything else: a file without holes.
            Err(Errno::ENXIO) => {
                self.offset = self.file.metadata().map_or(self.offset, |metadata| metadata.len());
            }
            Err(_) => {}
        }
    }
}
