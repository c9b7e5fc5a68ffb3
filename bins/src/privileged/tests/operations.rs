//! Every operation: what it does once, twice, after a failure at any step, and what it leaves alone.

use super::double::Double;
use crate::privileged::host::{LinkKind, Route};
use crate::privileged::nft::KnownRule;
use crate::privileged::ops::{OperationError, Operations};
use messages::ids::InstanceId;
use messages::privileged::{Grant, GrantTarget, PrivilegedOperation, PrivilegedReply, Subnet, TapNumber};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

const OWNER: u32 = 1000;
const ONE: InstanceId = InstanceId([0xab, 0xcd, 0xef]);
const OTHER: InstanceId = InstanceId([1, 2, 3]);

fn subnet() -> Subnet {
    Subnet { gateway: Ipv4Addr::new(172, 16, 0, 1), prefix: 24, ipv6: None }
}

fn bridge(instance: InstanceId, name: &str) -> PrivilegedOperation {
    PrivilegedOperation::EnsureBridge { instance, bridge: name.parse().unwrap(), subnet: subnet() }
}

fn nat(name: &str) -> PrivilegedOperation {
    PrivilegedOperation::EnsureNat { instance: ONE, bridge: name.parse().unwrap(), subnet: subnet() }
}

fn tap(number: u16) -> PrivilegedOperation {
    let bridge = "bbabcdef".parse().unwrap();
    PrivilegedOperation::EnsureTap { instance: ONE, bridge, tap: TapNumber(number), mtu: Some(1400) }
}

async fn perform(host: &Double, operation: &PrivilegedOperation) -> Result<PrivilegedReply, OperationError> {
    Operations::new(host.clone(), OWNER).perform(operation).await.map(|performed| performed.reply)
}

async fn done(host: &Double, operation: PrivilegedOperation) {
    let reply = perform(host, &operation).await.unwrap();
    assert!(matches!(reply, PrivilegedReply::Done | PrivilegedReply::Rewritten), "{operation:?}: {reply:?}");
}

