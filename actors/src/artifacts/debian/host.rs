//! What on a host stops an ordinary user from building a Debian system. Used before each pull, and by `banger doctor`.

use super::which;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// One thing in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostTrap {
    /// mmdebstrap itself is missing.
    NoMmdebstrap,
    /// The user has no line in /etc/subuid or /etc/subgid.
    NoSubordinateIds { user: String, file: &'static str },
    /// newuidmap is missing.
    NoNewuidmap,
    /// newuidmap is there, but neither setuid nor with a file capability.
    NewuidmapPowerless,
    /// This process runs under `no_new_privs`, where setuid programs are powerless.
    NoNewPrivileges,
    /// The kernel is told to refuse user namespaces.
    UserNamespacesOff { setting: &'static str },
}

impl fmt::Display for HostTrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMmdebstrap => f.write_str("mmdebstrap is not installed"),
            Self::NoSubordinateIds { user, file } => write!(f, "`{user}` has no range of subordinate ids in {file}"),
            Self::NoNewuidmap => f.write_str("newuidmap is not installed"),
            Self::NewuidmapPowerless => f.write_str("newuidmap is not setuid root"),
            Self::NoNewPrivileges => f.write_str("the daemon runs under no_new_privs, where newuidmap has no power"),
            Self::UserNamespacesOff { setting } => write!(f, "user namespaces are switched off by {setting}"),
        }
    }
}

impl HostTrap {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NoMmdebstrap => "install it: `sudo apt install mmdebstrap uidmap`".to_owned(),
            Self::NoSubordinateIds { user, .. } => {
                let first = first_free(&read("/etc/subuid")).max(first_free(&read("/etc/subgid")));
                let range = format!("{first}-{}", first + RANGE - 1);
                format!("give it one: `sudo usermod --add-subuids {range} --add-subgids {range} {user}`")
            }
            Self::NoNewuidmap => "install it: `sudo apt install uidmap`".to_owned(),
            Self::NewuidmapPowerless => "restore it: `sudo apt install --reinstall uidmap`".to_owned(),
            Self::NoNewPrivileges => {
                "start the daemon from a shell, or pull with `banger` before the service starts".to_owned()
            }
            Self::UserNamespacesOff { setting } => {
                let value = i32::from(*setting != APPARMOR);
                format!("allow them: `sudo sysctl {setting}={value}`")
            }
        }
    }
}

/// Ubuntu 24.04's switch: 1 refuses user namespaces to programs without an AppArmor profile of their own.
const APPARMOR: &str = "kernel.apparmor_restrict_unprivileged_userns";

/// How many subordinate ids a build takes.
const RANGE: u64 = 65536;

/// Everything in the way of an ordinary user, worst first. Root needs none of it.
#[must_use]
pub fn host_traps() -> Vec<HostTrap> {
    let mut traps = Vec::new();
    if which("mmdebstrap").is_none() {
        traps.push(HostTrap::NoMmdebstrap);
    }
    if nix::unistd::geteuid().is_root() {
        return traps;
    }
    if status_says_no_new_privs(&read("/proc/self/status")) {
        traps.push(HostTrap::NoNewPrivileges);
    }
    traps.extend(namespace_trap(|setting| read(&format!("/proc/sys/{}", setting.replace('.', "/")))));
    match which("newuidmap") {
        None => traps.push(HostTrap::NoNewuidmap),
        Some(path) => {
            let setuid = fs::metadata(&path).is_ok_and(|metadata| metadata.permissions().mode() & 0o4000 != 0);
            if !setuid && !has_file_capability(&path) {
                traps.push(HostTrap::NewuidmapPowerless);
            }
        }
    }
    let uid = nix::unistd::getuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    for file in ["/etc/subuid", "/etc/subgid"] {
        if !has_range(&read(file), &user, uid.as_raw()) {
            traps.push(HostTrap::NoSubordinateIds { user: user.clone(), file });
        }
    }
    traps
}

/// An unreadable file says nothing, and nothing is in the way until mmdebstrap itself says so.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn status_says_no_new_privs(status: &str) -> bool {
    status.lines().any(|line| line.strip_prefix("NoNewPrivs:").is_some_and(|value| value.trim() == "1"))
}

fn namespace_trap(setting: impl Fn(&'static str) -> String) -> Option<HostTrap> {
    // mmdebstrap has an AppArmor profile of its own on Ubuntu: there the last setting stops only hosts that lack it.
    let profile = fs::metadata("/etc/apparmor.d/mmdebstrap").is_ok();
    [("kernel.unprivileged_userns_clone", "0"), ("user.max_user_namespaces", "0"), (APPARMOR, "1")]
        .into_iter()
        .filter(|(name, _)| !(*name == APPARMOR && profile))
        .find(|(name, refusing)| setting(name).trim() == *refusing)
        .map(|(setting, _)| HostTrap::UserNamespacesOff { setting })
}

/// The first id after all ranges that are given.
fn first_free(file: &str) -> u64 {
    let end = |line: &str| {
        let mut numbers = line.split(':').skip(1).map(|number| number.trim().parse::<u64>());
        Some(numbers.next()?.ok()?.saturating_add(numbers.next()?.ok()?))
    };
    file.lines().filter_map(end).max().unwrap_or(0).max(100_000)
}

/// mmdebstrap needs 65536 ids in one range (subuid(5): `name-or-uid:first:count`).
fn has_range(file: &str, user: &str, uid: u32) -> bool {
    file.lines().any(|line| {
        let mut fields = line.split(':');
        let who = fields.next().unwrap_or_default();
        let count: u64 = fields.nth(1).and_then(|count| count.trim().parse().ok()).unwrap_or(0);
        (who == user || who == uid.to_string()) && count >= RANGE
    })
}

/// Fedora and others give newuidmap `cap_setuid` in place of the setuid bit.
fn has_file_capability(path: &std::path::Path) -> bool {
    let Ok(output) = std::process::Command::new("getcap").arg(path).stdin(std::process::Stdio::null()).output() else {
        // Nothing to ask: leave the judgement to mmdebstrap.
        return true;
    };
    String::from_utf8_lossy(&output.stdout).contains("cap_setuid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_or_number() {
        let file = "alice:100000:65536\n1001:165536:65536\nsmall:300000:1000\n";
        assert!(has_range(file, "alice", 1000));
        assert!(has_range(file, "bob", 1001));
        assert!(!has_range(file, "small", 1002));
        assert!(!has_range(file, "carol", 1003));
        assert!(!has_range("", "alice", 1000));
    }

    #[test]
    fn a_new_range_overlaps_none() {
        assert_eq!(first_free(""), 100_000);
        assert_eq!(first_free("alice:100000:65536\nbob:231072:65536\ncarol:165536:65536\nrubbish\n"), 296_608);
    }

    #[test]
    fn settings_that_refuse_namespaces_are_named() {
        let trap =
            namespace_trap(|name| if name == "user.max_user_namespaces" { "0\n".to_owned() } else { String::new() });
        let trap = trap.unwrap();
        assert_eq!(trap, HostTrap::UserNamespacesOff { setting: "user.max_user_namespaces" });
        assert_eq!(trap.hint(), "allow them: `sudo sysctl user.max_user_namespaces=1`");
        assert_eq!(namespace_trap(|_| "100\n".to_owned()), None);
    }

    #[test]
    fn no_new_privs_is_read_from_status() {
        assert!(status_says_no_new_privs("Name:\tx\nNoNewPrivs:\t1\nSeccomp:\t0\n"));
        assert!(!status_says_no_new_privs("Name:\tx\nNoNewPrivs:\t0\n"));
    }
}
