//! Writes the expressions of a rule, as nf_tables' little machine takes them: load into a register, then compare.
//!
//! The numbers are those of `linux/netfilter/nf_tables.h`. Attributes are in network byte order; registers hold what a
//! packet holds.

use super::attributes::Attributes;
use super::encode::{padded, register_width};
use super::{Direction, Expression, Family, Load, Matches, Passage, Verdict};
use crate::privileged::validate::mask6;
use std::net::{Ipv4Addr, Ipv6Addr};

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const REGISTER: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
/// `NFT_REG32_00`: the first of the four-byte registers, of which a lookup's parts take as many as they need.
const REGISTER_NARROW: u32 = 8;
/// `NF_CT_STATE_BIT`: established 2, related 4; the register is in the host's byte order.
const STATES: u32 = 2 | 4;

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const PAYLOAD_LINK: u32 = 0;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const ETHER_SOURCE: u32 = 6;
const ETHER_TYPE: u32 = 12;
const IPV4_SOURCE: u32 = 12;
const IPV4_DESTINATION: u32 = 16;
const IPV6_SOURCE: u32 = 8;
const IPV6_DESTINATION: u32 = 24;
/// Where the last four bytes of an IPv6 address begin.
const IPV6_END: u32 = 12;
/// RFC 826, with hardware addresses of six bytes and protocol addresses of four.
const ARP_SENDER_MAC: u32 = 8;
const ARP_SENDER_IPV4: u32 = 14;
const ARP_ETHERNET_TO_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const TRANSPORT_DESTINATION: u32 = 2;
const ICMP_REDIRECT: u8 = 5;
const TCP_FLAGS: u32 = 13;
const TCP_SYN: u8 = 2;
const TCP_SYN_OR_RST: u8 = 6;
const TCP_OPTION_MSS: u8 = 2;
const RT_TCP_MSS: u32 = 3;

/// Appends one expression to a rule's list.
pub(super) fn append(list: &mut Attributes<'_>, expression: &Expression) {
    match expression {
        Expression::InputInterface(matches, name) => {
            list.meta(META_IIFNAME, REGISTER);
            list.compare(*matches, &padded(name));
        }
        Expression::InputInterfaces(matches, prefix) => {
            list.meta(META_IIFNAME, REGISTER);
            // A comparison of fewer bytes than were loaded looks at the first ones.
            list.compare(*matches, prefix.as_bytes());
        }
        Expression::OutputInterface(matches, name) => {
            list.meta(META_OIFNAME, REGISTER);
            list.compare(*matches, &padded(name));
        }
        Expression::Family(matches, family) => {
            list.meta(META_NFPROTO, REGISTER);
            list.compare(*matches, &[if *family == Family::Ipv4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 }]);
        }
        Expression::EtherType(kind) => {
            list.payload(PAYLOAD_LINK, ETHER_TYPE, 2, REGISTER);
            list.compare(Matches::Is, &(*kind as u16).to_be_bytes());
        }
        Expression::ArpForIpv4 => {
            let length = u32::try_from(ARP_ETHERNET_TO_IPV4.len()).expect("six");
            list.payload(PAYLOAD_NETWORK, 0, length, REGISTER);
            list.compare(Matches::Is, &ARP_ETHERNET_TO_IPV4);
        }
        Expression::Source(matches, network, prefix) => list.network(IPV4_SOURCE, *matches, *network, *prefix),
        Expression::Destination(matches, network, prefix) => {
            list.network(IPV4_DESTINATION, *matches, *network, *prefix);
        }
        Expression::Source6(matches, network, prefix) => list.network6(IPV6_SOURCE, *matches, *network, *prefix),
        Expression::Destination6(matches, network, prefix) => {
            list.network6(IPV6_DESTINATION, *matches, *network, *prefix);
        }
        Expression::Protocol(protocol) => {
            list.meta(META_L4PROTO, REGISTER);
            list.compare(Matches::Is, &[*protocol as u8]);
        }
        Expression::Icmpv6(message) => list.transport_byte(0, *message as u8),
        Expression::IcmpRedirect => list.transport_byte(0, ICMP_REDIRECT),
        Expression::DestinationPort(port) => {
            list.payload(PAYLOAD_TRANSPORT, TRANSPORT_DESTINATION, 2, REGISTER);
            list.compare(Matches::Is, &port.to_be_bytes());
        }
        Expression::Member(loads, set) => list.member(loads, set),
        Expression::Established => {
            list.element("ct", |a| {
                a.number(1, REGISTER);
                a.number(2, 0); // NFT_CT_STATE
            });
            list.mask(&STATES.to_ne_bytes());
            list.compare(Matches::IsNot, &[0; 4]);
        }
        Expression::Reply => {
            list.element("ct", |a| {
                a.number(1, REGISTER);
                a.number(2, 1); // NFT_CT_DIRECTION
            });
            list.compare(Matches::Is, &[1]); // IP_CT_DIR_REPLY
        }
        Expression::ClampSegments => list.clamp_segments(),
        Expression::Masquerade => list.element("masq", |_| ()),
        Expression::End(verdict) => list.element("immediate", |a| {
            a.number(1, REGISTER_VERDICT);
            a.nested(2, |data| {
                data.nested(2, |v| v.number(1, if *verdict == Verdict::Accept { 1 } else { 0 }));
            });
        }),
    }
}

