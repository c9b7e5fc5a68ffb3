//! The one writer of an operation's socket: whole frames only, from whichever thread.

use super::Ending;
use messages::frame::{self, HEADER_LEN};
use messages::guest::{OperationFrame, TerminalSize};
use messages::limits::GUEST_FRAME_MAX;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// How long to wait for a writer that is in the middle of a frame when the user wants to leave.
const LEAVE_DEADLINE: Duration = Duration::from_millis(300);
/// In front of a chunk of stdin: header, variant, and a length of up to three bytes.
pub(super) const CHUNK_HEAD: usize = HEADER_LEN + 1 + 3;

/// Why we left before the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// With a second Ctrl-C: the command is to run on.
    Detached,
    /// With a second SIGTERM: the command ends with the connection.
    Terminated,
    /// Some time after our terminal went away: the same.
    HungUp,
}

/// The writing half.
#[derive(Debug)]
pub(super) struct Sender {
    socket: Mutex<UnixStream>,
    /// A second handle, to close the socket while another thread is stuck in a write.
    closer: Option<UnixStream>,
    /// Why we left, and whether the guest could be told.
    left: Mutex<Option<(Leave, bool)>>,
    /// How long the guest may take to close its side once it has been told.
    grace: Duration,
}

impl Sender {
    /// The writing half of `socket`.
    pub(super) fn new(socket: UnixStream) -> Self {
        let closer = socket.try_clone().ok();
        Self { socket: Mutex::new(socket), closer, left: Mutex::new(None), grace: LEAVE_DEADLINE }
    }

    /// Sends a frame. False where the guest is gone, which the reader finds out for itself.
    pub(super) fn send(&self, frame: &OperationFrame<'_>) -> bool {
        frame::encode(frame, GUEST_FRAME_MAX).is_ok_and(|bytes| self.lock().write_all(&bytes).is_ok())
    }

    /// Sends a chunk of stdin that lies in `buffer[CHUNK_HEAD..][..length]`, with its head written right in front of it.
    pub(super) fn send_chunk(&self, buffer: &mut [u8], length: usize) -> bool {
        let start = chunk_head(buffer, length);
        self.lock().write_all(&buffer[start..CHUNK_HEAD + length]).is_ok()
    }

    /// Tells the guest of another size.
    pub(super) fn resize(&self, size: TerminalSize) -> bool {
        self.send(&OperationFrame::Resize(size))
    }

    /// Leaves on purpose: the command runs on. False where the guest could not be told, and ends it when it learns.
    pub(super) fn detach(&self) -> bool {
        let began = Instant::now();
        loop {
            match self.socket.try_lock() {
                Ok(mut socket) => {
                    let frame = frame::encode(&OperationFrame::Detach, GUEST_FRAME_MAX).unwrap_or_default();
                    socket.set_write_timeout(Some(LEAVE_DEADLINE)).ok();
                    return socket.write_all(&frame).is_ok();
                }
                Err(TryLockError::Poisoned(_)) => return false,
                Err(TryLockError::WouldBlock) if began.elapsed() > LEAVE_DEADLINE => return false,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Ends the conversation from our side; the reader then asks [`Sender::left`] why.
    pub(super) fn leave(&self, why: Leave) {
        let told = {
            // Held meanwhile: a reader that learns of the end is told no reason before there is one.
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            let told = why == Leave::Detached && self.detach();
            *left = Some((why, told));
            told
        };
        if let Some(closer) = &self.closer {
            if told {
                // Closed at once, what the command writes just now would break the connection before that word is through.
                // The reader goes on until the guest closes, or until this has taken too long.
                closer.shutdown(Shutdown::Write).ok();
                wait_for_hangup(closer, self.grace);
            }
            closer.shutdown(Shutdown::Both).ok();
        }
    }

    /// Why the conversation was ended from our side, if it was.
    pub(super) fn left(&self) -> Option<Ending> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).map(|left| match left {
            (Leave::Detached, true) => Ending::Detached,
            (Leave::Detached, false) => Ending::Abandoned,
            (Leave::Terminated, _) => Ending::Terminated,
            (Leave::HungUp, _) => Ending::HungUp,
        })
    }

    fn lock(&self) -> MutexGuard<'_, UnixStream> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until both directions are closed.
fn wait_for_hangup(socket: &UnixStream, most: Duration) {
    let began = Instant::now();
    // Asks for nothing: a hang-up is told in any case.
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    while let Some(left) = most.checked_sub(began.elapsed()) {
        if poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) != Err(Errno::EINTR) {
            return;
        }
    }
}

/// Writes the head of a stdin frame so that it ends at [`CHUNK_HEAD`]; returns where it begins.
fn chunk_head(buffer: &mut [u8], length: usize) -> usize {
    // postcard: the variant's index (Stdin is 1), then the length as LEB128.
    let mut head = [1, 0, 0, 0];
    let mut used = 1;
    let mut rest = length;
    loop {
        let low = u8::try_from(rest & 0x7f).expect("seven bits");
        rest >>= 7;
        head[used] = if rest == 0 { low } else { low | 0x80 };
        used += 1;
        if rest == 0 {
            break;
        }
    }
    let start = CHUNK_HEAD - HEADER_LEN - used;
    let payload = u32::try_from(used + length).expect("a chunk is at most STREAM_CHUNK_MAX");
    buffer[start..start + HEADER_LEN].copy_from_slice(&payload.to_le_bytes());
    buffer[start + HEADER_LEN..CHUNK_HEAD].copy_from_slice(&head[..used]);
    start
}

#[cfg(test)]
mod tests {
    use super::*;
    use messages::limits::STREAM_CHUNK_MAX;
    use std::io::Read as _;

    #[test]
    fn who_detaches_listens_until_the_guest_has_closed() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut sender = Sender::new(ours);
        sender.grace = Duration::from_secs(600);
        std::thread::scope(|scope| {
            scope.spawn(|| sender.leave(Leave::Detached));
            let mut heard = Vec::new();
            theirs.read_to_end(&mut heard).unwrap();
            assert_eq!(heard, frame::encode(&OperationFrame::Detach, GUEST_FRAME_MAX).unwrap());
            // A relay that could not write this would have no reason to bring what was said before.
            theirs.write_all(b"what the command says meanwhile").unwrap();
            drop(theirs);
        });
        assert!(matches!(sender.left(), Some(Ending::Detached)));
    }

    #[test]
    fn a_guest_that_could_not_be_told_is_not_said_to_be() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sender = Sender::new(ours);
        let stuck = sender.lock();
        sender.leave(Leave::Detached);
        drop((stuck, theirs));
        assert!(matches!(sender.left(), Some(Ending::Abandoned)));
    }

    #[test]
    fn a_chunk_written_in_place_is_the_frame_that_postcard_makes() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 65_536, STREAM_CHUNK_MAX] {
            let mut buffer = vec![7; CHUNK_HEAD + length];
            let start = chunk_head(&mut buffer, length);
            let expected = frame::encode(&OperationFrame::Stdin(&vec![7; length]), GUEST_FRAME_MAX).unwrap();
            assert!(buffer[start..] == expected[..], "{length}");
        }
    }
}
