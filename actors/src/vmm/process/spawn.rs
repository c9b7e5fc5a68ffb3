//! Starts a VMM, or finds one that an earlier daemon started.

use super::exit::{HELPERS_GRACE, Kinship, Process, kill_by_id, remove_remains, remove_sockets};
use super::lock::{Attempt, Held, Lock, Record, holders, holds, leads_session, read_record, start_time};
use crate::vmm::files::VmFiles;
use crate::vmm::marks;
use actors_sys::detached::Detached;
use actors_sys::pidfd;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;

/// The variables that a VMM gets, beside those that begin with [`EMULATOR_PREFIX`]: where to find QEMU and to put scratch
/// files, and how to report a panic.
const PASSED_ON: [&str; 6] = ["PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "RUST_BACKTRACE", "BANGER_QEMU"];
/// banger-emu's own variables.
const EMULATOR_PREFIX: &str = "BANGER_EMU_";
/// How long a lock may be held by a process that cannot be found: one that is between its fork and its exec, or dying.
const HOLDER_PATIENCE: Duration = Duration::from_secs(2);

/// Says why there is no VMM process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("failed to open the lock file `{}`", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("a VMM of this VM is alive already")]
    AlreadyRunning,
    #[error("the lock file `{}` is held, and no process of ours holds it", path.display())]
    UnknownHolder { path: PathBuf },
    #[error("failed to open `{}`", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("failed to start `{}`", binary.display())]
    Exec { binary: PathBuf, source: io::Error },
    #[error("failed to watch the VMM")]
    Watch { source: io::Error },
}

/// Starts `binary` for a VM: own session, nothing inherited but its lock, output to `vmm.log`. It outlives this process.
///
/// # Errors
/// See [`ProcessError`]; nothing is left behind then.
pub async fn spawn(files: &VmFiles, binary: &Path, arguments: Vec<OsString>) -> Result<Process, ProcessError> {
    let (theirs, binary) = (files.clone(), binary.to_owned());
    let started = spawn_blocking(move || start(&theirs, &binary, &arguments)).await;
    let mut started = started.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    let pidfd = started.pidfd.try_clone().map_err(|source| ProcessError::Watch { source })?;
    let process = Process::watch(started.pid, pidfd, Kinship::Child, files.clone());
    started.is_watched = process.is_ok();
    process.map_err(|source| ProcessError::Watch { source })
}

/// A child that nobody watches yet. Whoever gives up waiting for it (the start goes on, in a thread of its own) drops it,
/// and that ends it.
#[derive(Debug)]
struct Started {
    files: VmFiles,
    pid: u32,
    pidfd: OwnedFd,
    is_watched: bool,
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.is_watched {
            return;
        }
        abandon(self.pid);
        match Lock::attempt(&self.files.lock()) {
            Ok(Attempt::Taken(lock)) => remove_remains(&self.files, lock),
            outcome => tracing::warn!(vm = %self.files.vm(), ?outcome, "cannot clean up after a VMM"),
        }
    }
}

/// Finds the living VMM of a VM after the daemon's restart; where there is none, removes what a dead one left.
///
/// # Errors
/// [`ProcessError::Lock`], [`ProcessError::UnknownHolder`], [`ProcessError::Watch`].
pub async fn adopt(files: &VmFiles) -> Result<Option<Process>, ProcessError> {
    let theirs = files.clone();
    let found = spawn_blocking(move || find(&theirs)).await;
    match found.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))? {
        Some((pid, pidfd)) => Process::watch(pid, pidfd, Kinship::Adopted, files.clone())
            .map(Some)
            .map_err(|source| ProcessError::Watch { source }),
        None => Ok(None),
    }
}

fn start(files: &VmFiles, binary: &Path, arguments: &[OsString]) -> Result<Started, ProcessError> {
    let path = files.lock();
    let lock = match Lock::attempt(&path).map_err(|source| ProcessError::Lock { path, source })? {
        Attempt::Taken(lock) => lock,
        Attempt::Held(_) => return Err(ProcessError::AlreadyRunning),
    };
    let started = start_locked(files, &lock, binary, arguments);
    match started {
        Ok((pid, pidfd)) => {
            let start_time = start_time(pid).unwrap_or(0);
            // Without the record the VMM is still found by its lock, only more slowly.
            if let Err(error) = lock.record(Record { vm: files.vm(), pid, start_time }) {
                tracing::warn!(vm = %files.vm(), %error, "cannot record the VMM's process");
            }
            Ok(Started { files: files.clone(), pid, pidfd, is_watched: false })
        }
        Err(error) => {
            remove_remains(files, lock);
            Err(error)
        }
    }
}

