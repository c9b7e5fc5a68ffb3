//! Whose daemon this is. Root never runs VMs: it becomes the owner first, for good.

use super::host_error;
use actors::paths::Paths;
use messages::error::{ErrorKind, WireError};
use nix::unistd::{Gid, Uid, User, initgroups, setresgid, setresuid};
use std::ffi::CString;
use std::path::PathBuf;

/// The paths of the owner, who this process is from now on.
pub(super) fn become_owner(owner: Option<&str>) -> Result<Paths, WireError> {
    let usage = |text: String| WireError::new(ErrorKind::Usage, text);
    let own = Uid::effective();
    let user = match owner {
        None if own.is_root() => {
            return Err(usage("root does not run bangerd for itself: name a user with --owner".to_owned())
                .hint("`bangerd --owner USER`, or run `banger` as that user"));
        }
        None => return Paths::from_env().map_err(|error| WireError::from_error(ErrorKind::Usage, &error)),
        Some(name) => User::from_name(name)
            .map_err(|error| host_error(format!("cannot look up the user `{name}`"), &error))?
            .ok_or_else(|| usage(format!("there is no user `{name}`")))?,
    };
    if user.uid == own {
        if own.is_root() {
            return Err(usage("--owner must not be root: VMs are an ordinary user's".to_owned()));
        }
        return Paths::from_env().map_err(|error| WireError::from_error(ErrorKind::Usage, &error));
    }
    if !own.is_root() {
        return Err(usage(format!("only root can become `{}`: run bangerd as that user", user.name)));
    }
    if user.uid.is_root() {
        return Err(usage("--owner must not be root: VMs are an ordinary user's".to_owned()));
    }
    drop_to(&user)?;
    // Root's own HOME and XDG directories are not the owner's; banger's variables are meant for this daemon.
    Paths::resolve(user.uid.as_raw(), |name| match name {
        "HOME" => Some(user.dir.clone()),
        name if name.starts_with("XDG_") => None,
        name => std::env::var_os(name).map(PathBuf::from),
    })
    .map_err(|error| WireError::from_error(ErrorKind::Usage, &error))
}

/// Groups first: without root they cannot be changed any more.
fn drop_to(user: &User) -> Result<(), WireError> {
    let failed = |what: &str, error: nix::Error| host_error(format!("cannot become `{}`: {what}", user.name), &error);
    let name = CString::new(user.name.as_str())
        .map_err(|error| host_error(format!("cannot become `{}`", user.name), &error))?;
    initgroups(&name, user.gid).map_err(|error| failed("its groups", error))?;
    setresgid(user.gid, user.gid, user.gid).map_err(|error| failed("its group", error))?;
    setresuid(user.uid, user.uid, user.uid).map_err(|error| failed("its uid", error))?;
    if Uid::effective() != user.uid
        || Gid::effective() != user.gid
        || setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok()
    {
        return Err(WireError::new(ErrorKind::Internal, format!("did not quite become `{}`", user.name)));
    }
    Ok(())
}
