//! A command in a guest, seen from here: the socket that came with the reply, our three streams, our signals, our terminal.
//!
//! ```text
//!   stdin ──▶ stdin thread ───────────────┐
//!   signals ▶ signal thread ▶ its forwarder ┴─▶ sender ──▶ socket ──▶ banger-agent
//!
//!   stdout, stderr ◀── this thread ◀──────────────────── socket ◀── banger-agent
//! ```
//!
//! Plain threads and blocking calls: nothing here is waited for by anyone else, our stdin and stdout may be shared with other
//! programs (so they are never made non-blocking), and bytes are copied once on their way in either direction. The daemon
//! has no part in this: it may die.

mod frames;
mod sender;
mod signals;
mod stdin;
mod terminal;

use super::failure::{BROKEN_PIPE, Failure};
use frames::{FrameError, Frames};
use messages::error::{ErrorKind, WireError};
use messages::guest::{ExitStatus, OutputFrame, TerminalSize};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sender::Sender;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use terminal::{RawTerminal, terminal_size};

/// What to connect to the command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attachment {
    /// Our stdin is passed on.
    pub(super) stdin: bool,
    /// The command has a terminal, and ours is in raw mode where it is one.
    pub(super) terminal: bool,
}

/// How the conversation ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// The command ended; all of its output has been written.
    Exited(ExitStatus),
    /// The command could not be run.
    Failed(WireError),
    /// The user left with a second Ctrl-C; the command runs on.
    Detached,
    /// The same, and the guest could not be told: the command ends with the connection.
    Abandoned,
    /// A second SIGTERM: the command ends with the connection.
    Terminated,
    /// Nobody reads our stdout or stderr any more.
    BrokenPipe,
    /// Our stdout or stderr refuses, as a full disk does: the command is ended with the connection.
    Unwritable(Errno),
    /// The user's terminal is gone and the command did not end by itself.
    HungUp,
    /// The connection broke off: nobody knows how the command ended.
    Lost(String),
}

/// Connects our streams to the operation behind `socket` until it ends.
///
/// # Errors
/// What the host refuses: threads, signals, the terminal.
pub(super) fn run(socket: OwnedFd, attachment: Attachment) -> Result<Ending, Failure> {
    let host = |what: &'static str| move |error: std::io::Error| Failure::io(ErrorKind::Host, what, &error);
    let socket = UnixStream::from(socket);
    // The daemon's runtime had it non-blocking; it has no copy any more.
    socket.set_nonblocking(false).map_err(host("failed to set up the connection"))?;
    let writer = socket.try_clone().map_err(host("failed to set up the connection"))?;
    let sender = Arc::new(Sender::new(writer));

    // Before any thread is made, so that all inherit the mask and only the signal thread takes them.
    let signals = signals::block().map_err(|errno| host("failed to block signals")(errno.into()))?;
    let raw =
        if attachment.terminal { RawTerminal::enter().map_err(host("failed to set up the terminal"))? } else { None };
    let handler = signals::Handler::new(Arc::clone(&sender), raw.is_some(), attachment.terminal)
        .map_err(host("failed to start a thread"))?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || handler.run(&signals))
        .map_err(host("failed to start a thread"))?;
    let credit = Arc::new(stdin::Credit::new().map_err(host("failed to set up stdin"))?);
    if attachment.stdin {
        let (credit, sender) = (Arc::clone(&credit), Arc::clone(&sender));
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || stdin::pump(&credit, &sender))
            .map_err(host("failed to start a thread"))?;
    }
    let ending = receive(socket, &credit);
    credit.close();
    // The reader learns first of an end that the sender brought about. A command that ended meanwhile has ended.
    let ending = match ending {
        Ending::Exited(_) | Ending::Failed(_) => ending,
        ending => sender.left().unwrap_or(ending),
    };
    drop(raw);
    // What comes after the command is no more than any program does, and ends as easily.
    signals::unblock(&signals);
    Ok(ending)
}

/// Waits until the command has started, then leaves it running.
pub(super) fn start_and_leave(socket: OwnedFd, deadline: Duration) -> Result<u32, Failure> {
    let host = |error: std::io::Error| Failure::io(ErrorKind::Host, "failed to set up the connection", &error);
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false).map_err(host)?;
    socket.set_read_timeout(Some(deadline)).map_err(host)?;
    let sender = Sender::new(socket.try_clone().map_err(host)?);
    let mut frames = Frames::new(socket);
    loop {
        match frames.next() {
            Ok(Some(OutputFrame::Started { pid })) => {
                // A courtesy: a command that was asked for in this way runs on in any case.
                let _told: bool = sender.detach();
                return Ok(pid);
            }
            Ok(Some(OutputFrame::Failed(error))) => return Err(Failure::NotRun(Box::new(error))),
            Ok(Some(_)) => {}
            Ok(None) => {
                return Err(Failure::new(
                    ErrorKind::Lost,
                    "the guest closed the connection before the command started",
                ));
            }
            Err(error) => {
                return Err(Failure::io(ErrorKind::Lost, "nobody knows whether the command started", &error));
            }
        }
    }
}

fn receive(socket: UnixStream, credit: &stdin::Credit) -> Ending {
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let mut frames = Frames::new(socket);
    loop {
        let written = match frames.next() {
            Ok(Some(OutputFrame::Stdout(bytes))) => write_all(stdout.as_fd(), bytes),
            Ok(Some(OutputFrame::Stderr(bytes))) => write_all(stderr.as_fd(), bytes),
            Ok(Some(OutputFrame::StdinCredit(bytes))) => {
                credit.grant(bytes);
                Ok(())
            }
            Ok(Some(OutputFrame::StdinClosed)) => {
                credit.close();
                Ok(())
            }
            Ok(Some(OutputFrame::Started { .. })) => Ok(()),
            Ok(Some(OutputFrame::Exited(status))) => return Ending::Exited(status),
            Ok(Some(OutputFrame::Failed(error))) => return Ending::Failed(error),
            Ok(None) => return Ending::Lost("the guest closed the connection".to_owned()),
            Err(error) => return Ending::Lost(describe(&error)),
        };
        match written {
            Ok(()) => {}
            Err(Errno::EPIPE) => return Ending::BrokenPipe,
            Err(errno) => return Ending::Unwritable(errno),
        }
    }
}

fn describe(error: &FrameError) -> String {
    let sources = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Writes everything, also to a stream that another program has made non-blocking.
fn write_all(stream: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match nix::unistd::write(stream, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(stream, PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::NONE)
                    .or_else(|errno| if errno == Errno::EINTR { Ok(0) } else { Err(errno) })?;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

impl Ending {
    /// The exit code of a command's ending; `None` where there is more to say.
    pub(super) fn code(&self) -> Option<u8> {
        match self {
            Self::Exited(status) => Some(status.shell_code()),
            Self::Detached | Self::Abandoned => Some(super::failure::INTERRUPTED),
            // 128 + SIGTERM.
            Self::Terminated => Some(143),
            Self::BrokenPipe => Some(BROKEN_PIPE),
            // 128 + SIGHUP.
            Self::HungUp => Some(129),
            Self::Failed(_) | Self::Unwritable(_) | Self::Lost(_) => None,
        }
    }
}

/// The terminal that a command gets: the size of ours, or that of a VT100.
pub(super) fn size_or_default() -> TerminalSize {
    terminal_size().unwrap_or(TerminalSize { rows: 24, columns: 80 })
}