#[tokio::test]
async fn a_whole_network_is_made_in_this_order() {
    let host = Double::default();
    for operation in [bridge(ONE, "bbabcdef"), nat("bbabcdef"), tap(0)] {
        done(&host, operation).await;
    }
    insta::assert_snapshot!(host.with(|s| s.changes().join("\n")), @r"
    create_bridge bbabcdef
    change_link bbabcdef alias=banger:1000:abcdef address=[02, ab, cd, ef, ff, ff]
    add_address bbabcdef 172.16.0.1/24
    change_link bbabcdef up
    replace_tables banger_1000_abcdef
    answer_for_guests bbabcdef
    enable_forwarding
    create_tap btabcdef-0 uid=1000
    change_link btabcdef-0 alias=banger:1000:abcdef mtu=1400 port
    isolate_port btabcdef-0
    change_link btabcdef-0 up
    ");
}

#[tokio::test]
async fn a_second_time_changes_nothing_of_the_interfaces() {
    let host = Double::default();
    for operation in [bridge(ONE, "bbabcdef"), tap(0)] {
        done(&host, operation).await;
    }
    host.with(|s| s.calls.clear());
    for operation in [bridge(ONE, "bbabcdef"), tap(0)] {
        done(&host, operation).await;
    }
    assert_eq!(host.with(|s| s.changes().join("\n")), "isolate_port btabcdef-0");
}

/// What a host ends up with, whatever the indexes of its interfaces.
fn end(host: &Double) -> String {
    host.with(|s| {
        let links = s.links.values().map(|l| (&l.name, l.kind, &l.alias, l.up, s.addresses.get(&l.index)));
        format!("{:?} {:?} {}", links.collect::<Vec<_>>(), s.tables, s.forwarding)
    })
}

/// Whichever call fails, the next attempt finishes, and the end is the same.
#[tokio::test]
async fn every_failure_is_made_good_by_the_next_attempt() {
    let calls = [
        "?links",
        "?link",
        "?routes",
        "?addresses",
        "create_bridge",
        "change_link",
        "add_address",
        "replace_tables",
        "answer_for_guests",
        "?foreign_rules",
        "enable_forwarding",
        "create_tap",
        "isolate_port",
    ];
    for name in ["bbabcdef", "br-banger"] {
        let undisturbed = Double::default();
        for operation in [bridge(ONE, name), nat(name)] {
            done(&undisturbed, operation).await;
        }
        for call in calls {
            for before in 0..4 {
                let host = Double::default();
                let mut failed = 0;
                for operation in [bridge(ONE, name), nat(name)] {
                    // Let `before` of these calls pass, then fail the next.
                    host.fail_after(call, before);
                    while perform(&host, &operation).await.is_err() {
                        failed += 1;
                        assert!(failed <= 2, "{call} {before}: does not recover");
                    }
                }
                assert_eq!(end(&host), end(&undisturbed), "{call} {before}");
            }
        }
    }
}

#[tokio::test]
async fn a_half_made_tap_is_finished() {
    let host = Double::default();
    done(&host, bridge(ONE, "bbabcdef")).await;
    for call in ["change_link", "isolate_port"] {
        host.fail(call, 1);
        assert!(perform(&host, &tap(7)).await.is_err());
    }
    assert!(!host.with(|s| s.named("btabcdef-7").unwrap().up), "up only once isolated");
    assert_eq!(
        perform(&host, &PrivilegedOperation::ListTaps { instance: ONE }).await.unwrap(),
        PrivilegedReply::Taps(vec![TapNumber(7)])
    );
    done(&host, tap(7)).await;
    host.with(|s| {
        let link = s.named("btabcdef-7").unwrap().clone();
        assert!(link.up && s.isolated.contains(&link.index) && link.mtu == 1400);
    });
}

#[tokio::test]
async fn a_tap_comes_to_another_bridge_down() {
    let host = Double::default();
    done(&host, bridge(ONE, "bbabcdef")).await;
    done(&host, tap(7)).await;
    host.with(|s| {
        let index = s.named("btabcdef-7").unwrap().index;
        s.links.get_mut(&index).unwrap().controller = Some(9999);
        s.isolated.clear();
        s.calls.clear();
    });
    done(&host, tap(7)).await;
    let calls: Vec<String> = host.with(|s| s.calls.iter().filter(|call| !call.starts_with('?')).cloned().collect());
    let at =
        |what: &str| calls.iter().position(|call| call.contains(what)).unwrap_or_else(|| panic!("{what}: {calls:?}"));
    assert!(
        at(" down") < at(" port") && at(" port") < at("isolate_port") && at("isolate_port") < at(" up"),
        "{calls:?}"
    );
}

#[tokio::test]
async fn interfaces_of_others_are_refused_and_left_alone() {
    let host = Double::default();
    host.with(|s| {
        s.add_link("docker0", LinkKind::Bridge, None);
        s.add_link("eth0", LinkKind::Other, None);
        s.add_link("bbabcdef", LinkKind::Other, Some("banger:1000:abcdef"));
        s.add_link("br0", LinkKind::Bridge, Some("banger:1000:010203"));
    });
    let before = host.with(|s| s.links.clone());
    for name in ["docker0", "eth0", "bbabcdef", "br0"] {
        for operation in [bridge(ONE, name), nat(name)] {
            assert!(matches!(perform(&host, &operation).await, Err(OperationError::Foreign(_))), "{name}");
        }
    }
    done(&host, PrivilegedOperation::RemoveInstance { instance: ONE }).await;
    host.with(|s| {
        assert_eq!(s.links, before);
        assert_eq!(s.changes(), ["remove_tables banger_1000_abcdef"]);
    });
}

#[tokio::test]
async fn a_tap_of_another_user_or_with_another_mark_is_refused() {
    let host = Double::default();
    done(&host, bridge(ONE, "bbabcdef")).await;
    host.with(|s| {
        s.add_link("btabcdef-1", LinkKind::Tap { owner: Some(1) }, Some("banger:1000:abcdef"));
        s.add_link("btabcdef-2", LinkKind::Tap { owner: Some(OWNER) }, Some("somebody's"));
        s.calls.clear();
    });
    assert!(matches!(perform(&host, &tap(1)).await, Err(OperationError::OtherOwner(_, 1))));
    assert!(matches!(perform(&host, &tap(2)).await, Err(OperationError::Foreign(_))));
    for number in [1, 2] {
        let remove = PrivilegedOperation::RemoveTap { instance: ONE, tap: TapNumber(number) };
        assert!(perform(&host, &remove).await.is_err());
    }
    assert!(host.with(|s| s.changes().is_empty()));
}

#[tokio::test]
async fn subnets_that_the_host_uses_are_refused() {
    let route = |a, b, c, d, prefix, interface| Route { destination: IpAddr::from([a, b, c, d]), prefix, interface };
    for other in [
        route(172, 16, 0, 0, 24, Some(9)),
        route(172, 16, 0, 77, 32, Some(9)),
        route(172, 16, 0, 0, 12, Some(9)),
        route(172, 16, 0, 0, 12, None),
    ] {
        let host = Double::default();
        host.with(|s| s.routes.push(other));
        assert!(matches!(perform(&host, &bridge(ONE, "bbabcdef")).await, Err(OperationError::Overlap { .. })));
        assert!(host.with(|s| s.changes().is_empty()), "{other:?}");
    }
    let host = Double::default();
    host.with(|s| {
        s.routes = vec![
            route(0, 0, 0, 0, 0, Some(9)),
            route(128, 0, 0, 0, 1, Some(9)),
            route(172, 16, 1, 0, 24, Some(9)),
            route(10, 0, 0, 0, 8, Some(9)),
        ];
    });
    done(&host, bridge(ONE, "bbabcdef")).await;
    // Its own route does not stand in its way.
    let index = host.with(|s| s.named("bbabcdef").unwrap().index);
    host.with(|s| s.routes.push(route(172, 16, 0, 0, 24, Some(index))));
    done(&host, bridge(ONE, "bbabcdef")).await;
}

#[tokio::test]
async fn changed_settings_replace_the_former_ones() {
    let host = Double::default();
    done(&host, bridge(ONE, "br-old")).await;
    done(&host, bridge(ONE, "br-new")).await;
    host.with(|s| {
        assert!(s.named("br-old").is_none());
        let index = s.named("br-new").unwrap().index;
        s.addresses.get_mut(&index).unwrap().push((IpAddr::from([172, 17, 0, 1]), 16));
    });
    done(&host, bridge(ONE, "br-new")).await;
    host.with(|s| {
        let index = s.named("br-new").unwrap().index;
        assert_eq!(s.addresses[&index], [(IpAddr::from([172, 16, 0, 1]), 24)]);
    });
}

#[tokio::test]
async fn two_instances_live_side_by_side() {
    let host = Double::default();
    done(&host, bridge(ONE, "bbabcdef")).await;
    let other_subnet = Subnet { gateway: Ipv4Addr::new(172, 16, 1, 1), prefix: 24, ipv6: None };
    let name = "bb010203".parse().unwrap();
    done(&host, PrivilegedOperation::EnsureBridge { instance: OTHER, bridge: name, subnet: other_subnet }).await;
    done(&host, tap(0)).await;
    done(&host, PrivilegedOperation::RemoveInstance { instance: ONE }).await;
    let left: Vec<String> = host.with(|s| s.links.values().map(|link| link.name.clone()).collect());
    assert_eq!(left, ["bb010203"]);
}

#[tokio::test]
async fn removing_takes_taps_before_the_bridge_before_the_rules() {
    let host = Double::default();
    for operation in [bridge(ONE, "bbabcdef"), nat("bbabcdef"), tap(0), tap(1)] {
        done(&host, operation).await;
    }
    host.with(|s| s.calls.clear());
    for _ in 0..2 {
        done(&host, PrivilegedOperation::RemoveInstance { instance: ONE }).await;
    }
    insta::assert_snapshot!(host.with(|s| s.changes().join("\n")), @r"
    delete_link btabcdef-0
    delete_link btabcdef-1
    delete_link bbabcdef
    remove_tables banger_1000_abcdef
    remove_tables banger_1000_abcdef
    ");
}

#[tokio::test]
async fn the_rules_read_like_this() {
    let host = Double::default();
    done(&host, bridge(ONE, "bbabcdef")).await;
    done(&host, nat("bbabcdef")).await;
    insta::assert_snapshot!(host.with(|s| s.tables.values().map(ToString::to_string).collect::<Vec<_>>().join("\n")), @r#"
    table inet banger_1000_abcdef {
      set peers { type ipv4_addr . ipv4_addr; 0 elements }
      set services { type ipv4_addr . inet_proto . inet_service; 0 elements }
      chain input {
        type filter hook input priority 0; policy accept;
        iifname "bbabcdef" meta nfproto != ipv4 drop
        iifname "bbabcdef" meta nfproto ipv4 ip saddr != 172.16.0.0/24 drop
        iifname "bbabcdef" ct state established,related ct direction reply accept
        iifname "bbabcdef" meta nfproto ipv4 ip daddr 172.16.0.1/32 meta l4proto icmp accept
        iifname "bbabcdef" meta nfproto ipv4 ip daddr 172.16.0.1/32 meta l4proto udp th dport 53 accept
        iifname "bbabcdef" meta nfproto ipv4 ip daddr 172.16.0.1/32 meta l4proto tcp th dport 53 accept
        iifname "bbabcdef" meta nfproto ipv4 ip daddr 172.16.0.1/32 ip saddr . meta l4proto . th dport @services accept
        iifname "bbabcdef" drop
      }
      chain forward {
        type filter hook forward priority 0; policy accept;
        iifname "bbabcdef" meta nfproto != ipv4 drop
        iifname "bbabcdef" meta nfproto ipv4 ip saddr != 172.16.0.0/24 drop
        iifname "bbabcdef" meta nfproto ipv4 ip daddr 169.254.0.0/16 drop
        iifname "bbabcdef" oifname "bbabcdef" meta nfproto ipv4 ct state established,related ip daddr . ip saddr @peers accept
        iifname "bbabcdef" oifname "bbabcdef" meta nfproto ipv4 ip saddr . ip daddr @peers accept
        iifname "bbabcdef" oifname "bbabcdef" drop
        iifname "bbabcdef" meta l4proto tcp tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
        oifname "bbabcdef" meta l4proto tcp tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
        iifname "bbabcdef" accept
        oifname "bbabcdef" ct state established,related accept
        oifname "bbabcdef" drop
      }
      chain output {
        type filter hook output priority 0; policy accept;
        oifname "bbabcdef" meta nfproto ipv4 meta l4proto icmp icmp type redirect drop
      }
      chain postrouting {
        type nat hook postrouting priority 100; policy accept;
        iifname "bbabcdef" meta nfproto ipv4 ip saddr 172.16.0.0/24 oifname != "bbabcdef" masquerade
      }
    }
    table bridge banger_1000_abcdef {
      set guests { type ifname . ether_addr . ipv4_addr; 253 elements }
      chain prerouting {
        type filter hook prerouting priority -200; policy accept;
        iifname != "btabcdef-*" accept
        ether type ip iifname . ether saddr . ip saddr @guests accept
        ether type arp arp htype 1 arp ptype ip iifname . ether saddr . arp saddr ip @guests iifname . arp saddr ether . arp saddr ip @guests accept
        drop
      }
    }
    "#);
}

#[tokio::test]
async fn taps_and_rules_need_the_bridge() {
    let host = Double::default();
    for operation in [tap(0), nat("bbabcdef")] {
        assert!(matches!(perform(&host, &operation).await, Err(OperationError::NoBridge(_))));
    }
    assert!(host.with(|s| s.changes().is_empty()));
}

fn dns(name: &str, gateway: Ipv4Addr) -> PrivilegedOperation {
    let subnet = Subnet { gateway, prefix: 24, ipv6: None };
    PrivilegedOperation::BindDns { instance: ONE, bridge: name.parse().unwrap(), subnet }
}

#[tokio::test]
async fn port_53_is_bound_on_the_own_bridge_only() {
    let host = Double::default();
    let own = subnet().gateway;
    assert!(matches!(perform(&host, &dns("bbabcdef", own)).await, Err(OperationError::NoBridge(_))));
    done(&host, bridge(ONE, "bbabcdef")).await;
    let performed = Operations::new(host.clone(), OWNER).perform(&dns("bbabcdef", own)).await.unwrap();
    assert_eq!((performed.reply, performed.descriptors.len()), (PrivilegedReply::DnsSockets, 2));

    // Neither an address of the host's elsewhere, nor a bridge of somebody else's.
    host.with(|s| {
        let lan = s.add_link("br-lan", LinkKind::Bridge, None);
        s.addresses.insert(lan, vec![(IpAddr::from([192, 168, 1, 5]), 24)]);
        s.calls.clear();
    });
    let elsewhere = perform(&host, &dns("bbabcdef", Ipv4Addr::new(192, 168, 1, 5))).await;
    assert!(matches!(elsewhere, Err(OperationError::NoAddress(..))), "{elsewhere:?}");
    let foreign = perform(&host, &dns("br-lan", Ipv4Addr::new(192, 168, 1, 5))).await;
    assert!(matches!(foreign, Err(OperationError::Foreign(_))), "{foreign:?}");
    assert!(host.with(|s| s.changes().is_empty()));
}

#[tokio::test]
async fn a_port_that_is_taken_is_one_sentence() {
    let host = Double::default();
    done(&host, bridge(ONE, "bbabcdef")).await;
    host.with(|s| s.port_taken = true);
    let error = perform(&host, &dns("bbabcdef", subnet().gateway)).await.unwrap_err();
    assert_eq!(error.to_string(), "port 53 of 172.16.0.1 is taken by another program");
}

#[tokio::test]
async fn grants_are_a_whole_state_that_needs_its_table() {
    let host = Double::default();
    let grants = |grants: &[Grant]| {
        let bridge = "bbabcdef".parse().unwrap();
        PrivilegedOperation::SetGrants { instance: ONE, bridge, subnet: subnet(), grants: grants.to_vec() }
    };
    let missing = perform(&host, &grants(&[])).await.unwrap_err();
    assert!(matches!(missing, OperationError::NoTable(_)));
    assert_eq!(messages::WireError::from(missing).kind, messages::error::ErrorKind::NotFound);
    done(&host, bridge(ONE, "bbabcdef")).await;
    done(&host, nat("bbabcdef")).await;
    let from = TapNumber(0);
    let three = [
        Grant { from, to: GrantTarget::Tap(TapNumber(1)) },
        Grant { from, to: GrantTarget::Tcp(8080) },
        Grant { from, to: GrantTarget::Udp(69) },
    ];
    let counts = || {
        host.with(|s| {
            s.tables.values().flat_map(|t| &t.sets).map(|set| (set.name, set.elements.len())).collect::<Vec<_>>()
        })
    };
    done(&host, grants(&three)).await;
    assert_eq!(counts(), [("peers", 1), ("services", 2), ("guests", 253)]);
    done(&host, grants(&three[1..2])).await;
    assert_eq!(counts(), [("peers", 0), ("services", 1), ("guests", 253)]);
    // Whoever takes them all back has to know that they are gone, and not that something else is.
    host.with(|s| s.addresses.clear());
    assert!(matches!(perform(&host, &grants(&three)).await, Err(OperationError::NoAddress(..))));
    done(&host, grants(&[])).await;
    assert_eq!(counts(), [("peers", 0), ("services", 0), ("guests", 253)]);
}

/// The host would put its own address on what it forwards for another network, or let that network's hosts in as guests.
#[tokio::test]
async fn rules_and_grants_are_about_the_bridges_own_subnet_only() {
    let host = Double::default();
    let dual = Subnet { ipv6: Some("fd12:3456:789a::".parse().unwrap()), ..subnet() };
    done(&host, bridge(ONE, "bbabcdef")).await;
    done(&host, nat("bbabcdef")).await;
    let index = host.with(|s| s.named("bbabcdef").unwrap().index);
    let others = [
        Subnet { gateway: Ipv4Addr::new(192, 168, 0, 1), prefix: 16, ipv6: None },
        Subnet { gateway: Ipv4Addr::new(172, 16, 0, 9), ..subnet() },
        Subnet { prefix: 23, ..subnet() },
    ];
    let grant = Grant { from: TapNumber(0), to: GrantTarget::Tap(TapNumber(1)) };
    let about = |subnet| {
        let (instance, bridge): (_, messages::ids::InterfaceName) = (ONE, "bbabcdef".parse().unwrap());
        [
            PrivilegedOperation::EnsureNat { instance, bridge: bridge.clone(), subnet },
            PrivilegedOperation::SetGrants { instance, bridge, subnet, grants: vec![grant] },
        ]
    };
    host.with(|s| s.calls.clear());
    for operation in others.into_iter().flat_map(about) {
        let refused = perform(&host, &operation).await;
        assert!(matches!(refused, Err(OperationError::NoAddress(..))), "{operation:?}: {refused:?}");
    }
    let [nat_of_dual, grants_of_dual] = about(dual);
    let refused = perform(&host, &nat_of_dual).await;
    assert!(matches!(refused, Err(OperationError::NoAddress(_, std::net::IpAddr::V6(_)))), "{refused:?}");
    assert!(host.with(|s| s.changes().is_empty()));
    // A host without IPv6: the bridge has none of it, and a grant is for what there is.
    done(&host, grants_of_dual).await;
    let names = PrivilegedOperation::BindDns { instance: ONE, bridge: "bbabcdef".parse().unwrap(), subnet: dual };
    assert!(perform(&host, &names).await.is_ok());
    host.with(|s| s.addresses.get_mut(&index).unwrap().push((dual.gateway6().unwrap().into(), 64)));
    for operation in about(dual) {
        done(&host, operation).await;
    }
}

#[tokio::test]
async fn other_firewalls_are_asked_once_and_left_as_they_were() {
    let host = Double::default();
    let theirs = KnownRule { handle: 3, comment: "somebody's".to_owned() };
    let others = KnownRule { handle: 4, comment: "banger:1000:010203 from bb010203".to_owned() };
    let before: BTreeMap<_, _> =
        ["DOCKER-USER", "ufw-before-input"].map(|chain| (chain, vec![theirs.clone(), others.clone()])).into();
    host.with(|s| (s.foreign, s.trusted) = (before.clone(), Some(Vec::new())));
    let comments = |chain| host.with(|s| s.foreign[chain].iter().map(|rule| rule.comment.clone()).collect::<Vec<_>>());
    for name in ["br-old", "br-new", "br-new"] {
        done(&host, bridge(ONE, name)).await;
        done(&host, nat(name)).await;
        let from_and_to = ["from", "to"].map(|way| format!("banger:1000:abcdef {way} {name}"));
        let found = [&theirs, &others].map(|rule| rule.comment.clone());
        assert_eq!(comments("DOCKER-USER"), [&found[..], &from_and_to].concat());
        assert_eq!(comments("ufw-before-input"), [&found[..], &from_and_to[..1]].concat());
        assert!(host.with(|s| s.trusted.iter().flatten().all(|trusted| trusted == name)), "the former is taken back");
    }
    assert_eq!(host.with(|s| s.trusted.clone().map_or(0, |names| names.len())), 2);
    assert_eq!(host.with(|s| s.changes().iter().filter(|call| call.starts_with("change_foreign")).count()), 4);
    done(&host, PrivilegedOperation::RemoveInstance { instance: ONE }).await;
    assert_eq!(host.with(|s| (s.foreign.clone(), s.trusted.clone())), (before, Some(Vec::new())));
}

#[tokio::test]
async fn rules_that_are_there_are_not_written_again() {
    let host = Double::default();
    done(&host, bridge(ONE, "bbabcdef")).await;
    for reply in [PrivilegedReply::Rewritten, PrivilegedReply::Done] {
        assert_eq!(perform(&host, &nat("bbabcdef")).await.unwrap(), reply);
    }
}