/// Puts the last boot's console aside, for the VMM writes from the file's start and the old end would show; and makes the
/// new one, which only this user may read whatever the VMM's umask.
fn fresh_console(files: &VmFiles) -> io::Result<()> {
    match std::fs::rename(files.console(), files.previous_console()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    marks::forget(&files.console())?;
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(files.console()).map(drop)
}

fn start_locked(
    files: &VmFiles,
    lock: &Lock,
    binary: &Path,
    arguments: &[OsString],
) -> Result<(u32, OwnedFd), ProcessError> {
    // The VMM refuses to start where its sockets exist.
    remove_sockets(files).map_err(|source| ProcessError::File { path: files.dir().to_owned(), source })?;
    fresh_console(files).map_err(|source| ProcessError::File { path: files.console(), source })?;
    let log = files.log();
    let output = OpenOptions::new().append(true).create(true).mode(0o600).open(&log);
    let output = output.and_then(|file| file.set_len(0).and_then(|()| marks::forget(&log)).map(|()| file));
    let output = output.map_err(|source| ProcessError::File { path: log, source })?;
    let null = Path::new("/dev/null");
    let stdin = File::open(null).map_err(|source| ProcessError::File { path: null.to_owned(), source })?;
    let environment: Vec<(OsString, OsString)> = std::env::vars_os()
        .filter(|(key, _)| key.to_str().is_some_and(|key| PASSED_ON.contains(&key) || key.starts_with(EMULATOR_PREFIX)))
        .collect();
    let program = Detached {
        program: binary,
        arguments,
        environment: &environment,
        stdin: stdin.as_fd(),
        output: output.as_fd(),
        kept: lock.file().as_fd(),
    };
    let pid = program.spawn().map_err(|source| ProcessError::Exec { binary: binary.to_owned(), source })?;
    // Our own child, not yet reaped: its number is still its own, even if it has died already.
    match pidfd::open(pid) {
        Ok(pidfd) => Ok((pid, pidfd)),
        Err(source) => {
            abandon(pid);
            Err(ProcessError::Watch { source })
        }
    }
}

/// Ends a child that cannot be watched (no descriptors left), so that it is no orphan.
fn abandon(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed());
    if let Err(error) = kill(pid, Signal::SIGKILL).and_then(|()| waitpid(pid, None).map(drop)) {
        tracing::error!(%pid, %error, "cannot end a VMM that cannot be watched");
    }
}

fn find(files: &VmFiles) -> Result<Option<(u32, OwnedFd)>, ProcessError> {
    let path = files.lock();
    if !path.exists() {
        return Ok(None);
    }
    let started = Instant::now();
    loop {
        match Lock::attempt(&path).map_err(|source| ProcessError::Lock { path: path.clone(), source })? {
            Attempt::Taken(lock) => {
                remove_remains(files, lock);
                return Ok(None);
            }
            Attempt::Held(file) => {
                let found = holder(files, &file, started.elapsed()).map_err(|source| ProcessError::Watch { source })?;
                if let Some(found) = found {
                    return Ok(Some(found));
                }
            }
        }
        if started.elapsed() > HOLDER_PATIENCE {
            return Err(ProcessError::UnknownHolder { path });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The process behind a held lock: the recorded one if it is right, else whoever `/proc` shows to hold it and to lead a
/// session. What a dead leader left (QEMU without its banger-emu) is given a moment to go, then killed.
fn holder(files: &VmFiles, file: &File, waited: Duration) -> io::Result<Option<(u32, OwnedFd)>> {
    if let Some(record) = read_record(file).filter(|record| record.vm == files.vm()) {
        // Opened before it is checked: what the checks say is then true of the process behind the descriptor.
        if let Ok(pidfd) = pidfd::open(record.pid)
            && start_time(record.pid) == Some(record.start_time)
            // A VMM whose descriptors may not be looked at (one with capabilities of its own) is taken at its record's word.
            && holds(record.pid, file)? != Held::No
        {
            return Ok(Some((record.pid, pidfd)));
        }
    }
    let holders = holders(file)?;
    for pid in holders.iter().copied().filter(|pid| leads_session(*pid)) {
        if let Ok(pidfd) = pidfd::open(pid)
            && holds(pid, file)? == Held::Yes
        {
            return Ok(Some((pid, pidfd)));
        }
    }
    if waited > HELPERS_GRACE {
        holders.into_iter().for_each(kill_by_id);
    }
    Ok(None)
}
