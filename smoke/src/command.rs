//! Runs a program with a deadline and collects what it says. Knows nothing of banger.
//!
//! Output can be waited for while the program runs; a program that outlives its deadline is killed.

use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long any single program may take unless it is told otherwise: a boot under emulation on a busy machine, thrice.
pub(crate) const DEADLINE: Duration = Duration::from_secs(240);
/// How often something that can only be looked at is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(20);
/// Output beyond this is counted and hashed, not kept.
const KEPT: usize = 4 << 20;

/// Where the bytes on stdin come from.
pub(crate) enum Input {
    Null,
    Bytes(Vec<u8>),
    Reader(Box<dyn Read + Send>),
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Null => "Null",
            Self::Bytes(_) => "Bytes",
            Self::Reader(_) => "Reader",
        })
    }
}

/// A program to run.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) argv: Vec<String>,
    /// The whole environment: nothing is inherited.
    pub(crate) env: Vec<(String, String)>,
    /// uid and gid; root's own where absent.
    pub(crate) user: Option<(u32, u32)>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) input: Input,
    pub(crate) deadline: Duration,
}

/// What one output stream said.
#[derive(Debug, Default)]
struct Stream {
    kept: Vec<u8>,
    total: u64,
    hash: Sha256,
    ended: bool,
}

type Shared = Arc<(Mutex<Stream>, Condvar)>;

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    started: Instant,
    deadline: Duration,
    stdout: Shared,
    stderr: Shared,
    threads: Vec<JoinHandle<()>>,
}

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Of all of stdout, also of what was not kept.
    pub(crate) stdout_total: u64,
    pub(crate) stdout_sha256: String,
    pub(crate) took: Duration,
    /// It was killed, having outlived its deadline.
    pub(crate) overdue: bool,
}

impl Finished {
    /// The exit code; 128 + n where a signal ended the program.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl Program {
    /// A program with the caller's own environment and uid: for the harness's own tools.
    pub(crate) fn tool(argv: &[&str]) -> Self {
        Self {
            argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
            env: std::env::vars().collect(),
            user: None,
            directory: None,
            input: Input::Null,
            deadline: DEADLINE,
        }
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).env_clear().envs(self.env.iter().map(|(key, value)| (key, value)));
        if let Some((uid, gid)) = self.user {
            // With a uid set by root, the standard library drops the supplementary groups too.
            command.uid(uid).gid(gid);
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn spawn(self) -> io::Result<Running> {
        let mut command = self.command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(match self.input {
            Input::Null => Stdio::null(),
            Input::Bytes(_) | Input::Reader(_) => Stdio::piped(),
        });
        let started = Instant::now();
        let mut child = command
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("cannot start {}: {error}", self.argv[0])))?;
        let (stdout, stderr) = (Shared::default(), Shared::default());
        let mut threads = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            threads.push(collect(pipe, Arc::clone(&stdout)));
        }
        if let Some(pipe) = child.stderr.take() {
            threads.push(collect(pipe, Arc::clone(&stderr)));
        }
        if let Some(mut pipe) = child.stdin.take() {
            let mut source: Box<dyn Read + Send> = match self.input {
                Input::Bytes(bytes) => Box::new(io::Cursor::new(bytes)),
                Input::Reader(reader) => reader,
                Input::Null => Box::new(io::empty()),
            };
            // A program may leave the rest of its stdin unread: the broken pipe is its own business.
            threads.push(std::thread::spawn(move || {
                let mut chunk = vec![0; 1 << 17];
                while let Ok(length @ 1..) = source.read(&mut chunk) {
                    if pipe.write_all(&chunk[..length]).is_err() {
                        break;
                    }
                }
            }));
        }
        Ok(Running { child, started, deadline: self.deadline, stdout, stderr, threads })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started or waited for.
    pub(crate) fn run(self) -> io::Result<Finished> {
        self.spawn()?.finish()
    }
}

fn collect(mut pipe: impl Read + Send + 'static, shared: Shared) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut chunk = vec![0; 1 << 17];
        loop {
            let length = pipe.read(&mut chunk).unwrap_or(0);
            let (stream, changed) = &*shared;
            let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
            stream.ended = length == 0;
            let room = KEPT.saturating_sub(stream.kept.len()).min(length);
            stream.kept.extend_from_slice(&chunk[..room]);
            stream.total += length as u64;
            stream.hash.update(&chunk[..length]);
            changed.notify_all();
            if length == 0 {
                return;
            }
        }
    })
}

