//! What the tables of an instance say: each guest as itself and nobody else, out through NAT, answers back in, and of the
//! host only its resolver, its echo and what was granted.
//!
//! A guest is hostile, so each chain ends in a drop of whatever came from it. Guests are kept from each other by isolated
//! bridge ports, which no reload of a firewall undoes; a grant between two of them goes by the host's routing, where the
//! rules here see it.

use super::{
    Chain, ChainKind, EtherType, Expression, Family, Field, Hook, Icmpv6, Layer, Load, Matches, Protocol, Rule, Set,
    Table, Value, Verdict,
};
use crate::privileged::validate::{
    BridgeName, CheckedGrant, CheckedNetwork6, CheckedSubnet, CheckedTarget, Instance, METADATA6, PREFIX6,
};
use Expression::{
    ArpForIpv4, ClampSegments, Destination, Destination6, DestinationPort, End, Established, IcmpRedirect,
    InputInterface, InputInterfaces, Masquerade, Member, OutputInterface, Reply, Source, Source6,
};
use Matches::{Is, IsNot};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Where cloud providers answer with the host's credentials (169.254.169.254), and the rest of its range.
const LINK_LOCAL: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 0, 0), 16);
/// The addresses of the link, which a router must not forward to; it would, where the route's link is another.
const LINK_LOCAL6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
/// The part of a guest's IPv6 address that is not its IPv4 address, which the sets know.
const GUESTS_PREFIX6: u8 = 96;
/// nft's `filter` priority.
const PRIORITY_FILTER: i32 = 0;
/// nft's `srcnat` priority.
const PRIORITY_SOURCE_NAT: i32 = 100;
/// nft's `filter` priority on bridges.
const PRIORITY_BRIDGE_FILTER: i32 = -200;
const DNS_PORT: u16 = 53;
const IPV4: Expression = Expression::Family(Is, Family::Ipv4);
const IPV6: Expression = Expression::Family(Is, Family::Ipv6);

/// Who sits behind which tap.
const GUESTS: &str = "guests";
/// Which guest may reach which other.
const PEERS: &str = "peers";
/// Which guest may reach which port of the host.
const SERVICES: &str = "services";

/// The tables, without grants.
#[must_use]
pub(crate) fn tables(instance: Instance, bridge: &BridgeName, subnet: CheckedSubnet) -> [Table; 2] {
    [host(instance, bridge, subnet), frames(instance, subnet)]
}

/// The sets that hold the grants; they belong to the host's table.
#[must_use]
pub(crate) fn grants(subnet: CheckedSubnet, grants: &[CheckedGrant]) -> [Set; 2] {
    let mut peers = Set { name: PEERS, key: &[Field::Ipv4, Field::Ipv4], elements: Vec::new() };
    let key = &[Field::Ipv4, Field::Protocol, Field::Port];
    let mut services = Set { name: SERVICES, key, elements: Vec::new() };
    for grant in grants {
        let Some(from) = subnet.guest(grant.from) else { continue };
        let from = Value::Ipv4(from);
        match grant.to {
            CheckedTarget::Tap(tap) => {
                peers.elements.extend(subnet.guest(tap).map(|to| vec![from, Value::Ipv4(to)]));
            }
            CheckedTarget::Tcp(port) => {
                services.elements.push(vec![from, Value::Protocol(Protocol::Tcp), Value::Port(port)]);
            }
            CheckedTarget::Udp(port) => {
                services.elements.push(vec![from, Value::Protocol(Protocol::Udp), Value::Port(port)]);
            }
        }
    }
    [peers, services]
}

fn host(instance: Instance, bridge: &BridgeName, subnet: CheckedSubnet) -> Table {
    let from_guests = InputInterface(Is, bridge.interface().clone());
    let to_guests = OutputInterface(Is, bridge.interface().clone());
    let elsewhere = OutputInterface(IsNot, bridge.interface().clone());
    Table {
        layer: Layer::Host,
        name: instance.table(),
        sets: grants(subnet, &[]).into(),
        chains: vec![
            filter("input", Hook::Input, input(&from_guests, subnet)),
            filter("forward", Hook::Forward, forward(&from_guests, &to_guests, subnet)),
            filter("output", Hook::Output, output(&to_guests, subnet)),
            Chain {
                name: "postrouting",
                kind: ChainKind::Nat,
                hook: Hook::Postrouting,
                priority: PRIORITY_SOURCE_NAT,
                rules: masquerade(&from_guests, &elsewhere, subnet),
            },
        ],
    }
}

