//! The same rules beside the firewalls of others, which drop what they do not know: docker's, ufw's, firewalld's.

use super::frames::udp;
use super::lab::{AT_UPLINK, Lab, ROUTER, in_a_namespace, skip, subnet, tool};
use super::{Fate, ONE, by_gateway, expect};
use crate::privileged::resolved::tests::{PrivateBus, keeper_of_bridges};
use messages::privileged::{PrivilegedOperation, PrivilegedReply, default_bridge_name};
use nix::sched::{CloneFlags, unshare};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What docker leaves on a host: everything that is forwarded is dropped, but for what a chain of others' accepts.
const DOCKER: &str = "table ip filter {
  chain DOCKER-USER {
    counter return
  }
  chain FORWARD {
    type filter hook forward priority filter; policy drop;
    counter jump DOCKER-USER
  }
}";

/// What ufw leaves on a host, cut down to where packets go through: nothing comes in or is forwarded but by its chains.
const UFW: [&str; 2] = [
    "table ip filter {
      chain ufw-before-input { ct state established,related accept; }
      chain ufw-before-forward { ct state established,related accept; }
      chain INPUT { type filter hook input priority filter; policy drop; counter jump ufw-before-input; }
      chain FORWARD { type filter hook forward priority filter; policy drop; counter jump ufw-before-forward; }
    }",
    "table ip6 filter {
      chain ufw6-before-input { counter return; }
      chain ufw6-before-forward { counter return; }
      chain INPUT { type filter hook input priority filter; policy drop; counter jump ufw6-before-input; }
      chain FORWARD { type filter hook forward priority filter; policy drop; counter jump ufw6-before-forward; }
    }",
];

fn has(program: &str) -> bool {
    let found = ["/usr/sbin", "/sbin", "/usr/bin"].iter().any(|path| Path::new(path).join(program).exists());
    if !found {
        skip(&format!("{program} is not installed"));
    }
    found
}

pub(super) fn has_nft() -> bool {
    has("nft")
}

pub(super) fn nat(lab: &mut Lab) -> PrivilegedReply {
    let bridge = default_bridge_name(ONE);
    lab.perform(&PrivilegedOperation::EnsureNat { instance: ONE, bridge, subnet: subnet(0) }).unwrap()
}

#[test]
fn docker_lets_guests_pass_and_is_left_as_it_was() {
    in_a_namespace(|| {
        if !has_nft() {
            return;
        }
        let mut lab = Lab::new();
        tool("nft", &[DOCKER]);
        let before = tool("nft", &["-s", "list", "ruleset"]);
        lab.network(ONE, subnet(0));
        // Waits until it reaches the uplink, which is the point.
        let a = lab.guest(ONE, subnet(0), 0);
        let me = lab.end(a);
        let out = |mark: &[u8]| udp(me, by_gateway(ROUTER), (40_000, 9), mark);
        tool("nft", &["flush", "chain", "ip", "filter", "DOCKER-USER"]);
        expect(&lab, "docker alone", a, &out(b"alone"), b"alone", Fate::Dropped);
        assert_eq!(nat(&mut lab), PrivilegedReply::Done, "our own rules were there all the time");
        expect(&lab, "accepted again", a, &out(b"again"), b"again", Fate::At(AT_UPLINK));
        let rules = || tool("nft", &["list", "chain", "ip", "filter", "DOCKER-USER"]).matches("banger:").count();
        assert_eq!((nat(&mut lab), rules()), (PrivilegedReply::Done, 2), "added once");
        lab.done(&PrivilegedOperation::RemoveInstance { instance: ONE });
        tool("nft", &["add", "rule", "ip", "filter", "DOCKER-USER", "counter", "return"]);
        assert_eq!(tool("nft", &["-s", "list", "ruleset"]), before);
    });
}

