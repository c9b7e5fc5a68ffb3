//! Starts a planned command with pipes or a terminal. Moves no data.

use super::fd::StreamFd;
use super::plan::Plan;
use crate::sys::{self, Credentials, DIRECTORY_FAILED, IDENTITY_FAILED};
use messages::error::{ErrorKind, WireError};
use messages::guest::TerminalSize;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::Gid;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use tokio::process::Child;

/// Pipes of commands hold as much as two of the largest frames: fewer turns between command and agent.
const PIPE_SIZE: i32 = 256 << 10;
/// The group that terminals belong to, everywhere (it is part of devpts' usual options).
const TTY_GROUP: u32 = 5;

/// Where a command's streams come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    Terminal(TerminalSize),
    Pipes { stdin: bool },
}

/// A running command and our ends of its streams.
#[derive(Debug)]
pub struct Spawned {
    pub child: Child,
    pub pid: u32,
    /// Absent where the command reads `/dev/null`.
    pub stdin: Option<StreamFd>,
    pub stdout: StreamFd,
    /// Absent with a terminal.
    pub stderr: Option<StreamFd>,
    /// The terminal's master, to resize and to signal.
    pub terminal: Option<OwnedFd>,
}

/// Says which step of a start failed.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("failed to make the command's streams")]
    Streams(#[source] io::Error),
    #[error("failed to enter `{directory}`")]
    Directory { directory: String, source: io::Error },
    #[error("failed to change to the command's user")]
    Identity(#[source] io::Error),
    #[error("failed to run `{program}`")]
    Exec { program: String, source: io::Error },
    #[error("failed to watch the command")]
    Watch(#[source] io::Error),
}

impl SpawnError {
    /// As it goes to the client.
    #[must_use]
    pub fn to_wire(&self) -> WireError {
        let kind = match self {
            Self::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::Directory { .. } => ErrorKind::Usage,
            _ => ErrorKind::Guest,
        };
        let error = WireError::from_error(kind, self);
        match self {
            // The file was there a moment ago, so what is missing is what its first line or its ELF header names.
            Self::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                error.hint("the interpreter or dynamic linker that the program names is not in the guest")
            }
            _ => error,
        }
    }
}

/// Starts a command.
///
/// # Errors
/// [`SpawnError`]; nothing runs then.
pub fn spawn(plan: &Plan, streams: Streams) -> Result<Spawned, SpawnError> {
    let mut command = Command::new(&plan.program);
    command.arg0(&plan.argv0).args(&plan.arguments).env_clear();
    command.envs(plan.environment.iter().map(|(name, value)| (name, value)));
    let terminal = matches!(streams, Streams::Terminal(_));
    let ours = match streams {
        Streams::Terminal(size) => attach_terminal(&mut command, size, plan),
        Streams::Pipes { stdin } => attach_pipes(&mut command, stdin),
    };
    let ours = ours.map_err(SpawnError::Streams)?;
    let credentials = Credentials { identity: plan.identity.clone(), directory: plan.directory.clone(), terminal };
    sys::become_session(&mut command, credentials);
    let mut command = tokio::process::Command::from(command);
    // A command outlives its session's task where the client says so; the session kills what it must.
    command.kill_on_drop(false);
    let child = command.spawn().map_err(|error| explain(error, plan))?;
    let pid = child.id().ok_or_else(|| SpawnError::Watch(io::Error::other("it ended before it was watched")))?;
    Ok(Spawned { child, pid, stdin: ours.stdin, stdout: ours.stdout, stderr: ours.stderr, terminal: ours.terminal })
}

fn explain(error: io::Error, plan: &Plan) -> SpawnError {
    let program = plan.program.display().to_string();
    let cause = |number: i32, offset: i32| io::Error::from_raw_os_error(number - offset);
    match error.raw_os_error() {
        Some(number) if number > IDENTITY_FAILED => SpawnError::Identity(cause(number, IDENTITY_FAILED)),
        Some(number) if number > DIRECTORY_FAILED => SpawnError::Directory {
            directory: plan.directory.display().to_string(),
            source: cause(number, DIRECTORY_FAILED),
        },
        _ => SpawnError::Exec { program, source: error },
    }
}

struct Ours {
    stdin: Option<StreamFd>,
    stdout: StreamFd,
    stderr: Option<StreamFd>,
    terminal: Option<OwnedFd>,
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // A wish: an ordinary user has a budget for these.
    if let Err(error) = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE)) {
        tracing::debug!(%error, "a pipe keeps its usual size");
    }
    Ok((reader, writer))
}

fn attach_pipes(command: &mut Command, stdin: bool) -> io::Result<Ours> {
    let stdin = if stdin {
        let (theirs, ours) = pipe()?;
        command.stdin(Stdio::from(theirs));
        Some(StreamFd::new(ours)?)
    } else {
        command.stdin(Stdio::null());
        None
    };
    let (stdout, theirs) = pipe()?;
    command.stdout(Stdio::from(theirs));
    let (stderr, theirs) = pipe()?;
    command.stderr(Stdio::from(theirs));
    Ok(Ours { stdin, stdout: StreamFd::new(stdout)?, stderr: Some(StreamFd::new(stderr)?), terminal: None })
}

fn attach_terminal(command: &mut Command, size: TerminalSize, plan: &Plan) -> io::Result<Ours> {
    let master = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    nix::pty::grantpt(&master)?;
    nix::pty::unlockpt(&master)?;
    let master = OwnedFd::from(master);
    sys::set_window_size(master.as_fd(), size.rows, size.columns)?;
    let slave = sys::open_terminal_peer(master.as_fd())?;
    if let Some(identity) = &plan.identity {
        nix::unistd::fchown(&slave, Some(identity.uid), Some(Gid::from_raw(TTY_GROUP)))?;
        nix::sys::stat::fchmod(&slave, Mode::from_bits_truncate(0o620))?;
    }
    command.stdin(Stdio::from(slave.try_clone()?));
    command.stdout(Stdio::from(slave.try_clone()?));
    command.stderr(Stdio::from(slave));
    Ok(Ours {
        stdin: Some(StreamFd::new(master.try_clone()?)?),
        stdout: StreamFd::new(master.try_clone()?)?,
        stderr: None,
        terminal: Some(master),
    })
}