/// Only what came in by the bridge: neither what the host forwards for others, whatever its source, nor what it sends itself.
/// After routing the kernel still knows where a packet came in since 5.7 (28f8bfd1ac94).
fn masquerade(from_guests: &Expression, elsewhere: &Expression, subnet: CheckedSubnet) -> Vec<Rule> {
    let ipv4 = [IPV4, Source(Is, subnet.network(), subnet.prefix())];
    let ipv6 = subnet.ipv6().map(|ipv6| [IPV6, Source6(Is, ipv6.network(), PREFIX6)]);
    let rule = |[family, source]: [Expression; 2]| {
        Rule(vec![from_guests.clone(), family, source, elsewhere.clone(), Masquerade])
    };
    std::iter::once(ipv4).chain(ipv6).map(rule).collect()
}

fn filter(name: &'static str, hook: Hook, rules: Vec<Rule>) -> Chain {
    Chain { name, kind: ChainKind::Filter, hook, priority: PRIORITY_FILTER, rules }
}

/// What enters the bridge by a tap: IPv4, ARP and, where guests have it, IPv6, from the guest behind that tap and in its own name.
///
/// The set holds every tap that the network has room for, since all of it derives from the tap's number: no guest is ever
/// without its rule, and a lease changes nothing here.
fn frames(instance: Instance, subnet: CheckedSubnet) -> Table {
    let guest = |(name, mac, address)| vec![Value::Interface(name), Value::Mac(mac), Value::Ipv4(address)];
    let set = Set {
        name: GUESTS,
        key: &[Field::Interface, Field::Mac, Field::Ipv4],
        elements: instance.guests(subnet).map(guest).collect(),
    };
    let accept = End(Verdict::Accept);
    let packet = &[Load::InputInterface, Load::EtherSource, Load::Ipv4Source];
    let frame_of_arp = &[Load::InputInterface, Load::EtherSource, Load::ArpSenderIpv4];
    let sender_of_arp = &[Load::InputInterface, Load::ArpSenderMac, Load::ArpSenderIpv4];
    let mut rules = vec![
        Rule(vec![InputInterfaces(IsNot, instance.tap_prefix()), accept.clone()]),
        Rule(vec![Expression::EtherType(EtherType::Ipv4), Member(packet, GUESTS), accept.clone()]),
        Rule(vec![
            Expression::EtherType(EtherType::Arp),
            ArpForIpv4,
            Member(frame_of_arp, GUESTS),
            Member(sender_of_arp, GUESTS),
            accept.clone(),
        ]),
    ];
    if let Some(ipv6) = subnet.ipv6() {
        let packet6 = &[Load::InputInterface, Load::EtherSource, Load::Ipv6SourceEnd];
        let own_network = Source6(Is, ipv6.network(), GUESTS_PREFIX6);
        rules.push(Rule(vec![Expression::EtherType(EtherType::Ipv6), own_network, Member(packet6, GUESTS), accept]));
    }
    rules.push(Rule(vec![End(Verdict::Drop)]));
    let (kind, priority) = (ChainKind::Filter, PRIORITY_BRIDGE_FILTER);
    let chain = Chain { name: "prerouting", kind, hook: Hook::Prerouting, priority, rules };
    Table { layer: Layer::Bridge, name: instance.table(), sets: vec![set], chains: vec![chain] }
}

/// From guests to the host: only answers, DNS and echo at the gateway's address, and the ports that were granted there. What a guest
/// began goes by the ports alone: a flow outlives its grant, and the guest that had the address before.
fn input(from_guests: &Expression, subnet: CheckedSubnet) -> Vec<Rule> {
    let to_gateway = |what: Vec<Expression>| {
        let mut rule = vec![from_guests.clone(), IPV4, Destination(Is, subnet.gateway(), 32)];
        rule.extend(what);
        rule.push(End(Verdict::Accept));
        Rule(rule)
    };
    let mut rules = honest_source(from_guests, subnet);
    rules.extend([
        Rule(vec![from_guests.clone(), Established, Reply, End(Verdict::Accept)]),
        to_gateway(vec![Expression::Protocol(Protocol::Icmp)]),
        to_gateway(vec![Expression::Protocol(Protocol::Udp), DestinationPort(DNS_PORT)]),
        to_gateway(vec![Expression::Protocol(Protocol::Tcp), DestinationPort(DNS_PORT)]),
        to_gateway(vec![Member(&[Load::Ipv4Source, Load::Protocol, Load::DestinationPort], SERVICES)]),
    ]);
    if let Some(ipv6) = subnet.ipv6() {
        rules.extend(input6(from_guests, ipv6));
    }
    rules.push(Rule(vec![from_guests.clone(), End(Verdict::Drop)]));
    rules
}

