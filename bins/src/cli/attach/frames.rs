//! Reads an operation's frames from a blocking socket. A guest is hostile: lengths are bounded before anything is read for
//! them, and the buffer never grows.

use messages::frame::{self, HEADER_LEN};
use messages::guest::OutputFrame;
use messages::limits::GUEST_FRAME_MAX;
use std::io::{self, Read};

/// Room for two of the longest frames: one read can bring many short ones, or a long one and the start of the next.
const CAPACITY: usize = 2 * (GUEST_FRAME_MAX + HEADER_LEN);

/// Says why there is no next frame.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("the guest broke the protocol")]
    Frame(#[from] frame::FrameError),
    #[error("the connection to the guest broke")]
    Io(#[from] io::Error),
}

/// A buffered reader of frames.
#[derive(Debug)]
pub(super) struct Frames<R> {
    inner: R,
    buffer: Box<[u8]>,
    /// What has been read and not been handed out lies in `start..end`.
    start: usize,
    end: usize,
}

impl<R: Read> Frames<R> {
    /// A reader of `inner`.
    pub(super) fn new(inner: R) -> Self {
        Self { inner, buffer: vec![0; CAPACITY].into_boxed_slice(), start: 0, end: 0 }
    }

    /// The next frame, borrowed from the buffer; `None` where the stream ends between two.
    pub(super) fn next(&mut self) -> Result<Option<OutputFrame<'_>>, FrameError> {
        if !self.fill(HEADER_LEN)? {
            return if self.start == self.end { Ok(None) } else { Err(frame::FrameError::Truncated.into()) };
        }
        let header: [u8; HEADER_LEN] =
            self.buffer[self.start..self.start + HEADER_LEN].try_into().expect("the slice has the array's length");
        let length = frame::payload_length(header, GUEST_FRAME_MAX)?;
        if !self.fill(HEADER_LEN + length)? {
            return Err(frame::FrameError::Truncated.into());
        }
        let first = self.start + HEADER_LEN;
        self.start = first + length;
        Ok(Some(frame::decode_borrowed(&self.buffer[first..first + length])?))
    }

    /// Reads until `wanted` bytes are there; false where the stream ends before that.
    fn fill(&mut self, wanted: usize) -> io::Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start + wanted > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < wanted {
            match self.inner.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // How a socket says that it was closed by somebody who had not read everything: an end as any other.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset && self.start == self.end => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use messages::guest::ExitStatus;
    use proptest::prelude::*;

    /// Gives at most `step` bytes for each read.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(target.len()).min(self.0.len());
            target[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn encode(frame: &OutputFrame<'_>) -> Vec<u8> {
        frame::encode(frame, GUEST_FRAME_MAX).unwrap()
    }

    #[test]
    fn long_and_short_frames_come_back_whole_whatever_the_reads() {
        let payloads: Vec<Vec<u8>> = [0, 1, 100_000, 131_072, 3, 262_000, 262_000, 7]
            .iter()
            .map(|n| vec![u8::try_from(n % 251).unwrap(); *n])
            .collect();
        let mut wire: Vec<u8> = payloads.iter().flat_map(|payload| encode(&OutputFrame::Stdout(payload))).collect();
        wire.extend(encode(&OutputFrame::Exited(ExitStatus::Code(7))));
        for step in [1, 1000, 65_536, usize::MAX] {
            let mut frames = Frames::new(Slow(&wire, step));
            for payload in &payloads {
                assert!(matches!(frames.next().unwrap(), Some(OutputFrame::Stdout(bytes)) if bytes == &payload[..]));
            }
            assert!(matches!(frames.next().unwrap(), Some(OutputFrame::Exited(ExitStatus::Code(7)))));
            assert!(frames.next().unwrap().is_none());
        }
    }

    #[test]
    fn hostile_lengths_and_ends_are_errors() {
        let mut frames = Frames::new(&[0xff; 64][..]);
        assert!(matches!(frames.next(), Err(FrameError::Frame(frame::FrameError::TooLong { .. }))));
        let whole = encode(&OutputFrame::Stdout(b"hello"));
        let mut frames = Frames::new(&whole[..whole.len() - 1]);
        assert!(matches!(frames.next(), Err(FrameError::Frame(frame::FrameError::Truncated))));
        let mut frames = Frames::new(&whole[..2]);
        assert!(matches!(frames.next(), Err(FrameError::Frame(frame::FrameError::Truncated))));
    }

    #[test]
    fn whether_the_guest_had_read_everything_before_it_closed_does_not_matter() {
        for unread in [&b""[..], b"stdin that nobody took"] {
            let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            io::Write::write_all(&mut ours, unread).unwrap();
            drop(theirs);
            assert!(Frames::new(ours).next().unwrap().is_none(), "{} bytes", unread.len());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(wire in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut frames = Frames::new(&wire[..]);
            while let Ok(Some(_)) = frames.next() {}
        }
    }
}
