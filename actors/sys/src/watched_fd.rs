//! A descriptor of our own in tokio's event loop: tokio's own registration is unsafe, because it is told a number.
#![expect(
    unsafe_code,
    reason = "AsyncFd::register trusts its caller that the descriptor stays open and stays the same"
)]

use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// A watched descriptor. Shared access only: nobody can swap the descriptor inside.
#[derive(Debug)]
pub struct WatchedFd(AsyncFd<OwnedFd>);

impl WatchedFd {
    /// Watches the descriptor in the present runtime, for reading and writing.
    ///
    /// # Errors
    /// What epoll says: `EPERM` for a plain file, `ENOMEM`, `ENOSPC`.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` gives the same open descriptor for as long as it lives. It lives in the `AsyncFd`, which this
        // type never gives out mutably or by value, so it can be neither closed nor replaced before it is deregistered.
        Ok(Self(unsafe { AsyncFd::register(fd) }?))
    }
}

impl Deref for WatchedFd {
    type Target = AsyncFd<OwnedFd>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