/// The same by IPv6, but names: guests ask for those by IPv4. Where the gateway lives they may ask, wherever that question goes;
/// what they say of where others live, or of routers, is not heard.
fn input6(from_guests: &Expression, ipv6: CheckedNetwork6) -> [Rule; 3] {
    let icmp = |message| [Expression::Protocol(Protocol::Icmpv6), Expression::Icmpv6(message)];
    let rule = |what: &[Expression]| Rule([&[from_guests.clone(), IPV6], what, &[End(Verdict::Accept)]].concat());
    let to_gateway = Destination6(Is, ipv6.gateway(), 128);
    let granted = Member(&[Load::Ipv6SourceEnd, Load::Protocol, Load::DestinationPort], SERVICES);
    [
        rule(&icmp(Icmpv6::NeighbourSolicitation)),
        rule(&[&[to_gateway.clone()][..], &icmp(Icmpv6::EchoRequest)].concat()),
        rule(&[to_gateway, granted]),
    ]
}

/// Through the host: guests out, answers in, between guests only what was granted: answers as long as the grant.
fn forward(from_guests: &Expression, to_guests: &Expression, subnet: CheckedSubnet) -> Vec<Rule> {
    let mut rules = honest_source(from_guests, subnet);
    let between = |what: &[Expression]| {
        Rule([&[from_guests.clone(), to_guests.clone(), IPV4], what, &[End(Verdict::Accept)]].concat())
    };
    let clamp = |way: &Expression| Rule(vec![way.clone(), Expression::Protocol(Protocol::Tcp), ClampSegments]);
    rules.extend([
        Rule(vec![from_guests.clone(), IPV4, Destination(Is, LINK_LOCAL.0, LINK_LOCAL.1), End(Verdict::Drop)]),
        between(&[Established, Member(&[Load::Ipv4Destination, Load::Ipv4Source], PEERS)]),
        between(&[Member(&[Load::Ipv4Source, Load::Ipv4Destination], PEERS)]),
    ]);
    if let Some(ipv6) = subnet.ipv6() {
        rules.extend(forward6(from_guests, to_guests, ipv6));
    }
    rules.extend([
        Rule(vec![from_guests.clone(), to_guests.clone(), End(Verdict::Drop)]),
        clamp(from_guests),
        clamp(to_guests),
        Rule(vec![from_guests.clone(), End(Verdict::Accept)]),
        Rule(vec![to_guests.clone(), Established, End(Verdict::Accept)]),
        Rule(vec![to_guests.clone(), End(Verdict::Drop)]),
    ]);
    rules
}

/// The same by IPv6.
fn forward6(from_guests: &Expression, to_guests: &Expression, ipv6: CheckedNetwork6) -> Vec<Rule> {
    let never = |(network, prefix)| {
        Rule(vec![from_guests.clone(), IPV6, Destination6(Is, network, prefix), End(Verdict::Drop)])
    };
    let between = |what: &[Expression]| {
        Rule([&[from_guests.clone(), to_guests.clone(), IPV6], what, &[End(Verdict::Accept)]].concat())
    };
    let mut rules: Vec<Rule> = METADATA6.into_iter().chain([LINK_LOCAL6]).map(never).collect();
    let granted = Member(&[Load::Ipv6SourceEnd, Load::Ipv6DestinationEnd], PEERS);
    let granted_back = Member(&[Load::Ipv6DestinationEnd, Load::Ipv6SourceEnd], PEERS);
    let guests = Destination6(Is, ipv6.network(), GUESTS_PREFIX6);
    rules.push(between(&[Established, guests.clone(), granted_back]));
    rules.push(between(&[guests, granted]));
    rules
}

/// From the host to guests: whatever it likes, but for the advice to talk to another guest directly, which they cannot.
fn output(to_guests: &Expression, subnet: CheckedSubnet) -> Vec<Rule> {
    let icmp = [IPV4, Expression::Protocol(Protocol::Icmp), IcmpRedirect];
    let icmp6 = [IPV6, Expression::Protocol(Protocol::Icmpv6), Expression::Icmpv6(Icmpv6::Redirect)];
    let rule = |what: [Expression; 3]| Rule([&[to_guests.clone()][..], &what, &[End(Verdict::Drop)]].concat());
    std::iter::once(icmp).chain(subnet.ipv6().map(|_| icmp6)).map(rule).collect()
}

/// Guests have an address of the subnet, one of the IPv6 network where there is one, and nothing else.
fn honest_source(from_guests: &Expression, subnet: CheckedSubnet) -> Vec<Rule> {
    let ipv6 = match subnet.ipv6() {
        None => vec![Expression::Family(IsNot, Family::Ipv4)],
        Some(ipv6) => vec![IPV6, Source6(IsNot, ipv6.network(), GUESTS_PREFIX6)],
    };
    let ipv4 = vec![IPV4, Source(IsNot, subnet.network(), subnet.prefix())];
    let rule = |what: Vec<Expression>| Rule([std::slice::from_ref(from_guests), &what, &[End(Verdict::Drop)]].concat());
    [ipv6, ipv4].map(rule).into()
}
