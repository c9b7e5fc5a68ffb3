//! What the client sends to a running command: stdin within its credit, resizes, signals, its leave. Writes no frame; the
//! output side sends the credit that is collected here.

use super::fd::StreamFd;
use super::registry::Target;
use link::frames::{FrameReader, ReadError};
use messages::frame;
use messages::guest::OperationFrame;
use messages::limits::STDIN_WINDOW;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio::sync::Notify;

/// Credit is given back in lumps of this size: a quarter of the window, so that a client that fills it never starves.
const CREDIT_LUMP: u32 = STDIN_WINDOW / 4;
/// What ends input on a terminal (VEOF of termios(3)).
const TERMINAL_END: u8 = 4;

/// What the input side has for the output side to tell the client.
#[derive(Debug, Default)]
pub struct Feedback {
    credit: AtomicU32,
    closed: AtomicBool,
    changed: Notify,
}

impl Feedback {
    fn grant(&self, bytes: u32) {
        self.credit.fetch_add(bytes, Ordering::Relaxed);
        self.changed.notify_one();
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// Waits for something to tell: new credit (may be 0), and whether stdin was closed by the command.
    pub async fn next(&self) -> (u32, bool) {
        self.changed.notified().await;
        (self.credit.swap(0, Ordering::Relaxed), self.closed.swap(false, Ordering::Relaxed))
    }
}

/// Why nothing more comes from the client.
#[derive(Debug)]
pub enum InputEnd {
    /// The stream ended without a word.
    Disconnected,
    /// It left on purpose.
    Detached,
    /// It broke the protocol: its stream is closed, and it counts as vanished.
    Broken(InputError),
}

/// Says how the client broke the protocol.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the client sent {sent} bytes of stdin with a credit of {credit}")]
    OverCredit { sent: usize, credit: u32 },
    #[error("a second command was opened on one stream")]
    SecondOpen,
}

/// A command's stdin, with what it has not taken yet: never more than [`STDIN_WINDOW`].
#[derive(Debug)]
pub struct Stdin {
    fd: Option<StreamFd>,
    terminal: bool,
    waiting: VecDeque<u8>,
    /// What the client may still send.
    credit: u32,
    /// Taken by the command and not given back as credit yet.
    taken: u32,
    ended: bool,
    /// The last byte that came is no end of a line.
    in_line: bool,
}

impl Stdin {
    /// The stdin behind `fd`; `None` drops all that comes.
    #[must_use]
    pub fn new(fd: Option<StreamFd>, terminal: bool) -> Self {
        let credit = if fd.is_some() { STDIN_WINDOW } else { 0 };
        Self { fd, terminal, waiting: VecDeque::new(), credit, taken: 0, ended: false, in_line: false }
    }

    /// The first grant.
    #[must_use]
    pub fn credit(&self) -> u32 {
        self.credit
    }

    fn accept(&mut self, bytes: &[u8], feedback: &Feedback) -> Result<(), InputError> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let over = InputError::OverCredit { sent: bytes.len(), credit: self.credit };
        self.credit = self.credit.checked_sub(length).ok_or(over)?;
        if self.ended {
            return Ok(());
        }
        self.in_line = bytes.last().map_or(self.in_line, |last| *last != b'\n');
        let mut rest = bytes;
        // The usual case: nothing waits and the pipe has room, so the bytes go straight from the frame to the pipe.
        while let (Some(fd), true, false) = (&self.fd, self.waiting.is_empty(), rest.is_empty()) {
            match fd.write_now(rest) {
                Ok(written) => {
                    rest = &rest[written..];
                    self.took(written, feedback);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.close(feedback),
            }
        }
        if self.fd.is_some() {
            self.waiting.extend(rest);
        } else {
            self.took(rest.len(), feedback);
        }
        Ok(())
    }

    fn took(&mut self, bytes: usize, feedback: &Feedback) {
        self.taken += u32::try_from(bytes).expect("at most the window is on its way");
        if self.taken >= CREDIT_LUMP {
            self.credit += self.taken;
            feedback.grant(std::mem::take(&mut self.taken));
        }
    }

    fn close(&mut self, feedback: &Feedback) {
        self.fd = None;
        let dropped = self.waiting.len();
        self.waiting = VecDeque::new();
        self.took(dropped, feedback);
        feedback.close();
    }

