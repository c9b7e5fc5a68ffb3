//! What VMs with a network need: the helper, taps, forwarding, and firewalls that let them through.

use super::{Check, program, read_trimmed};
use crate::cli::failure::Failure;
use crate::cli::{helper, run::block_on};
use actors::paths::Paths;
use nix::unistd::{AccessFlags, access};
use std::path::Path;

pub(super) fn checks(paths: &Paths) -> Vec<Check> {
    let mut checks = vec![helper_check(paths), tun(), forwarding(), nftables()];
    checks.extend(firewalls());
    checks
}

fn helper_check(paths: &Paths) -> Check {
    let mut found = None;
    let asked = block_on(async {
        found = helper::ask(paths).await?;
        Ok(0)
    });
    let fix = "`sudo banger daemon root start --owner USER`; without it only `--net none` works";
    match (asked, found) {
        (Ok(_), Some(status)) => Check::ok("helper", format!("version {}, pid {}", status.build, status.pid)),
        (Ok(_), None) => Check::warn("helper", "bangerd-root is not running", fix),
        (Err(Failure::Error(error)), _) => Check::warn("helper", error.to_string(), fix),
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
        _ => Check::warn("ip_forward", "off", "the helper switches it on when the first VM needs it"),
    }
}

fn nftables() -> Check {
    if Path::new("/sys/module/nf_tables").exists() {
        return Check::ok("nftables", "loaded");
    }
    match program("nft") {
        Some(_) => Check::ok("nftables", "loaded when it is first used"),
        None => Check::warn("nftables", "not loaded, and nft is not installed", "`sudo apt install nftables`"),
    }
}

/// Others that may drop what VMs forward.
fn firewalls() -> Vec<Check> {
    let mut checks = Vec::new();
    if read_trimmed("/proc/sys/net/bridge/bridge-nf-call-iptables").as_deref() == Some("1") {
        checks.push(Check::warn(
            "br_netfilter",
            "the host's firewall also sees traffic between VMs",
            "`sudo sysctl net.bridge.bridge-nf-call-iptables=0`, unless something else needs it",
        ));
    }
    let legacy = std::fs::read_link("/etc/alternatives/iptables").is_ok_and(|to| to.ends_with("iptables-legacy"));
    if Path::new("/sys/class/net/docker0").exists() {
        checks.push(if legacy {
            Check::warn(
                "docker",
                "docker writes to iptables-legacy and drops what VMs send",
                "`sudo iptables-legacy -I DOCKER-USER -i BRIDGE -j ACCEPT`, and the same with `-o`",
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
                "`sudo ufw default allow routed` and `sudo ufw allow in on BRIDGE`",
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
