//! The bytes of an archive operation, out of the frames that a guest's agent sends. The guest is hostile: lengths are bounded,
//! its silence is, and its words are cut.

use crate::artifacts::Cancel;
use link::frames::{FrameReader, ReadError};
use messages::error::{ErrorKind, WireError};
use messages::frame::{self, FrameError};
use messages::guest::{ExitStatus, OutputFrame};
use messages::limits::GUEST_FRAME_MAX;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::runtime::Handle;

/// How long a guest may send nothing: one with a slow disk reads a large directory in seconds. Frames without bytes are nothing.
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

impl From<ReadError> for CommitError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Frame(FrameError::Truncated) | ReadError::Io(_) | ReadError::NoHello => Self::Closed,
            ReadError::Frame(error) => Self::Nonsense(error),
        }
    }
}

/// The archive, as it comes. Read it on a thread that may block.
#[derive(Debug)]
pub struct ArchiveStream {
    frames: FrameReader<UnixStream>,
    runtime: Handle,
    cancel: Cancel,
    /// The bytes of the present frame, and how many of them have been read.
    bytes: Vec<u8>,
    read: usize,
    complaints: Vec<u8>,
    ended: bool,
}

impl ArchiveStream {
    /// Reads from the socket of an operation; `cancel` ends it. Within `runtime`, which does the waiting.
    ///
    /// # Errors
    /// When the socket cannot be set up.
    pub fn new(socket: OwnedFd, runtime: Handle, cancel: Cancel) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let socket = {
            let _within = runtime.enter();
            UnixStream::from_std(socket)?
        };
        let frames = FrameReader::new(socket, GUEST_FRAME_MAX);
        Ok(Self { frames, runtime, cancel, bytes: Vec::new(), read: 0, complaints: Vec::new(), ended: false })
    }

    /// The next bytes of the archive are there, or it has ended.
    async fn advance(&mut self) -> Result<(), CommitError> {
        while self.read == self.bytes.len() && !self.ended {
            let payload = self.frames.next().await?.ok_or(CommitError::Closed)?;
            match frame::decode_borrowed(payload).map_err(CommitError::Nonsense)? {
                OutputFrame::Stdout(bytes) => {
                    self.read = 0;
                    self.bytes.clear();
                    self.bytes.extend_from_slice(bytes);
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
        let (runtime, token) = (self.runtime.clone(), self.cancel.token());
        let advanced = runtime.block_on(async {
            tokio::select! {
                biased;
                () = token.cancelled() => Err(CommitError::Cancelled),
                advanced = tokio::time::timeout(SILENCE_MAX, self.advance()) => {
                    advanced.unwrap_or(Err(CommitError::Silent))
                }
            }
        });
        advanced.map_err(io::Error::other)?;
        let left = &self.bytes[self.read..];
        let count = buffer.len().min(left.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.read += count;
        Ok(count)
    }
}
