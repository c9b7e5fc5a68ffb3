//! Runs debugfs and e2fsck: bounded in time, memory and output, in an environment of our own. Knows nothing of what they say.
//!
//! They read what a guest wrote, and are C: a limit on memory turns what would exhaust the host into an error.

use super::FilesError;
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::runtime::Handle;

/// A check of a large disk reads all its tables; nothing takes longer but what does not end.
const DEADLINE: Duration = Duration::from_secs(300);
/// Address space of a tool, in bytes; a check of the largest disk takes less.
const MEMORY_MAX: u64 = 2 << 30;
/// The most complaints that are listened to, in bytes.
const COMPLAINTS_MAX: usize = 1 << 20;
/// What prlimit (and a shell) exits with where the program is not there.
const NO_SUCH_PROGRAM: i32 = 127;

/// One run of a tool.
pub(super) struct Call<'a> {
    pub(super) program: &'static str,
    pub(super) arguments: &'a [&'a str],
    /// Where it runs; relative names in `arguments` and `input` are of this directory.
    pub(super) directory: &'a Path,
    pub(super) input: &'a str,
    /// The longest answer, in bytes.
    pub(super) answer_max: usize,
}

/// What a tool said.
pub(super) struct Said {
    pub(super) status: ExitStatus,
    pub(super) answer: Vec<u8>,
    pub(super) complaints: String,
}

/// Runs tools, from a thread that may block.
#[derive(Debug)]
pub(super) struct Tools {
    runtime: Handle,
    deadline: Duration,
}

impl Tools {
    pub(super) fn new(runtime: Handle) -> Self {
        Self { runtime, deadline: DEADLINE }
    }

    #[cfg(test)]
    pub(super) fn with_deadline(runtime: Handle, deadline: Duration) -> Self {
        Self { runtime, deadline }
    }

    /// Runs one to its end. What exits with an error is no error here.
    pub(super) fn run(&self, call: &Call<'_>) -> Result<Said, FilesError> {
        let program = call.program;
        let failed = |source| FilesError::Run { program, source };
        // A file instead of a pipe: nobody has to feed it while the answer is read.
        let input = input(call).map_err(failed)?;
        let mut command = command(call);
        command.stdin(input);
        let said = self.runtime.block_on(async {
            let done = tokio::time::timeout(self.deadline, collect(&mut command, call)).await;
            done.unwrap_or(Err(FilesError::Deadline { program, limit: self.deadline }))
        })?;
        if said.status.code() == Some(NO_SUCH_PROGRAM) {
            return Err(FilesError::NotInstalled(program));
        }
        Ok(said)
    }
}

fn input(call: &Call<'_>) -> io::Result<File> {
    let mut input = tempfile::tempfile_in(call.directory)?;
    input.write_all(call.input.as_bytes())?;
    input.rewind()?;
    Ok(input)
}

fn command(call: &Call<'_>) -> Command {
    // In /usr/sbin, which an ordinary user's PATH may lack.
    let path = format!("{}:/usr/sbin:/sbin:/usr/bin:/bin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("prlimit");
    command
        .args(["--core=0", &format!("--as={MEMORY_MAX}"), &format!("--cpu={}", DEADLINE.as_secs()), "--"])
        .arg(call.program)
        .args(call.arguments)
        .current_dir(call.directory)
        // Nothing of the caller's: both have variables of their own, one of which names a program to run as a pager.
        .env_clear()
        .envs([("PATH", path.as_str()), ("LC_ALL", "C"), ("DEBUGFS_PAGER", "__none__")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Starts it and listens to its end; whatever fails kills it.
async fn collect(command: &mut Command, call: &Call<'_>) -> Result<Said, FilesError> {
    let program = call.program;
    let failed = |source| FilesError::Run { program, source };
    let mut child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => FilesError::NotInstalled("prlimit"),
        _ => failed(source),
    })?;
    let (answer, complaints) = (child.stdout.take(), child.stderr.take());
    let ended = async { child.wait().await.map_err(failed) };
    let (answer, complaints, status) =
        tokio::try_join!(listen(answer, call.answer_max, program), listen(complaints, COMPLAINTS_MAX, program), ended)?;
    Ok(Said { status, answer, complaints: String::from_utf8_lossy(&complaints).into_owned() })
}

/// Reads all of a pipe, or fails: a tool that is not listened to never ends.
async fn listen(
    pipe: Option<impl AsyncRead + Unpin>,
    limit: usize,
    program: &'static str,
) -> Result<Vec<u8>, FilesError> {
    let mut bytes = Vec::new();
    let Some(pipe) = pipe else { return Ok(bytes) };
    let read = pipe.take(limit as u64 + 1).read_to_end(&mut bytes).await;
    read.map_err(|source| FilesError::Run { program, source })?;
    if bytes.len() > limit {
        return Err(FilesError::TooTalkative { program, limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(program: &'static str, arguments: &[&str], input: &str, limit: usize) -> Result<Said, FilesError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let tools = Tools::with_deadline(runtime.handle().clone(), Duration::from_millis(500));
        let directory = tempfile::tempdir().unwrap();
        tools.run(&Call { program, arguments, directory: directory.path(), input, answer_max: limit })
    }

    #[test]
    fn a_tool_is_heard_to_its_end_or_killed() {
        let said = run("cat", &["-"], "hello", 5).ok().unwrap();
        assert_eq!((said.status.success(), said.answer.as_slice()), (true, b"hello".as_slice()));
        assert!(matches!(run("cat", &["-"], "hello!", 5), Err(FilesError::TooTalkative { limit: 5, .. })));
        assert!(matches!(run("cat", &["/dev/zero"], "", 5), Err(FilesError::TooTalkative { .. })));
        assert!(matches!(run("sleep", &["60"], "", 5), Err(FilesError::Deadline { .. })));
        assert!(matches!(run("no-such-tool", &[], "", 5), Err(FilesError::NotInstalled("no-such-tool"))));
    }

    #[test]
    fn a_tool_has_limits_and_no_environment_of_the_callers() {
        let limits = String::from_utf8(
            run("prlimit", &["--output", "HARD", "--noheadings", "--as"], "", 99).ok().unwrap().answer,
        );
        assert_eq!(limits.unwrap().trim(), MEMORY_MAX.to_string());
        let environment = String::from_utf8(run("env", &[], "", 9999).ok().unwrap().answer).unwrap();
        assert!(
            environment
                .lines()
                .all(|line| ["PATH=", "LC_ALL=C", "DEBUGFS_PAGER="].iter().any(|name| line.starts_with(name)))
        );
    }
}
