//! The bytes of an archive operation, out of the frames that a guest's agent sends. The guest is hostile: lengths are bounded,
//! its silence is, and its words are cut.

use crate::artifacts::Cancel;
use messages::error::{ErrorKind, WireError};
use messages::frame::{self, FrameError, HEADER_LEN};
use messages::guest::{ExitStatus, OutputFrame};
use messages::limits::GUEST_FRAME_MAX;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How often a read looks whether anybody still waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a guest may send nothing: one with a slow disk reads a large directory in seconds.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How much of its complaints is kept, in bytes.
const COMPLAINTS_MAX: usize = 2048;

/// Why a guest's archive ended early.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    #[error("the guest could not read all of its files: {said}")]
    Failed { said: String },
    #[error("the guest's agent refused")]
    Refused(#[source] WireError),
    #[error("the guest sent nothing for {} s", SILENCE_MAX.as_secs())]
    Silent,
    #[error("the guest closed the connection before its archive ended")]
    Closed,
    #[error("the guest sent nonsense")]
    Nonsense(#[source] FrameError),
    #[error("cancelled")]
    Cancelled,
}

impl From<&CommitError> for WireError {
    fn from(error: &CommitError) -> Self {
        let kind = match error {
            CommitError::Failed { .. } | CommitError::Refused(_) => ErrorKind::Guest,
            CommitError::Silent => ErrorKind::Timeout,
            CommitError::Closed => ErrorKind::Lost,
            CommitError::Nonsense(_) => ErrorKind::Protocol,
            CommitError::Cancelled => ErrorKind::Cancelled,
        };
        Self::from_error(kind, error)
    }
}

/// The archive, as it comes.
#[derive(Debug)]
pub struct ArchiveStream {
    socket: UnixStream,
    cancel: Cancel,
    frame: Vec<u8>,
    /// What of the present frame's bytes has not been read.
    left: std::ops::Range<usize>,
    complaints: Vec<u8>,
    /// Since when bytes of the archive are waited for: frames without any are silence too.
    asked: Instant,
    ended: bool,
}

impl ArchiveStream {
    /// Reads from the socket of an operation; `cancel` ends it.
    ///
    /// # Errors
    /// When the socket cannot be set up.
    pub fn new(socket: OwnedFd, cancel: Cancel) -> io::Result<Self> {
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(LOOK_EVERY))?;
        Ok(Self {
            socket,
            cancel,
            frame: Vec::new(),
            left: 0..0,
            complaints: Vec::new(),
            asked: Instant::now(),
            ended: false,
        })
    }

    /// Fills the frame buffer up to `length`; false where the stream ends before its first byte.
    fn fill(&mut self, length: usize) -> Result<bool, CommitError> {
        self.frame.resize(length, 0);
        let mut filled = 0;
        while filled < length {
            match self.socket.read(&mut self.frame[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(CommitError::Closed),
                Ok(count) => filled += count,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    self.check()?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(CommitError::Closed),
            }
        }
        Ok(true)
    }

    /// Whether to go on.
    fn check(&self) -> Result<(), CommitError> {
        if self.cancel.is_cancelled() {
            return Err(CommitError::Cancelled);
        }
        if self.asked.elapsed() > SILENCE_MAX { Err(CommitError::Silent) } else { Ok(()) }
    }

    /// The next frame with bytes of the archive is in the buffer, or the archive has ended.
    fn advance(&mut self) -> Result<(), CommitError> {
        self.asked = Instant::now();
        if self.left.is_empty() {
            // The frame that it was a part of is overwritten.
            self.left = 0..0;
        }
        while self.left.is_empty() && !self.ended {
            self.check()?;
            if !self.fill(HEADER_LEN)? {
                return Err(CommitError::Closed);
            }
            let mut header = [0; HEADER_LEN];
            header.copy_from_slice(&self.frame);
            let length = frame::payload_length(header, GUEST_FRAME_MAX).map_err(CommitError::Nonsense)?;
            if length > 0 && !self.fill(length)? {
                return Err(CommitError::Closed);
            }
            let frame = &self.frame[..length];
            match frame::decode_borrowed(frame).map_err(CommitError::Nonsense)? {
                OutputFrame::Stdout(bytes) => {
                    // A borrowed payload is a part of the frame: its last bytes.
                    self.left = length - bytes.len()..length;
                }
                OutputFrame::Stderr(bytes) => {
                    let room = COMPLAINTS_MAX.saturating_sub(self.complaints.len());
                    self.complaints.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                OutputFrame::Exited(ExitStatus::Code(0)) => self.ended = true,
                OutputFrame::Exited(_) => return Err(CommitError::Failed { said: self.said() }),
                OutputFrame::Failed(error) => return Err(CommitError::Refused(error)),
                OutputFrame::Started { .. } | OutputFrame::StdinCredit(_) | OutputFrame::StdinClosed => {}
            }
        }
        Ok(())
    }

    /// The last line of what it complained about, without what would disturb a terminal.
    fn said(&self) -> String {
        let text = String::from_utf8_lossy(&self.complaints);
        let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it did not say why");
        line.trim_start_matches("banger-agent: ").chars().filter(|char| !char.is_control()).collect()
    }
}

impl Read for ArchiveStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.advance().map_err(io::Error::other)?;
        let count = buffer.len().min(self.left.len());
        let start = self.left.start;
        buffer[..count].copy_from_slice(&self.frame[start..start + count]);
        self.left.start += count;
        Ok(count)
    }
}
