//! The socket that a guest's dials arrive at: there with the right mode before anybody can connect, gone with its owner.

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// How many dials may wait. An agent has one at a time.
const BACKLOG: i32 = 8;

/// Says why the daemon cannot listen for an agent.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on `{}`", path.display())]
pub struct ListenError {
    path: PathBuf,
    source: io::Error,
}

/// A listening socket whose file goes with it.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: UnixListener,
    path: PathBuf,
    /// The file's device and number: a later link of this VM may have one of its own at the same path.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`, where only this user may connect. Removes what an earlier daemon left there.
    pub(super) fn bind(path: &Path) -> Result<Self, ListenError> {
        let socket = Self::open(path).map_err(|source| ListenError { path: path.to_owned(), source })?;
        Ok(Self { socket, path: path.to_owned(), file: file_at(path) })
    }

    fn open(path: &Path) -> io::Result<UnixListener> {
        // One daemon has this directory (it holds the daemon's lock), so that whatever lies here is an earlier one's.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(path)?)?;
        // Between bind and listen nobody can connect: the mode is right before it matters.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listen(&fd, Backlog::new(BACKLOG)?)?;
        UnixListener::from_std(fd.into())
    }
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.file.is_none() || file_at(&self.path) != self.file {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_takes_its_own_file_with_it_and_no_later_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let first = Listener::bind(&path).unwrap();
        let second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(tokio::net::UnixStream::connect(&path).await.is_ok(), "the second one listens on");
        drop(second);
        assert!(!path.exists());
    }
}
