//! Starts `bangerd` when nobody listens: detached, in its own session, its output in the daemon's log. Two programs that do
//! this at once are fine: the daemon's lock lets one live, and both connect to it.

use super::client::connect;
use super::failure::Failure;
use super::output::Output;
use super::sys::own_session;
use actors::paths::Paths;
use messages::error::ErrorKind;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

/// How long a daemon may take to listen. It reconciles what it finds before that; a cold, busy machine needs seconds.
const LISTEN_DEADLINE: Duration = Duration::from_secs(30);
/// Between two attempts to connect, at first and at most.
const RETRY_FIRST: Duration = Duration::from_millis(2);
const RETRY_MOST: Duration = Duration::from_millis(50);
/// How much of its log is shown when a daemon fails to start.
const LOG_LINES: usize = 8;
const LOG_BYTES: usize = 16 << 10;

/// Starts a daemon and connects to it.
pub(super) async fn start(paths: &Paths, output: Output, owner: Option<&str>) -> Result<UnixStream, Failure> {
    if nix::unistd::Uid::effective().is_root() && owner.is_none() {
        return Err(Failure::new(
            ErrorKind::Unavailable,
            "bangerd is not running, and root does not start it for itself",
        )
        .hint("`banger daemon start --owner USER` starts one that runs as USER")
        .hint("or run banger as the user who owns the VMs"));
    }
    let log = Log::open(paths, owner)?;
    let mut child = spawn(paths, owner, &log)?;
    let began = Instant::now();
    let mut pause = RETRY_FIRST;
    loop {
        if let Some(stream) = connect(paths).await? {
            if began.elapsed() > Duration::from_secs(1) {
                output.remark("bangerd started");
            }
            return Ok(stream);
        }
        let late = began.elapsed() > LISTEN_DEADLINE;
        match child.try_wait().ok().flatten() {
            // The lock is held by another daemon, which is about to listen, or about to end: then ours is still wanted.
            Some(status) if !late && status.code() == Some(i32::from(ErrorKind::Conflict.exit_code())) => {
                tokio::time::sleep(RETRY_MOST).await;
                if connect(paths).await?.is_none() {
                    child = spawn(paths, owner, &log)?;
                }
            }
            Some(status) => return Err(failed(&log, status)),
            None if late => {
                let sentence = format!("bangerd does not listen after {} s", LISTEN_DEADLINE.as_secs());
                return Err(log.added_to(Failure::new(ErrorKind::Timeout, sentence)));
            }
            None => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MOST);
    }
}

fn spawn(paths: &Paths, owner: Option<&str>, log: &Log) -> Result<Child, Failure> {
    let program = paths.helper_program("bangerd").ok_or_else(|| {
        Failure::new(ErrorKind::Host, "bangerd is not running, and the program `bangerd` is not beside this one")
            .hint("install it next to `banger`, or name its directory in BANGER_LIBEXEC")
    })?;
    let failed_to_start = |error: &std::io::Error| {
        Failure::io(ErrorKind::Host, format!("failed to start `{}`", program.display()), error)
    };
    let stream = || log.file.try_clone().map_err(|error| failed_to_start(&error));
    let mut command = Command::new(&program);
    command.arg("--foreground").current_dir("/").stdin(Stdio::null()).stdout(stream()?).stderr(stream()?);
    if let Some(owner) = owner {
        command.args(["--owner", owner]);
    }
    own_session(&mut command).spawn().map_err(|error| failed_to_start(&error))
}

/// A daemon's own exit code is an error kind's, so the CLI leaves with the same.
fn failed(log: &Log, status: ExitStatus) -> Failure {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    let known = ErrorKind::ALL.into_iter().find(|kind| Some(kind.exit_code()) == code);
    let sentence = format!("bangerd ended instead of listening ({status})");
    log.added_to(Failure::new(known.unwrap_or(ErrorKind::Unavailable), sentence))
}

/// Where a new daemon writes, and how long that was before: only what this one wrote is shown.
#[derive(Debug)]
struct Log {
    file: File,
    before: u64,
}

impl Log {
    fn open(paths: &Paths, owner: Option<&str>) -> Result<Self, Failure> {
        let state = &paths.state_dir;
        let unusable = |error: &std::io::Error| {
            let sentence = format!("the state directory `{}` cannot be written", state.display());
            Failure::io(ErrorKind::Host, sentence, error).hint("make it yours, or choose another with BANGER_STATE_DIR")
        };
        if owner.is_some() {
            // Root makes no files in a user's directories: the daemon opens its log itself once it is that user.
            let file = memfd_create(c"bangerd.log", MFdFlags::MFD_CLOEXEC).map_err(|errno| unusable(&errno.into()))?;
            return Ok(Self { file: File::from(file), before: 0 });
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(|error| unusable(&error))?;
        let mut options = OpenOptions::new();
        let file = options.create(true).read(true).append(true).mode(0o600).open(paths.log());
        let file = file.map_err(|error| unusable(&error))?;
        let before = file.metadata().map_or(0, |metadata| metadata.len());
        Ok(Self { file, before })
    }

    /// Adds the last lines to an error's causes.
    fn added_to(&self, failure: Failure) -> Failure {
        let failure = match (failure, self.last_lines()) {
            (Failure::Error(mut error), Some(lines)) => {
                error.chain.push(lines);
                Failure::Error(error)
            }
            (other, _) => other,
        };
        failure.hint("`banger daemon logs` has the whole log, `banger doctor` looks for what is missing")
    }

    /// The last lines written since the start, without control characters.
    fn last_lines(&self) -> Option<String> {
        let length = self.file.metadata().ok()?.len();
        let mut bytes = vec![0; LOG_BYTES];
        let from = self.before.max(length.saturating_sub(LOG_BYTES as u64));
        let read = self.file.read_at(&mut bytes, from).ok()?;
        let text = console::strip_ansi_codes(&String::from_utf8_lossy(&bytes[..read])).into_owned();
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        (!tail.is_empty()).then_some(tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_the_new_end_of_a_log_is_shown() {
        let mut file = tempfile::tempfile().unwrap();
        writeln!(file, "old").unwrap();
        let before = file.metadata().unwrap().len();
        let mut log = Log { file, before };
        assert_eq!(log.last_lines(), None);
        for line in 0..20 {
            writeln!(log.file, "\u{1b}[31mline {line}\u{1b}[0m").unwrap();
        }
        let shown = log.last_lines().unwrap();
        assert!(shown.starts_with("line 12\n") && shown.ends_with("line 19"), "{shown}");
    }
}
