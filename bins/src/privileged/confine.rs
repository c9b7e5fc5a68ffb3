//! Gives up what root has: leaves one capability and one in reserve, another uid, and no way back.
//!
//! Must run before a second thread exists: uids and capabilities belong to threads. `docs/threat-model.md` has the reasons.

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use std::io;

/// What the helper becomes. It is in the range that systemd's table of uids calls unused (1879048192 to 2147483647,
/// systemd.io/UIDS-GIDS), so it owns no file and no other process runs as it; a name in `/etc/passwd` is not needed.
const HELPER_ID: u32 = 1_885_495_662;
/// Taken where a container maps too few ids for [`HELPER_ID`]: `nobody`.
const FALLBACK_ID: u32 = 65534;
/// Permitted, and in effect only while port 53 of a bridge is being bound ([`with_low_ports`]). It gives a thief nothing new:
/// whoever has [`KEPT`] may write `net.ipv4.ip_unprivileged_port_start`.
const IN_RESERVE: Capability = Capability::CAP_NET_BIND_SERVICE;
/// Interfaces, addresses, nf_tables, taps, and `ip_forward` (`net_ctl_permissions` lets it write below `net.`).
const KEPT: Capability = Capability::CAP_NET_ADMIN;
/// More than the connections, the routing socket and a tap in the making need.
const FILES_MAX: u64 = 128;

/// Which step of the confinement failed; the helper does not run without it.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("cannot {0}")]
    Call(&'static str, #[source] Errno),
    #[error("cannot {0}")]
    Capabilities(&'static str, #[source] caps::errors::CapsError),
}

/// Confines this process.
///
/// # Errors
/// The step that failed.
pub(super) fn confine() -> Result<(), ConfineError> {
    use ConfineError::Call;
    umask(Mode::from_bits_truncate(0o077));
    setrlimit(Resource::RLIMIT_NOFILE, FILES_MAX, FILES_MAX).map_err(|e| Call("limit open files", e))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|e| Call("forbid core files", e))?;
    empty_bounding_set()?;
    // The capability outlives the change of uid; the change clears the effective set, which is set anew below.
    prctl::set_keepcaps(true).map_err(|e| Call("keep capabilities", e))?;
    become_nobody()?;
    keep_capabilities()?;
    prctl::set_keepcaps(false).map_err(|e| Call("stop keeping capabilities", e))?;
    prctl::set_no_new_privs().map_err(|e| Call("forbid new privileges", e))?;
    // After the change of uid, which resets it: no process of this uid may attach, none is there.
    prctl::set_dumpable(false).map_err(|e| Call("forbid core dumps and ptrace", e))
}

/// Confines the names keeper ([`super::resolved`]): uid 0, which the bus asks for, and no capability at all.
///
/// # Errors
/// The step that failed.
pub(super) fn confine_names_keeper() -> Result<(), ConfineError> {
    use ConfineError::Call;
    umask(Mode::from_bits_truncate(0o077));
    setrlimit(Resource::RLIMIT_NOFILE, FILES_MAX, FILES_MAX).map_err(|e| Call("limit open files", e))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|e| Call("forbid core files", e))?;
    empty_bounding_set()?;
    setgroups(&[]).map_err(|e| Call("leave all groups", e))?;
    let failed = |e| ConfineError::Capabilities("drop capabilities", e);
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(failed)?;
    }
    prctl::set_no_new_privs().map_err(|e| Call("forbid new privileges", e))?;
    prctl::set_dumpable(false).map_err(|e| Call("forbid core dumps and ptrace", e))
}

/// Comes first: it takes `CAP_SETPCAP`, which goes with the rest.
fn empty_bounding_set() -> Result<(), ConfineError> {
    let failed = |e| ConfineError::Capabilities("empty the bounding set", e);
    let present = caps::read(None, CapSet::Bounding).map_err(failed)?;
    present.into_iter().try_for_each(|capability| caps::drop(None, CapSet::Bounding, capability)).map_err(failed)
}

fn become_nobody() -> Result<(), ConfineError> {
    use ConfineError::Call;
    setgroups(&[]).map_err(|e| Call("leave all groups", e))?;
    let group = |id| setresgid(Gid::from_raw(id), Gid::from_raw(id), Gid::from_raw(id));
    let user = |id| setresuid(Uid::from_raw(id), Uid::from_raw(id), Uid::from_raw(id));
    let mapped = |result, fallback: &dyn Fn(u32) -> nix::Result<()>| match result {
        Err(Errno::EINVAL) => fallback(FALLBACK_ID),
        result => result,
    };
    mapped(group(HELPER_ID), &group).map_err(|e| Call("change the group", e))?;
    mapped(user(HELPER_ID), &user).map_err(|e| Call("change the user", e))
}

fn keep_capabilities() -> Result<(), ConfineError> {
    let failed = |e| ConfineError::Capabilities("drop capabilities", e);
    let kept = CapsHashSet::from([KEPT]);
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    caps::set(None, CapSet::Effective, &kept).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &CapsHashSet::from([KEPT, IN_RESERVE])).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)
}

/// Runs `bind` with the right to ports below 1024, which this thread has for that long only.
///
/// # Errors
/// What `bind` says; where the right cannot be had, that is the kernel's refusal.
pub(super) fn with_low_ports<T>(bind: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let raised = caps::raise(None, CapSet::Effective, IN_RESERVE);
    let result = bind();
    if raised.is_ok() {
        caps::drop(None, CapSet::Effective, IN_RESERVE).map_err(io::Error::other)?;
    }
    result
}