/// Guests reach the world and the resolver beside ufw, and lose both when `forget` made its chains anew, until the next look.
fn ufw_lets_guests_pass(lab: &mut Lab, forget: impl Fn()) {
    lab.network(ONE, subnet(0));
    // Waits until it reaches the uplink and the host's echo, which is the point.
    let a = lab.guest(ONE, subnet(0), 0);
    let me = lab.end(a);
    let out = |mark: &[u8]| udp(me, by_gateway(ROUTER), (40_000, 9), mark);
    // Another port of the guest's for each: an answer would be let in for the sake of what went before.
    let names = |port: u16, mark: &[u8]| udp(me, by_gateway(subnet(0).gateway), (port, 53), mark);
    expect(lab, "the resolver's port", a, &names(40_001, b"names"), b"names", Fate::Answered);
    forget();
    expect(lab, "ufw alone", a, &udp(me, by_gateway(ROUTER), (40_002, 9), b"alone"), b"alone", Fate::Dropped);
    expect(lab, "names by ufw alone", a, &names(40_003, b"silent"), b"silent", Fate::Dropped);
    assert_eq!(nat(lab), PrivilegedReply::Done, "our own rules were there all the time");
    expect(lab, "accepted again", a, &out(b"again"), b"again", Fate::At(AT_UPLINK));
    expect(lab, "names again", a, &names(40_004, b"heard"), b"heard", Fate::Answered);
    // What ufw lets through is still ours to drop.
    let ssh = udp(me, by_gateway(subnet(0).gateway), (40_005, 22), b"ssh");
    expect(lab, "another port of the host's", a, &ssh, b"ssh", Fate::Dropped);
    let rules = || tool("nft", &["list", "ruleset"]).matches("banger:").count();
    assert_eq!((nat(lab), rules()), (PrivilegedReply::Done, 6), "added once, for both protocols");
    lab.done(&PrivilegedOperation::RemoveInstance { instance: ONE });
    assert_eq!(rules(), 0);
}

#[test]
fn ufw_lets_guests_pass_and_is_left_as_it_was() {
    in_a_namespace(|| {
        if !has_nft() {
            return;
        }
        let mut lab = Lab::new();
        UFW.iter().for_each(|table| drop(tool("nft", &[table])));
        let before = tool("nft", &["-s", "list", "ruleset"]);
        ufw_lets_guests_pass(&mut lab, || {
            for (family, chain) in [("ip", "ufw-before-"), ("ip6", "ufw6-before-")] {
                for to in ["input", "forward"] {
                    tool("nft", &["flush", "chain", family, "filter", &format!("{chain}{to}")]);
                }
            }
        });
        let established = "ct state established,related accept";
        for chain in ["ufw-before-input", "ufw-before-forward"] {
            tool("nft", &["add", "rule", "ip", "filter", chain, established]);
        }
        for chain in ["ufw6-before-input", "ufw6-before-forward"] {
            tool("nft", &["add", "rule", "ip6", "filter", chain, "counter", "return"]);
        }
        assert_eq!(tool("nft", &["-s", "list", "ruleset"]), before);
    });
}

/// The program itself, with settings of its own: those of the host are hidden from it.
#[test]
fn the_real_ufw_goes_on_reading_its_tables() {
    in_a_namespace(|| {
        if !has_nft() || !has("ufw") || !has("iptables") {
            return;
        }
        let mut lab = Lab::new();
        let _settings = own_settings("/etc/ufw");
        tool("ufw", &["--force", "enable"]);
        ufw_lets_guests_pass(&mut lab, || drop(tool("ufw", &["reload"])));
        lab.network(ONE, subnet(0));
        let rules = || ["iptables", "ip6tables"].map(|program| tool(program, &["-S"]).matches("-i bbabcdef").count());
        assert_eq!(rules(), [2, 2], "iptables reads them");
        tool("ufw", &["allow", "2222/tcp"]);
        assert_eq!(rules(), [2, 2], "a rule of the user's leaves them");
        assert!(tool("ufw", &["status"]).contains("2222/tcp"));
        tool("ufw", &["--force", "disable"]);
        assert_eq!(rules(), [0, 0]);
        assert_eq!(nat(&mut lab), PrivilegedReply::Done);
        lab.done(&PrivilegedOperation::RemoveInstance { instance: ONE });
    });
}

