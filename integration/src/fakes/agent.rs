//! The guest's side of an operation, played by the test on a socket pair.

use super::daemon::read_payload;
use messages::frame;
use messages::guest::{ExitStatus, OperationFrame, OutputFrame};
use messages::limits::{GUEST_FRAME_MAX, STDIN_WINDOW};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// A frame from the client that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Stdin(Vec<u8>),
    StdinEnd,
    Resize {
        rows: u16,
        columns: u16,
    },
    Signal(i32),
    Detach,
    /// The client closed the connection.
    End,
}

/// The guest's end of the connection.
#[derive(Debug)]
pub struct FakeAgent {
    stream: UnixStream,
}

impl FakeAgent {
    /// Runs `play` in a thread; returns the end that a daemon would hand over.
    ///
    /// # Panics
    /// Where there are no sockets left.
    pub fn play<T: Send + 'static>(play: impl FnOnce(Self) -> T + Send + 'static) -> (OwnedFd, JoinHandle<T>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || play(Self { stream: ours }));
        (theirs.into(), thread)
    }

    /// Says that the command runs, and grants the first window of stdin.
    pub fn started(&mut self) {
        self.say(&OutputFrame::Started { pid: 42 });
        self.say(&OutputFrame::StdinCredit(STDIN_WINDOW));
    }

    /// Sends a frame; a client that has gone hears nothing.
    ///
    /// # Panics
    /// Where the frame is too long.
    pub fn say(&mut self, frame: &OutputFrame<'_>) {
        self.try_say(frame).ok();
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// Where the client has gone.
    ///
    /// # Panics
    /// Where the frame is too long.
    pub fn try_say(&mut self, frame: &OutputFrame<'_>) -> io::Result<()> {
        self.stream.write_all(&frame::encode(frame, GUEST_FRAME_MAX).unwrap())
    }

    /// Sends bytes that need not be a frame.
    pub fn say_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).ok();
    }

    /// Ends the command.
    pub fn exit(mut self, code: i32) {
        self.say(&OutputFrame::Exited(ExitStatus::Code(code)));
    }

    /// Waits for the client's next frame.
    ///
    /// # Panics
    /// Where it is no frame.
    pub fn hear(&mut self) -> Heard {
        let Ok(payload) = read_payload(&mut self.stream) else { return Heard::End };
        match frame::decode_borrowed::<OperationFrame<'_>>(&payload).unwrap() {
            OperationFrame::Stdin(bytes) => Heard::Stdin(bytes.to_vec()),
            OperationFrame::StdinEnd => Heard::StdinEnd,
            OperationFrame::Resize(size) => Heard::Resize { rows: size.rows, columns: size.columns },
            OperationFrame::Signal(signal) => Heard::Signal(signal),
            OperationFrame::Detach => Heard::Detach,
            OperationFrame::Open { .. } => panic!("the daemon opens an operation, not the client"),
        }
    }

    /// Reads stdin to its end, granting what was read, and hands each chunk on. Other frames are returned.
    pub fn read_stdin(&mut self, mut take: impl FnMut(&mut Self, &[u8])) -> Vec<Heard> {
        let mut others = Vec::new();
        loop {
            match self.hear() {
                Heard::Stdin(bytes) => {
                    take(self, &bytes);
                    self.say(&OutputFrame::StdinCredit(u32::try_from(bytes.len()).unwrap()));
                }
                Heard::StdinEnd | Heard::End => return others,
                other => others.push(other),
            }
        }
    }
}
