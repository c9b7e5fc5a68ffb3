//! What VMs with a network need: the helper, taps, forwarding, and firewalls that let them through.

use super::{Check, read_trimmed, user};
use crate::cli::failure::Failure;
use crate::cli::{helper, run::block_on};
use actors::config::Config;
use actors::paths::Paths;
use messages::privileged::default_bridge_name;
use nix::unistd::{AccessFlags, access};
use std::path::Path;

pub(super) fn checks(paths: &Paths, config: &Config) -> Vec<Check> {
    let bridge = config.bridge_name.clone().unwrap_or_else(|| default_bridge_name(paths.instance()));
    let mut checks = vec![helper_check(paths), tun(), forwarding(), nftables()];
    checks.extend(firewalls(bridge.as_str()));
    checks
}

fn helper_check(paths: &Paths) -> Check {
    let mut found = None;
    let asked = block_on(async {
        found = helper::ask(paths).await?;
        Ok(0)
    });
    let fix = format!("`sudo banger daemon root start --owner {}`; without it only `--net none` works", user());
    match (asked, found) {
        (Ok(_), Some(status)) => Check::ok("helper", format!("version {}, pid {}", status.build, status.pid)),
        (Ok(_), None) => Check::warn("helper", "bangerd-root is not running", fix),
        // One that runs cannot be started: it says itself what to do.
        (Err(Failure::Error(error)), _) => {
            let hint = error.hints.first().cloned();
            Check::warn("helper", error.chain.join(": "), hint.unwrap_or(fix))
        }
        (Err(_), _) => Check::warn("helper", "cannot be reached", fix),
    }
}

fn tun() -> Check {
    if !Path::new("/dev/net/tun").exists() {
        return Check::warn("tun", "there is no /dev/net/tun", "`sudo modprobe tun`");
    }
    match access("/dev/net/tun", AccessFlags::R_OK | AccessFlags::W_OK) {
        Ok(()) => Check::ok("tun", "/dev/net/tun can be opened"),
        Err(_) => Check::warn(
            "tun",
            "you may not open /dev/net/tun: only `--net none` works",
            "`sudo chmod 0666 /dev/net/tun`, which is what udev makes it",
        ),
    }
}

fn forwarding() -> Check {
    match read_trimmed("/proc/sys/net/ipv4/ip_forward").as_deref() {
        Some("1") => Check::ok("ip_forward", "on"),
        _ => Check::ok("ip_forward", "off; the helper switches it on when the first VM needs it"),
    }
}

/// The helper speaks to the kernel itself: the program `nft` is not needed.
fn nftables() -> Check {
    let loaded = Path::new("/sys/module/nf_tables").exists();
    let modules = nix::sys::utsname::uname().ok().map(|host| Path::new("/lib/modules").join(host.release()));
    let list = |file| std::fs::read_to_string(modules.as_deref()?.join(file)).ok();
    nf_tables(loaded, list("modules.builtin").as_deref(), list("modules.dep").as_deref())
}

/// From the lists that come with a kernel; one that was built here may have none.
fn nf_tables(loaded: bool, built_in: Option<&str>, loadable: Option<&str>) -> Check {
    const NAME: &str = "nftables";
    let has = |list: Option<&str>| list.is_some_and(|list| list.lines().any(|line| line.contains("/nf_tables.ko")));
    if loaded {
        Check::ok(NAME, "loaded")
    } else if has(built_in) {
        Check::ok(NAME, "built into the kernel")
    } else if has(loadable) {
        Check::ok(NAME, "loaded when it is first used")
    } else if built_in.is_none() || loadable.is_none() {
        Check::ok(NAME, "not known: this kernel does not list what it has")
    } else {
        let fix = "use a kernel with CONFIG_NF_TABLES; until then only `--net none` works";
        Check::warn(NAME, "this kernel does not have nf_tables", fix)
    }
}

/// Others that may drop what VMs forward.
fn firewalls(bridge: &str) -> Vec<Check> {
    let mut checks = Vec::new();
    if read_trimmed("/proc/sys/net/bridge/bridge-nf-call-iptables").as_deref() == Some("1") {
        // What goes by routing it sees in any case; by the bridge nothing goes from one VM to another.
        checks.push(Check::ok("br_netfilter", "on, as docker and others want it; VMs work with it"));
    }
    let legacy = std::fs::read_link("/etc/alternatives/iptables").is_ok_and(|to| to.ends_with("iptables-legacy"));
    if Path::new("/sys/class/net/docker0").exists() {
        checks.push(if legacy {
            Check::warn(
                "docker",
                "docker writes to iptables-legacy and drops what VMs send",
                format!("`sudo iptables-legacy -I DOCKER-USER -i {bridge} -j ACCEPT`, and the same with `-o`"),
            )
        } else {
            Check::ok("docker", "the helper lets VMs pass in DOCKER-USER")
        });
    }
    if read_trimmed("/etc/ufw/ufw.conf").is_some_and(|text| text.lines().any(|line| line.trim() == "ENABLED=yes")) {
        checks.push(if legacy {
            Check::warn(
                "ufw",
                "ufw writes to iptables-legacy and drops what VMs send",
                format!("`sudo ufw route allow in on {bridge}` and `sudo ufw allow in on {bridge}`"),
            )
        } else {
            Check::ok("ufw", "the helper lets VMs pass")
        });
    }
    if Path::new("/run/firewalld").exists() {
        checks.push(Check::ok("firewalld", "the helper puts the bridge into the zone `trusted`"));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Level;

    #[test]
    fn a_kernel_has_nf_tables_in_one_way_or_another() {
        let module = Some("kernel/net/netfilter/nf_tables.ko.xz: kernel/net/netfilter/nfnetlink.ko.xz\n");
        let built_in = Some("kernel/net/netfilter/nf_tables.ko\n");
        let other = Some("kernel/fs/ext4/ext4.ko: kernel/net/netfilter/nf_tables_other.ko\n");
        let level = |loaded, built_in, loadable| nf_tables(loaded, built_in, loadable).level;
        assert_eq!(level(true, other, other), Level::Ok);
        assert_eq!(level(false, built_in, other), Level::Ok, "/sys does not say it of what is built in");
        assert_eq!(level(false, other, module), Level::Ok);
        assert_eq!(level(false, None, None), Level::Ok, "nobody knows, and nft would tell nothing");
        assert_eq!(level(false, other, other), Level::Warn);
    }
}