/// Gives this thread a copy of a directory in the place of the host's.
fn own_settings(directory: &str) -> tempfile::TempDir {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    tool("mount", &["--make-rprivate", "/"]);
    let copy = tempfile::tempdir().unwrap();
    tool("cp", &["-a", &format!("{directory}/."), copy.path().to_str().unwrap()]);
    tool("mount", &["--bind", copy.path().to_str().unwrap(), directory]);
    copy
}

/// A firewalld of the test's own.
struct Firewalld<'a> {
    bus: &'a PrivateBus,
    daemon: Child,
}

impl<'a> Firewalld<'a> {
    fn start(bus: &'a PrivateBus) -> Self {
        let daemon = Command::new("firewalld")
            .args(["--nofork", "--nopid"])
            .env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Self { bus, daemon };
        let end = Instant::now() + Duration::from_secs(60);
        while started.says(&["--state"]) != "running" {
            assert!(Instant::now() < end, "firewalld does not start");
            std::thread::sleep(Duration::from_millis(200));
        }
        started
    }

    fn says(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("firewall-cmd");
        let output = command.args(arguments).env("DBUS_SYSTEM_BUS_ADDRESS", &self.bus.address).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Firewalld<'_> {
    fn drop(&mut self) {
        self.daemon.kill().and_then(|()| self.daemon.wait()).ok();
    }
}

#[test]
fn the_real_firewalld_trusts_the_bridge() {
    in_a_namespace(|| {
        if !has("firewalld") || !has("firewall-cmd") {
            return;
        }
        let Some(bus) = PrivateBus::start() else { return };
        let mut lab = Lab::with_names(keeper_of_bridges(&bus));
        let _settings = own_settings("/etc/firewalld");
        let firewalld = Firewalld::start(&bus);
        firewalld.says(&["--change-interface=up0"]);
        lab.network(ONE, subnet(0));
        let zone = |firewalld: &Firewalld<'_>| firewalld.says(&["--get-zone-of-interface=bbabcdef"]);
        assert_eq!(zone(&firewalld), "trusted");
        let a = lab.guest(ONE, subnet(0), 0);
        let me = lab.end(a);
        let out = |port, mark: &[u8]| udp(me, by_gateway(ROUTER), (port, 9), mark);
        let names = |port, mark: &[u8]| udp(me, by_gateway(subnet(0).gateway), (port, 53), mark);
        expect(&lab, "out", a, &out(40_001, b"out"), b"out", Fate::At(AT_UPLINK));
        expect(&lab, "the resolver's port", a, &names(40_002, b"names"), b"names", Fate::Answered);
        firewalld.says(&["--reload"]);
        // Some versions forget what they were told since they started, some do not.
        assert_eq!(nat(&mut lab), PrivilegedReply::Done, "our own rules were there all the time");
        expect(&lab, "reloaded", a, &out(40_003, b"reloaded"), b"reloaded", Fate::At(AT_UPLINK));
        // Started anew, it has forgotten everything, until the next look.
        drop(firewalld);
        let firewalld = Firewalld::start(&bus);
        assert_ne!(zone(&firewalld), "trusted");
        assert_eq!(nat(&mut lab), PrivilegedReply::Done);
        assert_eq!(zone(&firewalld), "trusted");
        expect(&lab, "trusted again", a, &out(40_005, b"again"), b"again", Fate::At(AT_UPLINK));
        lab.done(&PrivilegedOperation::RemoveInstance { instance: ONE });
        assert_eq!(firewalld.says(&["--zone=trusted", "--list-interfaces"]), "");
    });
}
