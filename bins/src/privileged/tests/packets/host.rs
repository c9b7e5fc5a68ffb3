//! The same rules beside what else a host has: a reload that takes everything, a narrow uplink, many taps.

use super::firewalls::{has_nft, nat};
use super::frames::{End, addresses, syn, udp};
use super::lab::{AT_UPLINK, HOST, Lab, ROUTER, UPLINK, in_a_namespace, ip, subnet, tool};
use super::{Fate, ONE, by_gateway, expect};
use messages::privileged::{
    Grant, GrantTarget, PrivilegedOperation, PrivilegedReply, Subnet, TapNumber, default_bridge_name,
};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

#[test]
fn a_reload_of_the_firewall_is_made_good_and_opens_no_bridge() {
    in_a_namespace(|| {
        if !has_nft() {
            return;
        }
        let mut lab = Lab::new();
        let net = subnet(0);
        lab.network(ONE, net);
        let (a, b) = (lab.guest(ONE, net, 0), lab.guest(ONE, net, 1));
        let (me, peer) = (lab.end(a), lab.end(b));
        assert_eq!(nat(&mut lab), PrivilegedReply::Done, "the kernel tells that they are there");
        lab.grant(ONE, net, &[Grant { from: TapNumber(0), to: GrantTarget::Tcp(80) }]);
        assert_eq!(nat(&mut lab), PrivilegedReply::Done, "grants are no other rules");
        let listed = tool("nft", &["list", "table", "inet", "banger_65534_abcdef"]);
        assert!(listed.contains("172.16.0.2 . tcp . 80"), "nft can read it: {listed}");
        assert!(
            tool("nft", &["list", "table", "bridge", "banger_65534_abcdef"])
                .contains("\"btabcdef-0\" . 06:ab:cd:ef:00:00")
        );
        tool("nft", &["flush", "ruleset"]);
        expect(&lab, "isolated ports", a, &udp(me, peer, (1, 2), b"direct"), b"direct", Fate::Dropped);
        let gone = PrivilegedOperation::SetGrants {
            instance: ONE,
            bridge: default_bridge_name(ONE),
            subnet: net,
            grants: Vec::new(),
        };
        assert!(lab.perform(&gone).unwrap_err().to_string().contains("does not exist"));
        assert_eq!(nat(&mut lab), PrivilegedReply::Rewritten);
        expect(&lab, "again", a, &udp(me, by_gateway(peer.ip), (1, 2), b"routed"), b"routed", Fate::Dropped);
    });
}

#[test]
fn handshakes_promise_no_more_than_the_uplink_takes() {
    in_a_namespace(|| {
        let mut lab = Lab::new();
        lab.network(ONE, subnet(0));
        let a = lab.guest(ONE, subnet(0), 0);
        ip(&["link", "set", UPLINK, "mtu", "1400"]);
        lab.send(a, &syn(lab.end(a), by_gateway(ROUTER), (40_000, 443), 1460));
        let is_segment = |frame: &[u8]| addresses(frame).is_some_and(|(_, to)| to == ROUTER) && frame[23] == 6;
        let out = lab.arrives("a handshake", |at, frame| at == AT_UPLINK && is_segment(frame));
        assert_eq!(out[54..58], [2, 4, 5, 80], "1360 = 5 * 256 + 80");
    });
}

#[test]
fn two_hundred_taps_come_and_go() {
    const TAPS: u16 = 200;
    in_a_namespace(|| {
        let mut lab = Lab::new();
        let net = subnet(0);
        let started = Instant::now();
        lab.network(ONE, net);
        let network = started.elapsed();
        let mut times: Vec<Duration> = (0..TAPS)
            .map(|tap| {
                let started = Instant::now();
                lab.tap(ONE, tap);
                started.elapsed()
            })
            .collect();
        times.sort_unstable();
        // Each of a hundred VMs may reach its neighbour and two ports.
        let grants: Vec<Grant> = (0..100)
            .flat_map(|tap| {
                [GrantTarget::Tap(TapNumber(tap + 1)), GrantTarget::Tcp(80), GrantTarget::Udp(69)]
                    .map(|to| Grant { from: TapNumber(tap), to })
            })
            .collect();
        let timed = |lab: &mut Lab, grants: &[Grant]| {
            let started = Instant::now();
            lab.grant(ONE, net, grants);
            started.elapsed()
        };
        let (hundred, one) = (timed(&mut lab, &grants), timed(&mut lab, &grants[..3]));
        let listed = lab.perform(&PrivilegedOperation::ListTaps { instance: ONE }).unwrap();
        assert_eq!(listed, PrivilegedReply::Taps((0..TAPS).map(TapNumber).collect()));
        let started = Instant::now();
        lab.done(&PrivilegedOperation::RemoveInstance { instance: ONE });
        println!(
            "bridge and rules for 253 guests: {network:?}; a tap: median {:?}, longest {:?}; grants of 100 VMs: {hundred:?}, of one: \
             {one:?}; {TAPS} taps and all else removed: {:?}",
            times[times.len() / 2],
            times[times.len() - 1],
            started.elapsed(),
        );
        let left = tool("ip", &["-o", "link"]);
        assert!(!left.contains("abcdef"), "{left}");
        assert!(hundred < Duration::from_millis(100), "{hundred:?}");
    });
}

#[test]
fn what_the_host_forwards_for_others_keeps_its_source() {
    in_a_namespace(|| {
        let mut lab = Lab::new();
        let net = subnet(0);
        lab.network(ONE, net);
        let a = lab.guest(ONE, net, 0);
        let lan = End { mac: [0x0a, 0, 0, 0, 7, 7], ip: Ipv4Addr::new(192, 168, 7, 7) };
        let host = End { mac: [0x0a, 0, 0, 0, 7, 1], ip: Ipv4Addr::new(192, 168, 7, 1) };
        let at = lab.neighbour("lan0", lan, host);
        // Rules about that network are not to be had.
        let theirs = Subnet { gateway: host.ip, ..net };
        let bridge = default_bridge_name(ONE);
        let refused = lab.perform(&PrivilegedOperation::EnsureNat { instance: ONE, bridge, subnet: theirs });
        assert!(refused.unwrap_err().to_string().contains("does not have the address"));
        let through = |ip: Ipv4Addr, mark: &[u8]| udp(End { ip, ..lan }, End { ip: ROUTER, ..host }, (40_000, 9), mark);
        // Of that network, and one that says it is a guest's.
        for (source, mark) in [(lan.ip, b"theirs"), (Ipv4Addr::new(172, 16, 0, 77), b"spoofs")] {
            let frame = lab.leaves(at, &through(source, mark), mark);
            assert_eq!(addresses(&frame), Some((source, ROUTER)));
        }
        let frame = lab.leaves(a, &udp(lab.end(a), by_gateway(ROUTER), (40_000, 9), b"guests"), b"guests");
        assert_eq!(addresses(&frame), Some((HOST, ROUTER)), "masqueraded");
    });
}