    fn end(&mut self) {
        self.ended = true;
        if self.fd.is_none() {
            return;
        }
        if self.terminal {
            // After an unfinished line the first one only hands the line on.
            self.waiting.extend(std::iter::repeat_n(TERMINAL_END, if self.in_line { 2 } else { 1 }));
        } else if self.waiting.is_empty() {
            self.fd = None;
        }
    }

    /// Hands on what waits, as far as the command takes it. Cancel-safe.
    async fn flush(&mut self, feedback: &Feedback) {
        let (Some(fd), (front, _)) = (&mut self.fd, self.waiting.as_slices()) else { return };
        match fd.write(front).await {
            Ok(written) => {
                self.waiting.drain(..written);
                self.took(written, feedback);
                if self.waiting.is_empty() {
                    // A queue that was needed once is not kept for ever.
                    self.waiting = VecDeque::new();
                    if self.ended && !self.terminal {
                        self.fd = None;
                    }
                }
            }
            Err(_) => self.close(feedback),
        }
    }
}

/// Serves the client's frames until it leaves.
pub async fn run<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    stdin: &mut Stdin,
    target: &Target,
    feedback: &Feedback,
) -> InputEnd {
    loop {
        let read = tokio::select! {
            read = frames.next() => read,
            () = stdin.flush(feedback), if !stdin.waiting.is_empty() => continue,
        };
        let payload = match read {
            Ok(Some(payload)) => payload,
            Ok(None) | Err(ReadError::Io(_)) => return InputEnd::Disconnected,
            Err(error) => return InputEnd::Broken(error.into()),
        };
        match frame::decode_borrowed(payload) {
            Ok(OperationFrame::Stdin(bytes)) => {
                if let Err(error) = stdin.accept(bytes, feedback) {
                    return InputEnd::Broken(error);
                }
            }
            Ok(OperationFrame::StdinEnd) => stdin.end(),
            Ok(OperationFrame::Resize(size)) => target.resize(size),
            Ok(OperationFrame::Signal(signal)) => target.signal(signal),
            Ok(OperationFrame::Detach) => return InputEnd::Detached,
            Ok(OperationFrame::Open { .. }) => return InputEnd::Broken(InputError::SecondOpen),
            Err(error) => return InputEnd::Broken(InputError::Read(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn pipe() -> (StreamFd, StreamFd) {
        let (reader, writer): (OwnedFd, OwnedFd) = nix::unistd::pipe().unwrap();
        (StreamFd::new(reader).unwrap(), StreamFd::new(writer).unwrap())
    }

    #[tokio::test]
    async fn more_than_the_credit_is_refused_and_less_is_kept() {
        let (_reader, writer) = pipe();
        let feedback = Feedback::default();
        let mut stdin = Stdin::new(Some(writer), false);
        let chunk = vec![7; 64 << 10];
        for _ in 0..STDIN_WINDOW / (64 << 10) {
            stdin.accept(&chunk, &feedback).unwrap();
        }
        assert!(stdin.waiting.len() < usize::try_from(STDIN_WINDOW).unwrap(), "some of it went into the pipe");
        assert!(matches!(stdin.accept(&chunk, &feedback), Err(InputError::OverCredit { .. })));
    }

    #[tokio::test]
    async fn a_command_that_closed_its_stdin_gives_all_credit_back() {
        let (reader, writer) = pipe();
        drop(reader);
        let feedback = Feedback::default();
        let mut stdin = Stdin::new(Some(writer), false);
        stdin.accept(&vec![0; 128 << 10], &feedback).unwrap();
        stdin.accept(&vec![0; 128 << 10], &feedback).unwrap();
        assert_eq!(feedback.next().await, (256 << 10, true));
    }

    #[tokio::test]
    async fn the_end_waits_for_what_was_sent_before_it() {
        let (reader, writer) = pipe();
        let feedback = Feedback::default();
        let mut stdin = Stdin::new(Some(writer), false);
        stdin.accept(&vec![1; 100 << 10], &feedback).unwrap();
        stdin.end();
        assert!(stdin.fd.is_some());
        let mut buffer = vec![0; 128 << 10];
        let mut total = reader.read_now(&mut buffer).unwrap();
        while stdin.fd.is_some() {
            stdin.flush(&feedback).await;
            total += reader.read_now(&mut buffer).unwrap();
        }
        assert_eq!(total, 100 << 10);
    }
}
