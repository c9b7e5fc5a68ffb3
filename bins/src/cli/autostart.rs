//! Starts `bangerd` when nobody listens: detached, in its own session, its output in the daemon's log. Two programs that do
//! this at once are fine: the daemon's lock lets one live, and both connect to it.

use super::client::connect;
use super::failure::Failure;
use super::output::Output;
use super::sys::own_session;
use actors::paths::Paths;
use messages::error::ErrorKind;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
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
const LOG_BYTES: u64 = 16 << 10;

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
    let (log, written) = open_log(paths)?;
    let mut child = spawn(paths, owner, log)?;
    let began = Instant::now();
    let mut exited: Option<ExitStatus> = None;
    let mut pause = RETRY_FIRST;
    loop {
        if let Some(stream) = connect(paths).await? {
            if exited.is_none() && began.elapsed() > Duration::from_secs(1) {
                output.remark("bangerd started");
            }
            return Ok(stream);
        }
        if exited.is_none() {
            exited = child.try_wait().ok().flatten();
        }
        let late = began.elapsed() > LISTEN_DEADLINE;
        match exited {
            // The lock is held: another daemon is about to listen.
            Some(status) if !late && status.code() == Some(i32::from(ErrorKind::Conflict.exit_code())) => {}
            Some(status) => return Err(failed(paths, status, written)),
            None if late => {
                let sentence = format!("bangerd does not listen after {} s", LISTEN_DEADLINE.as_secs());
                return Err(with_log(Failure::new(ErrorKind::Timeout, sentence), paths, written));
            }
            None => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MOST);
    }
}

fn spawn(paths: &Paths, owner: Option<&str>, log: File) -> Result<Child, Failure> {
    let program = paths.helper_program("bangerd").ok_or_else(|| {
        Failure::new(ErrorKind::Host, "bangerd is not running, and the program `bangerd` is not beside this one")
            .hint("install it next to `banger`, or name its directory in BANGER_LIBEXEC")
    })?;
    let failed_to_start = |error: &std::io::Error| {
        Failure::io(ErrorKind::Host, format!("failed to start `{}`", program.display()), error)
    };
    let errors = log.try_clone().map_err(|error| failed_to_start(&error))?;
    let mut command = Command::new(&program);
    command.arg("--foreground").current_dir("/").stdin(Stdio::null()).stdout(log).stderr(errors);
    if let Some(owner) = owner {
        command.args(["--owner", owner]);
    }
    own_session(&mut command).spawn().map_err(|error| failed_to_start(&error))
}

/// Opens the log for appending, and says how long it is, so that only what this daemon wrote is shown.
fn open_log(paths: &Paths) -> Result<(File, u64), Failure> {
    let state = &paths.state_dir;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(|error| {
        Failure::io(ErrorKind::Host, format!("the state directory `{}` cannot be made", state.display()), &error)
    })?;
    let log = paths.log();
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&log).map_err(|error| {
        Failure::io(ErrorKind::Host, format!("the state directory `{}` cannot be written", state.display()), &error)
    })?;
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    Ok((file, length))
}

/// A daemon's own exit code is an error kind's, so the CLI leaves with the same.
fn failed(paths: &Paths, status: ExitStatus, written: u64) -> Failure {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    let known = ErrorKind::ALL.into_iter().find(|kind| Some(kind.exit_code()) == code);
    let sentence = format!("bangerd ended instead of listening ({status})");
    with_log(Failure::new(known.unwrap_or(ErrorKind::Unavailable), sentence), paths, written)
}

fn with_log(failure: Failure, paths: &Paths, written: u64) -> Failure {
    let lines = last_lines(&paths.log(), written);
    let failure = match failure {
        Failure::Error(mut error) => {
            error.chain.extend(lines);
            Failure::Error(error)
        }
        other => other,
    };
    failure.hint("`banger daemon logs` has the whole log").hint("`banger doctor` looks for what is missing")
}

/// The last lines written to a log since it was `from` bytes long, without control characters.
fn last_lines(log: &Path, from: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(LOG_BYTES)))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes).ok()?;
    let text = console::strip_ansi_codes(&String::from_utf8_lossy(&bytes)).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n    ");
    (!tail.is_empty()).then_some(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_the_new_end_of_a_log_is_shown() {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        writeln!(log, "old").unwrap();
        let from = log.as_file().metadata().unwrap().len();
        assert_eq!(last_lines(log.path(), from), None);
        for line in 0..20 {
            writeln!(log, "\u{1b}[31mline {line}\u{1b}[0m").unwrap();
        }
        let shown = last_lines(log.path(), from).unwrap();
        assert!(shown.starts_with("line 12\n") && shown.ends_with("line 19"), "{shown}");
    }
}
