//! Pipes and terminals as asynchronous byte streams. Knows nothing of commands.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The agent's end of a pipe, or the master of a pseudo-terminal.
#[derive(Debug)]
pub struct StreamFd(AsyncFd<OwnedFd>);

impl StreamFd {
    /// Takes over a descriptor and makes it non-blocking.
    ///
    /// # Errors
    /// It cannot be polled.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        crate::sys::set_nonblocking(&fd)?;
        Ok(Self(crate::sys::watch(fd)?))
    }

    /// Writes what fits now, without waiting: `WouldBlock` where nothing does.
    ///
    /// # Errors
    /// As write(2).
    pub fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(&self.0, bytes)?)
    }

    /// Reads what is there now, without waiting: `WouldBlock` where nothing is, 0 at the end.
    ///
    /// # Errors
    /// As read(2).
    pub fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match nix::unistd::read(&self.0, buffer) {
            // A terminal whose other end was closed by all (pty(7)): its end of file.
            Err(nix::Error::EIO) => Ok(0),
            other => Ok(other?),
        }
    }
}

impl AsFd for StreamFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl AsyncRead for StreamFd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let unfilled = buffer.initialize_unfilled();
            if let Ok(result) = ready.try_io(|_| self.read_now(unfilled)) {
                buffer.advance(result?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for StreamFd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = ready.try_io(|_| self.write_now(bytes)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
