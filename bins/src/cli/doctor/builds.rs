//! What building images and kernels on this host needs: mmdebstrap, e2fsprogs, and user namespaces where one is not root.

use super::{Check, program};
use actors::artifacts::debian::{HostTrap, host_traps};
use nix::unistd::Uid;

pub(super) fn checks() -> Vec<Check> {
    let mut checks = vec![mmdebstrap(), e2fsprogs()];
    if Uid::effective().is_root() {
        checks.push(Check::ok("user namespaces", "not needed by root"));
    } else {
        checks.extend(without_root(&host_traps()));
    }
    checks
}

fn mmdebstrap() -> Check {
    match program("mmdebstrap") {
        Some(path) => Check::ok("mmdebstrap", path.display().to_string()),
        None => Check::fail(
            "mmdebstrap",
            "not installed: no Debian image or kernel can be pulled",
            "`sudo apt install mmdebstrap`",
        ),
    }
}

fn e2fsprogs() -> Check {
    let needed = ["mke2fs", "debugfs", "e2fsck"];
    let missing: Vec<&str> = needed.into_iter().filter(|name| program(name).is_none()).collect();
    if missing.is_empty() {
        Check::ok("e2fsprogs", format!("{} are there", needed.join(", ")))
    } else {
        Check::fail("e2fsprogs", format!("not installed: {}", missing.join(", ")), "`sudo apt install e2fsprogs`")
    }
}

/// What a pull looks at before it starts: here and there it is the same list.
fn without_root(traps: &[HostTrap]) -> Vec<Check> {
    let groups = ["subuid", "newuidmap", "user namespaces"];
    let check = |name: &'static str| match traps.iter().find(|trap| group(trap) == Some(name)) {
        Some(trap) => Check::warn(name, format!("{trap}: no Debian image can be made without root"), trap.hint()),
        None => Check::ok(name, "as it should be"),
    };
    groups.map(check).into()
}

/// Under which name a trap is listed; none for what has a check of its own.
fn group(trap: &HostTrap) -> Option<&'static str> {
    match trap {
        HostTrap::NoMmdebstrap => None,
        HostTrap::NoSubordinateIds { .. } => Some("subuid"),
        HostTrap::NoNewuidmap | HostTrap::NewuidmapPowerless | HostTrap::NoNewPrivileges => Some("newuidmap"),
        HostTrap::UserNamespacesOff { .. } => Some("user namespaces"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;

    #[test]
    fn traps_are_named_once_and_their_way_out_is_the_pulls() {
        let ids = |file| HostTrap::NoSubordinateIds { user: "me".to_owned(), file };
        let traps = [ids("/etc/subuid"), ids("/etc/subgid"), HostTrap::NoMmdebstrap];
        let checks = without_root(&traps);
        let levels: Vec<_> = checks.iter().map(|check| (check.name, check.level)).collect();
        let expected = [("subuid", Level::Warn), ("newuidmap", Level::Ok), ("user namespaces", Level::Ok)];
        assert_eq!(levels, expected);
        assert_eq!(checks[0].fix, Some(traps[0].hint()), "a range that nobody else has");
    }
}
