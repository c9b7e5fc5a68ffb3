//! The socket file: one helper per path, held by a lock, bound anew over what a dead one left.

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use messages::limits::SOCKET_PATH_MAX;

/// Why there is no socket to serve.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("the socket's path `{}` must be absolute, without `..`, and at most {SOCKET_PATH_MAX} bytes long", .0.display())]
    Path(PathBuf),
    #[error("another helper serves `{}`", .0.display())]
    Taken(PathBuf),
    #[error("the directory `{}` belongs to uid {}: it must be root's or the owner's, and writable by nobody else", .0.display(), .1)]
    Directory(PathBuf, u32),
    #[error("`{}` exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    #[error("cannot {} `{}`", .0, .1.display())]
    Io(&'static str, PathBuf, #[source] io::Error),
}

/// A bound socket and the lock that says it is ours. Both end with the process; the files stay for the next helper.
#[derive(Debug)]
pub(super) struct Bound {
    pub listener: UnixListener,
    pub lock: Flock<File>,
}

/// Binds the socket: directory 0755 where it has to be made, socket 0666, since the peer's uid is what is checked.
///
/// # Errors
/// [`SocketError`].
pub(super) fn bind(path: &Path, owner_uid: u32) -> Result<Bound, SocketError> {
    prepare_directory(path, owner_uid)?;
    let failed = |what| move |e: io::Error| SocketError::Io(what, path.to_owned(), e);
    let lock = lock(path)?;
    match fs::symlink_metadata(path) {
        Ok(stale) if stale.file_type().is_socket() => fs::remove_file(path).map_err(failed("remove the stale"))?,
        Ok(_) => return Err(SocketError::NotASocket(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed("look at")(e)),
    }
    let listener = UnixListener::bind(path).map_err(failed("bind"))?;
    fs::set_permissions(path, Permissions::from_mode(0o666)).map_err(failed("open to all"))?;
    listener.set_nonblocking(true).map_err(failed("prepare"))?;
    Ok(Bound { listener, lock })
}

/// Makes the socket's directory where it is missing, and refuses one that a false helper could be put into.
///
/// # Errors
/// [`SocketError`].
pub(super) fn prepare_directory(path: &Path, owner_uid: u32) -> Result<(), SocketError> {
    let directory = checked_directory(path)?;
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
    made.map_err(|e| SocketError::Io("make the directory of", path.to_owned(), e))?;
    refuse_foreign_directory(directory, owner_uid)
}

/// Tells whether a helper serves this path now. Only a look: whoever binds takes the lock for good.
///
/// # Errors
/// [`SocketError::Taken`].
pub(crate) fn refuse_taken(path: &Path) -> Result<(), SocketError> {
    lock(path).map(drop)
}

fn checked_directory(path: &Path) -> Result<&Path, SocketError> {
    let plain = path.components().all(|c| !matches!(c, std::path::Component::ParentDir));
    let fits = path.as_os_str().len() <= SOCKET_PATH_MAX;
    let parent = path.parent().filter(|_| path.is_absolute() && plain && fits && path.file_name().is_some());
    parent.ok_or_else(|| SocketError::Path(path.to_owned()))
}

/// Whoever can write to the directory can put a false helper in this one's place.
fn refuse_foreign_directory(directory: &Path, owner_uid: u32) -> Result<(), SocketError> {
    let found = fs::metadata(directory).map_err(|e| SocketError::Io("look at", directory.to_owned(), e))?;
    let ours = [0, owner_uid, nix::unistd::geteuid().as_raw()].contains(&found.uid());
    let (shared, sticky) = (found.mode() & 0o022 != 0, found.mode() & 0o1000 != 0);
    if ours && (!shared || sticky) { Ok(()) } else { Err(SocketError::Directory(directory.to_owned(), found.uid())) }
}

/// The lock is a file of its own: the socket's file is replaced by each helper, so a lock on it would prove nothing.
fn lock(path: &Path) -> Result<Flock<File>, SocketError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(Mode::S_IRUSR.union(Mode::S_IWUSR).bits())
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&lock_path)
        .map_err(|e| SocketError::Io("open", lock_path.clone(), e))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(SocketError::Taken(path.to_owned())),
        Err((_, e)) => Err(SocketError::Io("lock", lock_path, e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_helper_is_refused_and_a_stale_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.sock");
        refuse_taken(&path).unwrap();
        let first = bind(&path, 0).unwrap();
        assert!(matches!(refuse_taken(&path), Err(SocketError::Taken(_))));
        assert!(matches!(bind(&path, 0), Err(SocketError::Taken(_))));
        drop(first);
        assert!(path.exists(), "a helper leaves its socket");
        let second = bind(&path, 0).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
        drop(second);
    }

    #[test]
    fn nothing_but_a_socket_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path, 0), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_directory_that_others_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(bind(&directory.path().join("root.sock"), 0), Err(SocketError::Directory(..))));
    }

    #[test]
    fn paths_that_no_socket_can_have_are_refused() {
        for bad in ["root.sock", "/run/../etc/root.sock", "/", &format!("/{}", "x".repeat(107))] {
            assert!(matches!(bind(Path::new(bad), 0), Err(SocketError::Path(_))), "{bad}");
        }
    }
}
