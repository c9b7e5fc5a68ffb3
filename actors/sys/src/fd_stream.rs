//! A Unix stream that carries file descriptors beside its bytes. Owns `sendmsg`/`recvmsg` with `SCM_RIGHTS`; knows nothing
//! of frames, which are read and written over it like over any other stream.
//!
//! Tokio's own reads would drop descriptors silently, so a socket on which they may arrive is wrapped for its whole life.
#![expect(unsafe_code, reason = "recvmsg and its control messages: nix leaks the descriptors of a truncated message")]

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;

/// How many descriptors may wait in either direction. A reply carries one at most; more is a peer that misbehaves.
pub const QUEUE_MAX: usize = 16;

/// What the kernel lets one message carry (`SCM_MAX_FD`, include/net/scm.h). Room for all of them, so that a truncated
/// message can only mean that this process is out of descriptors.
const MESSAGE_MAX: usize = 253;

// `CMSG_SPACE(MESSAGE_MAX * size_of::<RawFd>())` is 1032 on x86-64; u64 for the alignment of `cmsghdr`.
const CONTROL_WORDS: usize = 160;

/// A Unix stream whose reads collect the descriptors that arrive, and whose writes take queued ones along.
#[derive(Debug)]
pub struct FdStream {
    stream: UnixStream,
    /// Whether descriptors are taken in.
    receives: bool,
    received: VecDeque<OwnedFd>,
    to_send: Vec<OwnedFd>,
}

impl FdStream {
    /// Wraps a connected socket.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, receives: true, received: VecDeque::new(), to_send: Vec::new() }
    }

    /// Wraps a connected socket whose peer has no descriptors to send. The kernel closes what comes all the same: it never counts
    /// against what this process may open.
    #[must_use]
    pub fn send_only(stream: UnixStream) -> Self {
        Self { receives: false, ..Self::new(stream) }
    }

    /// Sends `fd` with the first byte of the next write. It is closed here once the kernel has taken it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] where [`QUEUE_MAX`] descriptors wait already.
    pub fn queue_fd(&mut self, fd: OwnedFd) -> io::Result<()> {
        if self.to_send.len() >= QUEUE_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many file descriptors wait to be sent"));
        }
        self.to_send.push(fd);
        Ok(())
    }

    /// The oldest descriptor received and not taken yet.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.received.pop_front()
    }

    /// How many received descriptors wait.
    #[must_use]
    pub fn received(&self) -> usize {
        self.received.len()
    }

    /// Who is at the other end (`SO_PEERCRED`).
    ///
    /// # Errors
    /// What `getsockopt` says.
    pub fn peer_cred(&self) -> io::Result<tokio::net::unix::UCred> {
        self.stream.peer_cred()
    }

    /// The socket, for options and readiness. Reading from it would lose descriptors.
    #[must_use]
    pub fn get_ref(&self) -> &UnixStream {
        &self.stream
    }
}

impl AsFd for FdStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for FdStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            ready!(this.stream.poll_read_ready(cx))?;
            let Self { stream, receives, received, .. } = this;
            let target = buf.initialize_unfilled();
            // A read without room for control messages has the kernel close them.
            let read = if *receives {
                stream.try_io(Interest::READABLE, || receive(stream.as_fd(), target, received))
            } else {
                stream.try_read(target)
            };
            match read {
                Ok(count) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // Descriptors ride on a byte: with none to write they stay queued.
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            ready!(this.stream.poll_write_ready(cx))?;
            let Self { stream, to_send, .. } = this;
            match stream.try_io(Interest::WRITABLE, || send(stream.as_fd(), bytes, to_send)) {
                Ok(count) => {
                    // The kernel holds its own references now.
                    this.to_send.clear();
                    return Poll::Ready(Ok(count));
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?)
}

/// Reads into `target` and owns every descriptor that came along before it looks for errors, so that none can leak.
fn receive(socket: BorrowedFd<'_>, target: &mut [u8], received: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut control = [MaybeUninit::<u64>::uninit(); CONTROL_WORDS];
    let mut iov = libc::iovec { iov_base: target.as_mut_ptr().cast(), iov_len: target.len() };
    // SAFETY: msghdr is a plain C struct of integers and pointers, for which all zeroes is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);

    // SAFETY: `header` points to one iovec over `target` and to `control`, with their true lengths; all three outlive the
    // call, and nothing else refers to them during it.
    let count =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;

    let mut arrived = Vec::new();
    // SAFETY: after a successful recvmsg the kernel has set msg_controllen to the control bytes that it wrote, so the
    // CMSG_ macros stay inside `control`; each SCM_RIGHTS message holds (cmsg_len - CMSG_LEN(0)) / 4 descriptors that were
    // made for this process by this call, each seen once here: nothing else owns or closes them.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(head) = message.as_ref() {
            if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
                let bytes = head.cmsg_len - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(message).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    arrived.push(OwnedFd::from_raw_fd(first.add(index).read_unaligned()));
                }
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }

    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::other("file descriptors were lost: this process may not open any more"));
    }
    if received.len() + arrived.len() > QUEUE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the peer sent too many file descriptors"));
    }
    received.extend(arrived);
    Ok(count)
}

