//! One daemon for each state directory: a lock that the kernel lets go of when its holder dies.

use super::host_error;
use actors::paths::Paths;
use messages::error::{ErrorKind, WireError};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};

/// Makes the state directory and takes its lock.
pub(super) fn take(paths: &Paths) -> Result<Flock<File>, WireError> {
    let state = &paths.state_dir;
    let unwritable = |error: &std::io::Error| {
        host_error(format!("the state directory `{}` cannot be written", state.display()), error)
            .hint("make it yours, or choose another with BANGER_STATE_DIR")
    };
    DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(|error| unwritable(&error))?;
    // It may have been made by somebody else's umask.
    std::fs::set_permissions(state, std::fs::Permissions::from_mode(0o700)).map_err(|error| unwritable(&error))?;
    let path = paths.lock();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| unwritable(&error))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let write = |lock: &mut Flock<File>| -> std::io::Result<()> {
                lock.set_len(0)?;
                lock.rewind()?;
                writeln!(lock, "{}", std::process::id())
            };
            // Only for the sentence below. On a full disk the daemon has to start, or nothing could be deleted.
            write(&mut lock).ok();
            Ok(lock)
        }
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let known = file.read_to_string(&mut pid).is_ok() && !pid.trim().is_empty();
            let who = if known { format!(" (process {})", pid.trim()) } else { String::new() };
            Err(WireError::new(
                ErrorKind::Conflict,
                format!("another bangerd{who} has the state directory `{}`", state.display()),
            )
            .hint("`banger daemon status` shows it, `banger daemon stop` ends it"))
        }
        Err((_, error)) => Err(host_error(format!("cannot lock `{}`", path.display()), &error)),
    }
}
