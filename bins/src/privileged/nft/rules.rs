//! What the table of an instance says: out through NAT, answers back in, and of the host only its resolver and its echo.
//!
//! A guest is hostile, so each chain ends in a drop of whatever came from the bridge. Isolation of guests from each other
//! rests on the isolated bridge ports; these rules close the way round by routing.

use super::{Chain, ChainKind, Expression, Family, Hook, Matches, Protocol, Rule, Table, Verdict};
use crate::privileged::validate::{BridgeName, CheckedSubnet, Instance};
use Expression::{Destination, DestinationPort, End, Established, InputInterface, Masquerade, OutputInterface, Source};
use Matches::{Is, IsNot};
use std::net::Ipv4Addr;

/// Where cloud providers answer with the host's credentials (169.254.169.254), and the rest of its range.
const LINK_LOCAL: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 0, 0), 16);
/// nft's `filter` priority.
const PRIORITY_FILTER: i32 = 0;
/// nft's `srcnat` priority.
const PRIORITY_SOURCE_NAT: i32 = 100;
const DNS_PORT: u16 = 53;
const IPV4: Expression = Expression::Family(Is, Family::Ipv4);

/// The whole table.
#[must_use]
pub(crate) fn table(instance: Instance, bridge: &BridgeName, subnet: CheckedSubnet) -> Table {
    let from_guests = InputInterface(Is, bridge.interface().clone());
    let to_guests = OutputInterface(Is, bridge.interface().clone());
    let elsewhere = OutputInterface(IsNot, bridge.interface().clone());
    Table {
        name: instance.table(),
        chains: vec![
            filter("input", Hook::Input, input(&from_guests, subnet)),
            filter("forward", Hook::Forward, forward(&from_guests, &to_guests, subnet)),
            Chain {
                name: "postrouting",
                kind: ChainKind::Nat,
                hook: Hook::Postrouting,
                priority: PRIORITY_SOURCE_NAT,
                rules: vec![Rule(vec![IPV4, Source(Is, subnet.network(), subnet.prefix()), elsewhere, Masquerade])],
            },
        ],
    }
}

fn filter(name: &'static str, hook: Hook, rules: Vec<Rule>) -> Chain {
    Chain { name, kind: ChainKind::Filter, hook, priority: PRIORITY_FILTER, rules }
}

/// From guests to the host: only answers, DNS and echo at the gateway's address.
fn input(from_guests: &Expression, subnet: CheckedSubnet) -> Vec<Rule> {
    let to_gateway = |protocol: Protocol, port: Option<u16>| {
        let mut rule =
            vec![from_guests.clone(), IPV4, Destination(Is, subnet.gateway(), 32), Expression::Protocol(protocol)];
        rule.extend(port.map(DestinationPort));
        rule.push(End(Verdict::Accept));
        Rule(rule)
    };
    let mut rules = honest_source(from_guests, subnet);
    rules.extend([
        Rule(vec![from_guests.clone(), Established, End(Verdict::Accept)]),
        to_gateway(Protocol::Icmp, None),
        to_gateway(Protocol::Udp, Some(DNS_PORT)),
        to_gateway(Protocol::Tcp, Some(DNS_PORT)),
        Rule(vec![from_guests.clone(), End(Verdict::Drop)]),
    ]);
    rules
}

/// Through the host: guests out, answers in, nothing between guests.
fn forward(from_guests: &Expression, to_guests: &Expression, subnet: CheckedSubnet) -> Vec<Rule> {
    let mut rules = honest_source(from_guests, subnet);
    rules.extend([
        Rule(vec![from_guests.clone(), IPV4, Destination(Is, LINK_LOCAL.0, LINK_LOCAL.1), End(Verdict::Drop)]),
        Rule(vec![from_guests.clone(), to_guests.clone(), End(Verdict::Drop)]),
        Rule(vec![from_guests.clone(), End(Verdict::Accept)]),
        Rule(vec![to_guests.clone(), Established, End(Verdict::Accept)]),
        Rule(vec![to_guests.clone(), End(Verdict::Drop)]),
    ]);
    rules
}

/// Guests have an IPv4 address of the subnet and nothing else; IPv6 is not given to them, so none may come from them.
fn honest_source(from_guests: &Expression, subnet: CheckedSubnet) -> Vec<Rule> {
    vec![
        Rule(vec![from_guests.clone(), Expression::Family(IsNot, Family::Ipv4), End(Verdict::Drop)]),
        Rule(vec![from_guests.clone(), IPV4, Source(IsNot, subnet.network(), subnet.prefix()), End(Verdict::Drop)]),
    ]
}
