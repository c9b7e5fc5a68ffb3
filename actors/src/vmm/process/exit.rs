//! A handle on a VMM process: its end, however it comes, is seen by pidfd, reaped, cleaned up after, and only then published.

use super::lock::{Attempt, Lock, holders};
use crate::vmm::files::VmFiles;
use actors_sys::pidfd;
use actors_sys::watched_fd::WatchedFd;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

/// How long helpers of a dead VMM (QEMU under banger-emu) may hold its lock before they are killed.
pub(super) const HELPERS_GRACE: Duration = Duration::from_millis(500);
/// How long the lock of a dead VMM is waited for in all. A killed process goes when its I/O has; no longer than this.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// Between two such killings: what was killed is gone in less, or hangs in the kernel.
const KILL_PAUSE: Duration = Duration::from_millis(200);

/// How a VMM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// It was started by an earlier daemon: only its parent is told more.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "signal {}", signal.as_str()),
                Err(_) => write!(f, "signal {number}"),
            },
            Self::Unknown => f.write_str("unknown exit status"),
        }
    }
}

/// Whether the VMM is a child of this process, which then has to reap it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kinship {
    Child,
    Adopted,
}

/// A VMM process. Clones mean the same process; dropping the last does not end it.
#[derive(Clone, Debug)]
pub struct Process {
    pid: u32,
    pidfd: Arc<WatchedFd>,
    /// `Some` once the process is dead, reaped, and its sockets and lock are gone.
    end: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Watches a process. Its end is handled by a task of the present runtime even if nobody keeps the handle.
    pub(super) fn watch(pid: u32, pidfd: OwnedFd, kinship: Kinship, files: VmFiles) -> io::Result<Self> {
        let pidfd = Arc::new(WatchedFd::new(pidfd)?);
        let (publish, end) = watch::channel(None);
        let watched = Arc::clone(&pidfd);
        tokio::spawn(async move {
            let exit = ended(&watched, kinship, pid).await;
            clean_up(&files).await;
            tracing::debug!(vm = %files.vm(), pid, %exit, "the VMM ended");
            publish.send_replace(Some(exit));
        });
        Ok(Self { pid, pidfd, end })
    }

    /// Its process id, for people. Signals go through the pidfd.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if it has, and everything of it is cleaned up.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        *self.end.borrow()
    }

    /// Waits until it has ended and everything of it is cleaned up. Any number may wait; cancel-safe.
    pub async fn wait(&self) -> Exit {
        let mut end = self.end.clone();
        // The sender goes away without a word only with its runtime, and then so does this future.
        // A statement of its own: its guard must be gone before the next await, or the future is not `Send`.
        let exit = end.wait_for(Option::is_some).await.map(|exit| exit.unwrap_or(Exit::Unknown)).ok();
        match exit {
            Some(exit) => exit,
            None => std::future::pending().await,
        }
    }

    /// Sends a signal. A process that has ended already is fine.
    ///
    /// # Errors
    /// `EPERM` where the VMM has become somebody else's.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd::send_signal(self.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
            other => other,
        }
    }

    /// Kills it. A process that has ended already is fine.
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// Kills it and waits until nothing of it is left.
    ///
    /// # Errors
    /// As [`Process::signal`], or `TimedOut` where it hangs in the kernel for so long.
    pub async fn kill_and_wait(&self, limit: Duration) -> io::Result<Exit> {
        self.kill()?;
        Ok(timeout(limit, self.wait()).await?)
    }
}

async fn ended(pidfd: &WatchedFd, kinship: Kinship, pid: u32) -> Exit {
    loop {
        // Readable once the process has ended, and then for good.
        let mut readable = match pidfd.readable().await {
            Ok(readable) => readable,
            Err(error) => {
                tracing::error!(pid, %error, "cannot watch a VMM");
                return Exit::Unknown;
            }
        };
        match kinship {
            Kinship::Adopted => return Exit::Unknown,
            Kinship::Child => match reap(pidfd, pid) {
                Some(exit) => return exit,
                None => readable.clear_ready(),
            },
        }
    }
}

fn reap(pidfd: &WatchedFd, pid: u32) -> Option<Exit> {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    match waitid(Id::PIDFd(pidfd.as_fd()), look | WaitPidFlag::WNOWAIT) {
        Ok(WaitStatus::StillAlive) => return None,
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(pid, %error, "cannot learn how a VMM ended");
            return Some(Exit::Unknown);
        }
    }
    // While it is a zombie its number, and so its group's, can be nobody else's: the moment to end what it left behind.
    match nix::sys::signal::killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH | Errno::EPERM) => {}
        Err(error) => tracing::warn!(pid, %error, "cannot end what a VMM left behind"),
    }
    match waitid(Id::PIDFd(pidfd.as_fd()), look) {
        Ok(WaitStatus::Exited(_, code)) => Some(Exit::Code(code)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(Exit::Signal(signal as i32)),
        _ => Some(Exit::Unknown),
    }
}

/// Waits until no helper of the dead VMM lives, then removes what it left: nobody can start another in between, because
/// that takes the lock that is held here.
async fn clean_up(files: &VmFiles) {
    let path = files.lock();
    let started = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        match Lock::attempt(&path) {
            Ok(Attempt::Taken(lock)) => {
                // Another VM's disk may keep the file system busy for seconds.
                let files = files.clone();
                if let Err(panic) = spawn_blocking(move || remove_remains(&files, lock)).await {
                    tracing::error!(%panic, "what a VMM left was not removed");
                }
                return;
            }
            Ok(Attempt::Held(file)) => {
                if started.elapsed() > HELPERS_GRACE {
                    kill_holders(file).await;
                    pause = KILL_PAUSE;
                }
            }
            // The directory is gone, and with it all that there was to remove.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                tracing::warn!(vm = %files.vm(), %error, "cannot look at the VMM's lock");
                return;
            }
        }
        if started.elapsed() > LOCK_PATIENCE {
            tracing::error!(vm = %files.vm(), "something still holds a dead VMM's lock");
            return;
        }
        sleep(pause).await;
    }
}

/// Kills whoever holds the lock. On a thread of its own: it looks at every process of the host.
async fn kill_holders(lock: File) {
    let killed = spawn_blocking(move || holders(&lock).unwrap_or_default().into_iter().for_each(kill_by_id)).await;
    if let Err(error) = killed {
        tracing::error!(%error, "cannot look for a VMM's helpers");
    }
}

pub(super) fn kill_by_id(pid: u32) {
    if let Err(error) = pidfd::open(pid).and_then(|fd| pidfd::send_signal(fd.as_fd(), Signal::SIGKILL)) {
        tracing::debug!(pid, %error, "a VMM's helper has gone by itself");
    }
}

/// Removes the sockets of a VMM that is dead, and the lock file last.
pub(super) fn remove_remains(files: &VmFiles, lock: Lock) {
    for result in [remove_sockets(files), lock.remove()] {
        if let Err(error) = result {
            tracing::warn!(vm = %files.vm(), %error, "cannot remove what a VMM left");
        }
    }
}

/// Removes every socket but those that the daemon listens on, for the guest: banger-emu has more than the two of the API,
/// and one that is killed cannot remove them.
pub(super) fn remove_sockets(files: &VmFiles) -> io::Result<()> {
    let listened_on = format!("{}_", files.vsock().file_name().unwrap_or_default().display());
    for entry in std::fs::read_dir(files.dir())? {
        let entry = entry?;
        if entry.file_type()?.is_socket() && !entry.file_name().as_bytes().starts_with(listened_on.as_bytes()) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
