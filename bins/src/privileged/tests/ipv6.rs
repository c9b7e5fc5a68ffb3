//! IPv6 of guests: what is done for it on the host, and what the rules then say.

use super::double::Double;
use crate::privileged::host::Route;
use crate::privileged::ops::{OperationError, Operations};
use messages::ids::InstanceId;
use messages::privileged::{PrivilegedOperation, Subnet, default_bridge_name};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ONE: InstanceId = InstanceId([0xab, 0xcd, 0xef]);
const DUAL: Subnet = Subnet {
    gateway: Ipv4Addr::new(172, 16, 0, 1),
    prefix: 24,
    ipv6: Some(Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0)),
};

fn operations(subnet: Subnet) -> [PrivilegedOperation; 2] {
    let (instance, bridge) = (ONE, default_bridge_name(ONE));
    [
        PrivilegedOperation::EnsureBridge { instance, bridge: bridge.clone(), subnet },
        PrivilegedOperation::EnsureNat { instance, bridge, subnet },
    ]
}

async fn perform(host: &Double, subnet: Subnet) -> Result<(), OperationError> {
    for operation in operations(subnet) {
        Operations::new(host.clone(), 1000).perform(&operation).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_bridge_has_both_addresses_and_forwarding_comes_last() {
    let host = Double::default();
    perform(&host, DUAL).await.unwrap();
    insta::assert_snapshot!(host.with(|s| s.changes().join("\n")), @r"
    create_bridge bbabcdef
    change_link bbabcdef alias=banger:1000:abcdef address=[02, ab, cd, ef, ff, ff]
    allow_ipv6 bbabcdef
    add_address bbabcdef 172.16.0.1/24
    add_address bbabcdef fd12:3456:789a::1/64
    change_link bbabcdef up
    replace_tables banger_1000_abcdef
    answer_for_guests bbabcdef
    know_neighbours bbabcdef 253
    enable_forwarding
    enable_forwarding6 bbabcdef
    ");
    // Again, nothing of the addresses changes; and without IPv6 its address goes.
    host.with(|s| s.calls.clear());
    perform(&host, DUAL).await.unwrap();
    assert!(host.with(|s| !s.changes().iter().any(|call| call.contains("address"))));
    perform(&host, Subnet { ipv6: None, ..DUAL }).await.unwrap();
    assert!(host.with(|s| s.changes().contains(&"remove_address bbabcdef fd12:3456:789a::1/64")));
}

#[tokio::test]
async fn the_rules_know_guests_by_the_end_of_their_address() {
    let host = Double::default();
    perform(&host, DUAL).await.unwrap();
    let rules = host.with(|s| s.tables.values().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    let about_ipv6: Vec<&str> =
        rules.lines().filter(|line| line.contains("ip6") || line.contains("ipv6")).map(str::trim).collect();
    insta::assert_snapshot!(about_ipv6.join("\n"), @r#"
    iifname "bbabcdef" meta nfproto ipv6 ip6 saddr != fd12:3456:789a::/96 drop
    iifname "bbabcdef" meta nfproto ipv6 meta l4proto ipv6-icmp icmpv6 type nd-neighbor-solicit accept
    iifname "bbabcdef" meta nfproto ipv6 ip6 daddr fd12:3456:789a::1/128 meta l4proto ipv6-icmp icmpv6 type echo-request accept
    iifname "bbabcdef" meta nfproto ipv6 ip6 daddr fd12:3456:789a::1/128 @nh,160,32 . meta l4proto . th dport @services accept
    iifname "bbabcdef" meta nfproto ipv6 ip6 saddr != fd12:3456:789a::/96 drop
    iifname "bbabcdef" meta nfproto ipv6 ip6 daddr fd00:ec2::/32 drop
    iifname "bbabcdef" meta nfproto ipv6 ip6 daddr fd20:ce::/32 drop
    iifname "bbabcdef" meta nfproto ipv6 ip6 daddr fe80::/10 drop
    iifname "bbabcdef" oifname "bbabcdef" meta nfproto ipv6 ct state established,related ip6 daddr fd12:3456:789a::/96 @nh,288,32 . @nh,160,32 @peers accept
    iifname "bbabcdef" oifname "bbabcdef" meta nfproto ipv6 ip6 daddr fd12:3456:789a::/96 @nh,160,32 . @nh,288,32 @peers accept
    oifname "bbabcdef" meta nfproto ipv6 meta l4proto ipv6-icmp icmpv6 type nd-redirect drop
    iifname "bbabcdef" meta nfproto ipv6 ip6 saddr fd12:3456:789a::/64 oifname != "bbabcdef" masquerade
    ether type ip6 ip6 saddr fd12:3456:789a::/96 iifname . ether saddr . @nh,160,32 @guests accept
    "#);
}

#[tokio::test]
async fn a_network_of_the_hosts_is_not_taken_over() {
    let host = Double::default();
    let route = |destination: &str, prefix| Route {
        destination: IpAddr::V6(destination.parse().unwrap()),
        prefix,
        interface: Some(9),
    };
    // Ways to everywhere, and networks of others'.
    host.with(|s| s.routes = vec![route("::", 0), route("fc00::", 7), route("fd12:3456:789b::", 48)]);
    perform(&host, DUAL).await.unwrap();
    for theirs in [route("fd12:3456:789a::", 48), route("fd12:3456:789a::7", 128), route("fd12:3456:789a::", 64)] {
        host.with(|s| s.routes = vec![theirs]);
        let error = perform(&host, DUAL).await.unwrap_err();
        assert!(matches!(error, OperationError::Overlap { .. }), "{theirs:?}");
    }
}

#[tokio::test]
async fn networks_that_are_the_worlds_or_a_clouds_are_refused() {
    let host = Double::default();
    for network in ["2001:db8::", "fc00::", "fe80::", "fd00:ec2::", "fd20:ce::", "fd12::1"] {
        let subnet = Subnet { ipv6: Some(network.parse().unwrap()), ..DUAL };
        assert!(matches!(perform(&host, subnet).await, Err(OperationError::Invalid(_))), "{network}");
    }
    assert!(host.with(|s| s.calls.is_empty()));
}
