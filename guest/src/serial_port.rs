//! banger-emu's virtio-serial port as a byte stream that has no end: a host that is away comes back. Knows no frames.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// While the host is away the port reads as ended at once, so it is looked at again after this.
const AWAY_PAUSE: Duration = Duration::from_millis(10);

/// The device of the port with this name, where there is one.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    find_in(Path::new("/sys/class/virtio-ports"), name)
}

fn find_in(class: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(class).ok()?.flatten().find_map(|entry| {
        let own = fs::read_to_string(entry.path().join("name")).ok()?;
        (own.trim() == name).then(|| Path::new("/dev").join(entry.file_name()))
    })
}

/// The size of the driver's buffers (`PAGE_SIZE` in drivers/char/virtio_console.c).
const PAGE: usize = 4096;
/// How much is read before the multiplexer gets its turn.
const BURST: usize = 64 << 10;

/// An open port.
#[derive(Debug)]
pub struct SerialPort {
    /// Absent only while it is watched anew.
    fd: Option<AsyncFd<OwnedFd>>,
    /// Runs while the host is away.
    away: Option<Pin<Box<Sleep>>>,
}

impl SerialPort {
    /// Opens a port; only one process can.
    ///
    /// # Errors
    /// It is open elsewhere, or not there.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file: File = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Ok(Self { fd: Some(crate::sys::watch(file.into())?), away: None })
    }

    /// Waits while the host is away. The port has then said EPOLLHUP, which tokio takes for the end and never forgets: it is watched
    /// anew, or it would count as ready for ever.
    fn poll_away(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(away) = &mut self.away {
            ready!(away.as_mut().poll(cx));
            self.away = None;
            let fd = self.fd.take().ok_or_else(closed)?;
            self.fd = Some(crate::sys::watch(fd.into_inner())?);
        }
        Poll::Ready(Ok(()))
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the port is no longer watched")
}

/// Reads until nothing is there or [`BURST`] has come: the driver hands out one page with each call. Only the part of the
/// buffer that is read into is touched, as the rest is large and may never be.
fn read_pages(fd: BorrowedFd<'_>, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
    let mut total = 0;
    while total < BURST && buffer.remaining() > 0 {
        let page = buffer.remaining().min(PAGE);
        match nix::unistd::read(fd, buffer.initialize_unfilled_to(page)) {
            Ok(0) => break,
            Ok(length) => {
                buffer.advance(length);
                total += length;
            }
            Err(_) if total > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(total)
}

impl AsyncRead for SerialPort {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_away(cx))?;
            let read = {
                let fd = self.fd.as_ref().ok_or_else(closed)?;
                let mut ready = ready!(fd.poll_read_ready(cx))?;
                ready.try_io(|fd| read_pages(fd.as_fd(), buffer))
            };
            match read {
                Ok(Ok(0)) => self.away = Some(Box::pin(tokio::time::sleep(AWAY_PAUSE))),
                Ok(Ok(_)) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for SerialPort {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let fd = self.fd.as_ref().ok_or_else(closed)?;
            let mut ready = ready!(fd.poll_write_ready(cx))?;
            if let Ok(result) = ready.try_io(|fd| Ok(nix::unistd::write(fd, bytes)?)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_its_name() {
        let class = tempfile::tempdir().unwrap();
        for (device, name) in [("vport0p1", "other"), ("vport1p3", "banger.0")] {
            fs::create_dir(class.path().join(device)).unwrap();
            fs::write(class.path().join(device).join("name"), format!("{name}\n")).unwrap();
        }
        assert_eq!(find_in(class.path(), "banger.0"), Some(PathBuf::from("/dev/vport1p3")));
        assert_eq!(find_in(class.path(), "none"), None);
        assert_eq!(find_in(Path::new("/no/such/class"), "none"), None);
    }
}
