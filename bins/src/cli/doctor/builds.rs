//! What building images and kernels on this host needs: mmdebstrap, e2fsprogs, and user namespaces where one is not root.

use super::{Check, executable, program, read_trimmed};
use nix::unistd::{Uid, User};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

pub(super) fn checks() -> Vec<Check> {
    let mut checks = vec![mmdebstrap(), e2fsprogs()];
    if Uid::effective().is_root() {
        checks.push(Check::ok("user namespaces", "not needed by root"));
    } else {
        checks.extend([subuid(), newuidmap(), namespaces()]);
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
    let missing: Vec<&str> = ["mke2fs", "e2fsck"].into_iter().filter(|name| program(name).is_none()).collect();
    if missing.is_empty() {
        Check::ok("e2fsprogs", "mke2fs and e2fsck are there")
    } else {
        Check::fail("e2fsprogs", format!("not installed: {}", missing.join(", ")), "`sudo apt install e2fsprogs`")
    }
}

fn subuid() -> Check {
    let user = User::from_uid(Uid::effective()).ok().flatten();
    let name = user.map_or_else(|| Uid::effective().to_string(), |user| user.name);
    let uid = Uid::effective().to_string();
    let has = |file: &str| read_trimmed(file).is_some_and(|text| has_range(&text, &name, &uid));
    if has("/etc/subuid") && has("/etc/subgid") {
        return Check::ok("subuid", format!("{name} has a range of user and group ids"));
    }
    Check::warn(
        "subuid",
        format!("{name} has no range of ids in /etc/subuid and /etc/subgid: images cannot be built without root"),
        format!("`sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}`"),
    )
}

/// A line `name:first:count` with at least the 65536 ids that a Debian system uses.
fn has_range(text: &str, name: &str, uid: &str) -> bool {
    text.lines().any(|line| {
        let mut fields = line.split(':');
        let owner = fields.next();
        let count = fields.nth(1).and_then(|count| count.parse::<u64>().ok());
        (owner == Some(name) || owner == Some(uid)) && count.is_some_and(|count| count >= 65_536)
    })
}

fn newuidmap() -> Check {
    let fix = "`sudo apt install uidmap`";
    let Some(path) = program("newuidmap") else {
        return Check::warn("newuidmap", "not installed: images cannot be built without root", fix);
    };
    let privileged = |path: &Path| {
        let setuid = path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o4000 != 0);
        // Some distributions give it file capabilities in place of the setuid bit.
        setuid || program("getcap").is_some_and(|getcap| has_capability(&getcap, path))
    };
    if !executable(&path) || !privileged(&path) {
        return Check::warn("newuidmap", format!("`{}` has lost its privileges", path.display()), fix);
    }
    if read_trimmed("/proc/self/status").is_some_and(|status| status.contains("NoNewPrivs:\t1")) {
        return Check::warn(
            "newuidmap",
            "privileges cannot be gained here (no_new_privs), so newuidmap does not work",
            "run banger outside of this sandbox or hardened service",
        );
    }
    Check::ok("newuidmap", path.display().to_string())
}

fn has_capability(getcap: &Path, path: &Path) -> bool {
    let output = std::process::Command::new(getcap).arg(path).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("cap_setuid"))
}

fn namespaces() -> Check {
    const NAME: &str = "user namespaces";
    if read_trimmed("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        return Check::warn(NAME, "switched off for users", "`sudo sysctl kernel.unprivileged_userns_clone=1`");
    }
    if read_trimmed("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        return Check::warn(
            NAME,
            "restricted by AppArmor",
            "`sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or a profile for mmdebstrap",
        );
    }
    if read_trimmed("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        return Check::warn(NAME, "none are allowed", "`sudo sysctl user.max_user_namespaces=15000`");
    }
    Check::ok(NAME, "allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert!(has_range("me:100000:65536\n", "me", "1000"));
        assert!(has_range("1000:100000:65536", "me", "1000"));
        assert!(!has_range("me:100000:1000", "me", "1000"));
        assert!(!has_range("other:100000:65536\nme", "me", "1000"));
    }
}