/// Appends what accepts a direction of a bridge's traffic, in expressions that `iptables` can read back: else it would refuse
/// the whole table from then on.
pub(super) fn passage(list: &mut Attributes<'_>, rule: &Passage) {
    let key = match rule.direction {
        Direction::FromGuests => META_IIFNAME,
        Direction::ToGuests => META_OIFNAME,
    };
    list.meta(key, REGISTER);
    list.compare(Matches::Is, &[rule.bridge.as_str().as_bytes(), &[0]].concat());
    list.element("counter", |_| ());
    append(list, &Expression::End(Verdict::Accept));
}

impl Attributes<'_> {
    fn element(&mut self, name: &str, body: impl FnOnce(&mut Attributes<'_>)) {
        self.nested(1, |element| {
            element.text(1, name);
            element.nested(2, body);
        });
    }

    fn meta(&mut self, key: u32, register: u32) {
        self.element("meta", |a| {
            a.number(1, register);
            a.number(2, key);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        self.element("payload", |a| {
            a.number(1, register);
            a.number(2, base);
            a.number(3, offset);
            a.number(4, length);
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        self.element("bitwise", |a| {
            a.number(1, REGISTER);
            a.number(2, REGISTER);
            a.number(3, u32::try_from(mask.len()).expect("at most sixteen"));
            a.nested(4, |data| data.bytes(1, mask));
            a.nested(5, |data| data.bytes(1, &vec![0; mask.len()]));
        });
    }

    fn compare(&mut self, matches: Matches, value: &[u8]) {
        self.element("cmp", |a| {
            a.number(1, REGISTER);
            a.number(2, if matches == Matches::Is { 0 } else { 1 });
            a.nested(3, |data| data.bytes(1, value));
        });
    }

    fn network(&mut self, offset: u32, matches: Matches, network: Ipv4Addr, prefix: u8) {
        self.payload(PAYLOAD_NETWORK, offset, 4, REGISTER);
        if prefix < 32 {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            self.mask(&mask.to_be_bytes());
        }
        self.compare(matches, &network.octets());
    }

    fn network6(&mut self, offset: u32, matches: Matches, network: Ipv6Addr, prefix: u8) {
        self.payload(PAYLOAD_NETWORK, offset, 16, REGISTER);
        if prefix < 128 {
            self.mask(&mask6(prefix).to_be_bytes());
        }
        self.compare(matches, &network.octets());
    }

    fn transport_byte(&mut self, offset: u32, value: u8) {
        self.payload(PAYLOAD_TRANSPORT, offset, 1, REGISTER);
        self.compare(Matches::Is, &[value]);
    }

    fn member(&mut self, loads: &[Load], set: &str) {
        let mut register = REGISTER_NARROW;
        for load in loads {
            let width = match load {
                Load::InputInterface => {
                    self.meta(META_IIFNAME, register);
                    16
                }
                Load::Protocol => {
                    self.meta(META_L4PROTO, register);
                    1
                }
                Load::EtherSource => self.part(PAYLOAD_LINK, ETHER_SOURCE, 6, register),
                Load::Ipv4Source => self.part(PAYLOAD_NETWORK, IPV4_SOURCE, 4, register),
                Load::Ipv4Destination => self.part(PAYLOAD_NETWORK, IPV4_DESTINATION, 4, register),
                Load::Ipv6SourceEnd => self.part(PAYLOAD_NETWORK, IPV6_SOURCE + IPV6_END, 4, register),
                Load::Ipv6DestinationEnd => self.part(PAYLOAD_NETWORK, IPV6_DESTINATION + IPV6_END, 4, register),
                Load::ArpSenderMac => self.part(PAYLOAD_NETWORK, ARP_SENDER_MAC, 6, register),
                Load::ArpSenderIpv4 => self.part(PAYLOAD_NETWORK, ARP_SENDER_IPV4, 4, register),
                Load::DestinationPort => self.part(PAYLOAD_TRANSPORT, TRANSPORT_DESTINATION, 2, register),
            };
            register += u32::try_from(register_width(width) / 4).expect("at most four registers");
        }
        self.element("lookup", |a| {
            a.text(1, set);
            a.number(2, REGISTER_NARROW);
        });
    }

    /// Loads a part of the packet, and says how long it is.
    fn part(&mut self, base: u32, offset: u32, length: u8, register: u32) -> usize {
        self.payload(base, offset, u32::from(length), register);
        usize::from(length)
    }

    /// The maximum segment size of a handshake becomes what the route's MTU allows, where that is less.
    fn clamp_segments(&mut self) {
        self.payload(PAYLOAD_TRANSPORT, TCP_FLAGS, 1, REGISTER);
        self.mask(&[TCP_SYN_OR_RST]);
        self.compare(Matches::Is, &[TCP_SYN]);
        self.element("rt", |a| {
            a.number(1, REGISTER);
            a.number(2, RT_TCP_MSS);
        });
        self.element("byteorder", |a| {
            a.number(1, REGISTER);
            a.number(2, REGISTER);
            a.number(3, 1); // NFT_BYTEORDER_HTON
            a.number(4, 2);
            a.number(5, 2);
        });
        self.element("exthdr", |a| {
            a.bytes(2, &[TCP_OPTION_MSS]);
            a.number(3, 2);
            a.number(4, 2);
            a.number(6, 1); // NFT_EXTHDR_OP_TCPOPT
            a.number(7, REGISTER);
        });
    }
}
