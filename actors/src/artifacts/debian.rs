//! Runs mmdebstrap and hands its tar stream to whoever builds something from it.
//!
//! Packages come from the mirror that mmdebstrap or the config chooses and are verified by apt: no address and no key of
//! ours is involved. Needs no root: as an ordinary user mmdebstrap works in user and mount namespaces of its own.

use super::{Cancel, Reporter};
use messages::{ErrorKind, WireError};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

mod host;
mod scratch;
mod watchdog;

pub use host::{HostTrap, host_traps};
pub(super) use scratch::clean;

use scratch::Scratch;
use watchdog::Watchdog;

/// How many of the last lines of a failed run are worth showing. apt repeats itself; the cause is near the end.
const TAIL_LINES: usize = 12;
/// A line longer than this is cut: the text goes into an error message.
const LINE_MAX: usize = 400;

/// What mmdebstrap is to make.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub suite: String,
    pub variant: Variant,
    pub packages: Vec<String>,
    /// Run by the system's own `/bin/sh -e`, in it, before it is packed.
    pub scripts: Vec<String>,
    /// `debian_mirror` of the config. Without one mmdebstrap chooses.
    pub mirror: Option<String>,
}

/// mmdebstrap's `--variant`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Unpacked, nothing configured, nothing but the packages named.
    Extract,
    /// The packages that Debian calls essential or required, and those named.
    Minimal,
}

/// Why mmdebstrap gave no tar stream.
#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    #[error("mmdebstrap is not installed")]
    NotInstalled,
    #[error("this host does not let an ordinary user build a Debian system: {0}")]
    Host(HostTrap),
    #[error("failed to start mmdebstrap")]
    Start(#[source] io::Error),
    #[error("failed to make a scratch directory")]
    Scratch(#[source] io::Error),
    #[error("failed to wait for mmdebstrap")]
    Wait(#[source] io::Error),
    #[error("mmdebstrap failed ({status}): {}", tail.join(" | "))]
    Failed { status: ExitStatus, tail: Vec<String> },
    #[error("the pull was stopped")]
    Cancelled,
}

impl From<&DebianError> for WireError {
    fn from(error: &DebianError) -> Self {
        match error {
            DebianError::NotInstalled => {
                Self::from_error(ErrorKind::Host, error).hint("install it: `sudo apt install mmdebstrap uidmap`")
            }
            DebianError::Host(trap) => Self::from_error(ErrorKind::Host, error).hint(trap.hint()),
            DebianError::Start(_) | DebianError::Scratch(_) | DebianError::Wait(_) => {
                Self::from_error(ErrorKind::Host, error)
            }
            DebianError::Failed { tail, .. } => {
                let wire = Self::from_error(ErrorKind::Download, error);
                match failure_hint(tail) {
                    Some(hint) => wire.hint(hint),
                    None => wire,
                }
            }
            DebianError::Cancelled => Self::from_error(ErrorKind::Cancelled, error),
        }
    }
}

/// What the usual ends of a run mean. The texts are apt's and mmdebstrap's, which have no error codes.
fn failure_hint(tail: &[String]) -> Option<&'static str> {
    let has = |needle: &str| tail.iter().any(|line| line.contains(needle));
    if has("No space left on device") {
        Some("the disk that holds `TMPDIR` (or `/tmp`) is full: mmdebstrap unpacks there")
    } else if has("Could not resolve") || has("Temporary failure resolving") || has("Could not connect") {
        Some("the Debian mirror cannot be reached: is the network up? `debian_mirror` in the config names another one")
    } else if has("NO_PUBKEY") || has("is not signed") {
        Some("this host lacks Debian's archive keys: `sudo apt install debian-archive-keyring`")
    } else if has("Unable to locate package") {
        Some("the mirror does not have that package: `debian_mirror` in the config names another one")
    } else {
        None
    }
}

impl Recipe {
    /// The command, as root or as an ordinary user.
    fn command(&self, root: bool, scratch: &Path) -> Command {
        let mut command = Command::new("mmdebstrap");
        let variant = match self.variant {
            Variant::Extract => "extract",
            Variant::Minimal => "minbase",
        };
        command
            .arg(if root { "--mode=root" } else { "--mode=unshare" })
            .arg(format!("--variant={variant}"))
            .arg(format!("--include={}", self.packages.join(",")))
            .arg("--format=tar")
            // translations of package descriptions are a third of what apt downloads, for nothing
            .arg("--aptopt=Acquire::Languages \"none\"")
            .args(self.scripts.iter().map(|script| format!("--customize-hook={}", hook(script))))
            .arg(&self.suite)
            .arg("-")
            .args(self.mirror.as_deref());
        command
            .env("LC_ALL", "C.UTF-8")
            .env("PATH", path_with_sbin())
            .env("TMPDIR", scratch)
            // the current directory of a daemon may be out of reach of the build's own user namespace
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        command
    }

    /// Runs it and gives the tar stream to `consume`, on this thread; `staging` gets a note while it runs. The stream is whole only if this returns `Ok`: whatever
    /// `consume` made must not be published before.
    ///
    /// # Errors
    /// mmdebstrap's failure, or else `consume`'s.
    pub fn run<T, E: From<DebianError>>(
        &self,
        staging: &Path,
        cancel: &Cancel,
        reporter: &Reporter,
        consume: impl FnOnce(&mut dyn Read) -> Result<T, E>,
    ) -> Result<T, E> {
        let root = nix::unistd::geteuid().is_root();
        if !root && let Some(trap) = host_traps().into_iter().next() {
            return Err(DebianError::Host(trap).into());
        }
        reporter.step(format!("asking mmdebstrap for {}", self.suite));
        let scratch = Scratch::create(staging)?;
        let mut running = Running::start(self.command(root, scratch.path()), cancel, reporter)?;
        let mut stdout = running.child.stdout.take().expect("stdout was asked to be a pipe");
        let consumed = consume(&mut stdout);
        if consumed.is_err() {
            // It would write the rest into a pipe that nobody reads.
            drop(stdout);
            running.stop();
        } else {
            // tar pads its end; a writer that meets a closed pipe there would fail for nothing.
            let _padding = io::copy(&mut stdout, &mut io::sink());
        }
        let end = running.wait();
        drop(scratch);
        if cancel.is_cancelled() {
            return Err(DebianError::Cancelled.into());
        }
        match (consumed, end) {
            (Ok(value), Ok(())) => Ok(value),
            // A stream that breaks off is the effect; why mmdebstrap broke it off is the cause. SIGPIPE and the like are ours.
            (_, Err(error @ DebianError::Failed { .. })) if !broken_by_us(&error) => Err(error.into()),
            (Err(error), _) => Err(error),
            (Ok(_), Err(error)) => Err(error.into()),
        }
    }
}

/// True where mmdebstrap ended because we stopped it.
fn broken_by_us(error: &DebianError) -> bool {
    let DebianError::Failed { status, .. } = error else { return false };
    status.signal() == Some(Signal::SIGKILL as i32)
}

/// The shell line that runs a script in the new system, whose directory mmdebstrap gives as `$1`.
fn hook(script: &str) -> String {
    format!("chroot \"$1\" /bin/sh -ec '{}'", script.replace('\'', r"'\''"))
}

/// `PATH`, with the directories that hold chroot, mount and newuidmap even where a login shell has left them out.
fn path_with_sbin() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}{}/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin", if path.is_empty() { "" } else { ":" })
}