impl Running {
    /// Waits until stdout contains `text`.
    ///
    /// # Errors
    /// What was said instead, at the end of the stream or of the deadline.
    pub(crate) fn wait_for_stdout(&self, text: &str, deadline: Duration) -> Result<(), String> {
        wait_for(&self.stdout, text, deadline)
    }

    /// What stdout has said until now.
    pub(crate) fn stdout_so_far(&self) -> String {
        String::from_utf8_lossy(&taken(&self.stdout).0).into_owned()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).map_err(io::Error::from)
    }

    /// Gives it so much more time from now.
    pub(crate) fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = self.started.elapsed() + deadline;
    }

    /// Whether it runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, or kills it at the deadline.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub(crate) fn finish(mut self) -> io::Result<Finished> {
        let end = self.started + self.deadline;
        let mut overdue = false;
        let mut pause = Duration::from_millis(1);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() >= end {
                overdue = true;
                self.child.kill()?;
                break self.child.wait()?;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(POLL);
        };
        let took = self.started.elapsed();
        // A daemon that the program started may hold the pipes open: it is given a second, then what is there counts.
        for shared in [&self.stdout, &self.stderr] {
            let (stream, changed) = &**shared;
            let guard = stream.lock().unwrap_or_else(PoisonError::into_inner);
            drop(changed.wait_timeout_while(guard, Duration::from_secs(1), |stream| !stream.ended));
        }
        self.threads.retain(|thread| !thread.is_finished());
        let (stdout, total, hash) = taken(&self.stdout);
        let (stderr, _, _) = taken(&self.stderr);
        Ok(Finished { status, stdout, stderr, stdout_total: total, stdout_sha256: hash, took, overdue })
    }
}

fn taken(shared: &Shared) -> (Vec<u8>, u64, String) {
    let stream = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
    (stream.kept.clone(), stream.total, hex::encode(stream.hash.clone().finalize()))
}

fn wait_for(shared: &Shared, text: &str, deadline: Duration) -> Result<(), String> {
    let (stream, changed) = &**shared;
    let contains = |stream: &Stream| stream.kept.windows(text.len()).any(|window| window == text.as_bytes());
    let guard = stream.lock().unwrap_or_else(PoisonError::into_inner);
    let (guard, _) = changed
        .wait_timeout_while(guard, deadline, |stream| !contains(stream) && !stream.ended)
        .unwrap_or_else(PoisonError::into_inner);
    if contains(&guard) {
        return Ok(());
    }
    let why = if guard.ended { "the output ended" } else { "the time was up" };
    Err(format!("waited for `{text}`, but {why} after:\n{}", String::from_utf8_lossy(&guard.kept)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collects_streams_apart_and_the_code() {
        let mut program = Program::tool(&["sh", "-c", "cat; echo err >&2; exit 7"]);
        program.input = Input::Bytes(b"in".to_vec());
        let done = program.run().unwrap();
        assert_eq!((done.code(), done.out(), done.err()), (7, "in".to_owned(), "err\n".to_owned()));
        assert_eq!(done.stdout_total, 2);
        assert_eq!(done.stdout_sha256, hex::encode(Sha256::digest(b"in")));
    }

    #[test]
    fn a_signal_is_128_and_more() {
        assert_eq!(Program::tool(&["sh", "-c", "kill -9 $$"]).run().unwrap().code(), 137);
    }

    #[test]
    fn the_overdue_are_killed() {
        let mut program = Program::tool(&["sleep", "1000"]);
        program.deadline = Duration::from_millis(50);
        let done = program.run().unwrap();
        assert!(done.overdue);
        assert_eq!(done.code(), 137);
    }

    #[test]
    fn output_can_be_waited_for() {
        let running = Program::tool(&["sh", "-c", "echo ready; exec sleep 1000"]).spawn().unwrap();
        running.wait_for_stdout("ready", DEADLINE).unwrap();
        assert!(running.wait_for_stdout("never", Duration::from_millis(20)).unwrap_err().contains("the time was up"));
        running.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(running.finish().unwrap().code(), 143);
    }

    #[test]
    fn a_missing_program_is_named() {
        assert!(
            Program::tool(&["/nonexistent/program"]).spawn().unwrap_err().to_string().contains("/nonexistent/program")
        );
    }
}