const _: () = assert!(MESSAGE_MAX * size_of::<RawFd>() + 2 * size_of::<libc::cmsghdr>() <= CONTROL_WORDS * 8);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> (FdStream, FdStream) {
        let (a, b) = UnixStream::pair().unwrap();
        (FdStream::new(a), FdStream::new(b))
    }

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    /// A file that holds its own number, so that a swapped descriptor is seen.
    fn numbered(number: u32) -> OwnedFd {
        use std::io::{Seek, Write};
        let fd = nix::sys::memfd::memfd_create(c"numbered", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let mut file = std::fs::File::from(fd);
        file.write_all(&number.to_le_bytes()).unwrap();
        file.rewind().unwrap();
        file.into()
    }

    fn number_of(fd: OwnedFd) -> u32 {
        use std::io::Read;
        let mut bytes = [0; 4];
        std::fs::File::from(fd).read_exact(&mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    #[tokio::test]
    async fn who_wants_no_descriptors_has_none_opened() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (FdStream::new(ours), FdStream::send_only(theirs));
        let mut pipe = nix::unistd::pipe().map(|(read, write)| (std::fs::File::from(read), Some(write))).unwrap();
        a.queue_fd(pipe.1.take().unwrap()).unwrap();
        a.write_all(b"x").await.unwrap();
        let mut byte = [0; 1];
        b.read_exact(&mut byte).await.unwrap();
        assert_eq!((byte, b.received()), (*b"x", 0));
        // Nobody has the pipe's other end any more.
        assert_eq!(std::io::Read::read(&mut pipe.0, &mut byte).unwrap(), 0);
    }

    #[tokio::test]
    async fn a_descriptor_arrives_with_its_byte_and_closes_on_exec() {
        let (mut a, mut b) = pair();
        let sent = null();
        let inode = std::fs::File::from(sent.try_clone().unwrap()).metadata().unwrap().ino();
        a.queue_fd(sent).unwrap();
        a.write_all(b"x").await.unwrap();
        let mut byte = [0; 1];
        b.read_exact(&mut byte).await.unwrap();
        let fd = b.take_fd().expect("the descriptor came along");
        let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        assert_eq!(std::fs::File::from(fd).metadata().unwrap().ino(), inode);
        assert!(b.take_fd().is_none());
    }

    #[tokio::test]
    async fn many_frames_keep_their_own_descriptors() {
        const FRAMES: u32 = 3000;
        let (mut a, mut b) = pair();
        let writer = tokio::spawn(async move {
            for frame in 0..FRAMES {
                // 0, 1 or 2 descriptors, and sizes that do not line up with any buffer.
                let count = frame % 3;
                for nth in 0..count {
                    a.queue_fd(numbered(frame * 10 + nth)).unwrap();
                }
                let length = frame % 777 + 1;
                let mut bytes = length.to_le_bytes().to_vec();
                bytes.push(u8::try_from(count).unwrap());
                bytes.resize(5 + length as usize, 7);
                a.write_all(&bytes).await.unwrap();
            }
        });
        for frame in 0..FRAMES {
            let mut head = [0; 5];
            b.read_exact(&mut head).await.unwrap();
            let length = u32::from_le_bytes(head[..4].try_into().unwrap());
            let mut body = vec![0; length as usize];
            b.read_exact(&mut body).await.unwrap();
            assert_eq!(u32::from(head[4]), frame % 3);
            for nth in 0..frame % 3 {
                assert_eq!(number_of(b.take_fd().unwrap()), frame * 10 + nth);
            }
            assert_eq!(b.received(), 0);
        }
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn a_hostile_count_is_an_error_and_leaks_nothing() {
        let (a, mut b) = pair();
        // 250 in one message: the kernel takes it, the queue does not. The originals and the copies have the same inode.
        let original = numbered(1);
        let inode = std::fs::File::from(original.try_clone().unwrap()).metadata().unwrap().ino();
        let many: Vec<OwnedFd> = (0..250).map(|_| original.try_clone().unwrap()).collect();
        assert_eq!(send(a.as_fd(), b"x", &many).unwrap(), 1);
        drop(many);
        let error = b.read_u8().await.expect_err("more than the queue holds");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(b.received(), 0);
        let open = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::metadata(entry.ok()?.path()).ok())
            .filter(|metadata| metadata.ino() == inode)
            .count();
        assert_eq!(open, 1, "only the original is still open");
    }

    #[tokio::test]
    async fn descriptors_nobody_takes_are_bounded_across_reads() {
        let (mut a, mut b) = pair();
        for _ in 0..=QUEUE_MAX {
            a.queue_fd(null()).unwrap();
            a.write_all(b"x").await.unwrap();
        }
        let mut bytes = [0; QUEUE_MAX + 1];
        let error = b.read_exact(&mut bytes).await.expect_err("one over the bound");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_sending_queue_is_bounded() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _guard = runtime.enter();
        let (mut a, _b) = pair();
        for _ in 0..QUEUE_MAX {
            a.queue_fd(null()).unwrap();
        }
        assert!(a.queue_fd(null()).is_err());
    }

    #[tokio::test]
    async fn a_large_write_sends_its_descriptor_once() {
        let (mut a, mut b) = pair();
        a.queue_fd(null()).unwrap();
        let writer = tokio::spawn(async move { a.write_all(&vec![1; 4 << 20]).await.unwrap() });
        let mut all = Vec::new();
        b.read_to_end(&mut all).await.unwrap();
        writer.await.unwrap();
        assert_eq!(all.len(), 4 << 20);
        assert_eq!(b.received(), 1);
    }
}