/// A child that is waited for whatever happens.
struct Running<'a> {
    child: Child,
    cancel: &'a Cancel,
    tail: Option<JoinHandle<Vec<String>>>,
    group: Pid,
    /// Called off by its drop, after the child has been waited for.
    _watchdog: Watchdog,
}

impl<'a> Running<'a> {
    fn start(mut command: Command, cancel: &'a Cancel, reporter: &Reporter) -> Result<Self, DebianError> {
        let mut watchdog = Watchdog::start()?;
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DebianError::NotInstalled,
            _ => DebianError::Start(error),
        })?;
        let group = Pid::from_raw(i32::try_from(child.id()).expect("a process id fits pid_t"));
        cancel.guard(group);
        let stderr = child.stderr.take().expect("stderr was asked to be a pipe");
        let reporter = reporter.clone();
        let tail = std::thread::Builder::new()
            .name("mmdebstrap-stderr".to_owned())
            .spawn(move || follow(stderr, &reporter))
            .map_err(DebianError::Start);
        let guarded = watchdog.guard(group.as_raw());
        let mut running = Self { child, cancel, tail: None, group, _watchdog: watchdog };
        // An early return drops `running`, which stops the child.
        guarded?;
        running.tail = Some(tail?);
        Ok(running)
    }

    /// SIGKILL to all of them: SIGTERM would leave mmdebstrap waiting for a child that waits for it.
    fn stop(&self) {
        if let Err(error) = nix::sys::signal::killpg(self.group, Signal::SIGKILL) {
            tracing::debug!(%error, "mmdebstrap had ended already");
        }
    }

    fn wait(mut self) -> Result<(), DebianError> {
        let tail = self.tail.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        // Its stderr is at its end, so it is about to exit: no signal is needed any more, and after the wait its id is free.
        self.cancel.release();
        let status = self.child.wait().map_err(DebianError::Wait)?;
        if status.success() { Ok(()) } else { Err(DebianError::Failed { status, tail }) }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
            if let Err(error) = self.child.wait() {
                tracing::warn!(%error, "mmdebstrap could not be waited for");
            }
        }
        self.cancel.release();
    }
}

/// Reports each line of mmdebstrap's talk and keeps the last ones for an error.
fn follow(stderr: ChildStderr, reporter: &Reporter) -> Vec<String> {
    let mut tail = VecDeque::new();
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(64 << 10).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let text: String = text.trim().chars().filter(|c| !c.is_control()).take(LINE_MAX).collect();
        if text.is_empty() {
            continue;
        }
        tracing::debug!(line = %text, "mmdebstrap");
        if let Some(step) = step_of(&text) {
            reporter.step(step);
        }
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(text);
    }
    useful(tail.into())
}

/// The lines that explain a failure: warnings and errors where there are any, else all.
fn useful(tail: Vec<String>) -> Vec<String> {
    let telling = |line: &String| {
        !line.starts_with("I: ")
            && !line.starts_with("W: skipping")
            && !line.starts_with("Reading ")
            && !line.starts_with("Get:")
    };
    if tail.iter().any(telling) { tail.into_iter().filter(telling).collect() } else { tail }
}

/// What a line of mmdebstrap's means to somebody who waits; `None` for its chatter.
fn step_of(line: &str) -> Option<String> {
    let step = line.strip_prefix("I: ")?.trim_end_matches("...");
    let chatter = [
        "automatically chosen",
        "skipping",
        "finding correct",
        "using ",
        "removing tempdir",
        "success in",
        "done",
        "chroot architecture",
    ];
    if step.starts_with("running --customize-hook") {
        // The rest is the whole script.
        return Some("running the recipe's scripts".to_owned());
    }
    (!chatter.iter().any(|start| step.starts_with(start))).then(|| step.to_owned())
}

/// Where a program is, if it is on the search path of a build.
fn which(program: &str) -> Option<PathBuf> {
    path_with_sbin().split(':').map(|directory| PathBuf::from(directory).join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests;
