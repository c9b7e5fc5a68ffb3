//! Tables as data. They print themselves in nft's own syntax, so that tests and logs can be read.

use messages::ids::InterfaceName;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// One table of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub layer: Layer,
    pub name: String,
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    /// Packets to, from and through the host: nft's `inet`.
    Host,
    /// Frames that enter a bridge: nft's `bridge`.
    Bridge,
}

/// A named set of concatenated values; rules look things up in it in constant time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub name: &'static str,
    pub key: &'static [Field],
    /// Each has one value per field of the key, in its order.
    pub elements: Vec<Vec<Value>>,
}

/// What one part of a set's key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Interface,
    Mac,
    Ipv4,
    Protocol,
    Port,
}

/// One part of an element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Interface(InterfaceName),
    Mac([u8; 6]),
    Ipv4(Ipv4Addr),
    Protocol(Protocol),
    Port(u16),
}

/// What a lookup reads from the packet, for one part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    InputInterface,
    EtherSource,
    /// Holds only where the packet is known to be IPv4; so do the next three.
    Ipv4Source,
    Ipv4Destination,
    Protocol,
    DestinationPort,
    /// The last four bytes of an IPv6 address, which are the guest's IPv4 address; so is the next. Both hold only where the
    /// packet is known to be IPv6, and say who it is only where the rest of the address is that of the guests' network.
    Ipv6SourceEnd,
    Ipv6DestinationEnd,
    /// Holds only after `ArpForIpv4`; so does the next.
    ArpSenderMac,
    ArpSenderIpv4,
}

/// A base chain; its policy is to accept, since it sees the whole host's traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub name: &'static str,
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
    pub rules: Vec<Rule>,
}

/// What a chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChainKind {
    Filter,
    Nat,
}

/// Where a chain sits. The values are the kernel's `NF_INET_*` (`linux/netfilter.h`), and `NF_BR_*` of the same meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// Expressions that must all match, the last of which says what happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule(pub Vec<Expression>);

/// Whether a comparison wants the same or something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Matches {
    Is,
    IsNot,
}

/// The network layer's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Ipv4,
    Ipv6,
}

/// What a frame says that it carries. The values are IEEE's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EtherType {
    Ipv4 = 0x0800,
    Arp = 0x0806,
    Ipv6 = 0x86dd,
}

/// The transport layer's protocol. The values are IANA's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Icmp = 1,
    Tcp = 6,
    Udp = 17,
    Icmpv6 = 58,
}

/// A message of ICMPv6. The values are IANA's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Icmpv6 {
    EchoRequest = 128,
    NeighbourSolicitation = 135,
    Redirect = 137,
}

/// How a rule ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Drop,
}

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expression {
    InputInterface(Matches, InterfaceName),
    /// Every interface whose name begins so.
    InputInterfaces(Matches, String),
    OutputInterface(Matches, InterfaceName),
    Family(Matches, Family),
    /// As the frame says, VLAN tags included: a tagged frame has another type.
    EtherType(EtherType),
    /// ARP that maps Ethernet to IPv4 addresses; holds only after `EtherType(Arp)`.
    ArpForIpv4,
    /// Holds only after `Family(Is, Ipv4)`: it reads the IPv4 header.
    Source(Matches, Ipv4Addr, u8),
    /// As `Source`.
    Destination(Matches, Ipv4Addr, u8),
    /// Holds only after `Family(Is, Ipv6)` or `EtherType(Ipv6)`: it reads the IPv6 header.
    Source6(Matches, Ipv6Addr, u8),
    /// As `Source6`.
    Destination6(Matches, Ipv6Addr, u8),
    Protocol(Protocol),
    /// Holds only after `Protocol(Icmp)`.
    IcmpRedirect,
    /// Holds only after `Protocol(Icmpv6)`.
    Icmpv6(Icmpv6),
    /// Holds only after `Protocol` of TCP or UDP.
    DestinationPort(u16),
    /// What the packet says is an element of the set.
    Member(&'static [Load], &'static str),
    /// Established or related.
    Established,
    /// Against the direction in which the flow began.
    Reply,
    /// A TCP handshake that promises larger segments than the way out takes is made to promise less.
    ClampSegments,
    Masquerade,
    End(Verdict),
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layer = match self.layer {
            Layer::Host => "inet",
            Layer::Bridge => "bridge",
        };
        writeln!(f, "table {layer} {} {{", self.name)?;
        for set in &self.sets {
            let key: Vec<&str> = set.key.iter().map(|field| field.word()).collect();
            let count = set.elements.len();
            writeln!(f, "  set {} {{ type {}; {count} elements }}", set.name, key.join(" . "))?;
        }
        for chain in &self.chains {
            let kind = match chain.kind {
                ChainKind::Filter => "filter",
                ChainKind::Nat => "nat",
            };
            let hook = format!("{:?}", chain.hook).to_lowercase();
            writeln!(f, "  chain {} {{", chain.name)?;
            writeln!(f, "    type {kind} hook {hook} priority {}; policy accept;", chain.priority)?;
            for rule in &chain.rules {
                writeln!(f, "    {rule}")?;
            }
            writeln!(f, "  }}")?;
        }
        write!(f, "}}")
    }
}

impl Field {
    fn word(self) -> &'static str {
        match self {
            Self::Interface => "ifname",
            Self::Mac => "ether_addr",
            Self::Ipv4 => "ipv4_addr",
            Self::Protocol => "inet_proto",
            Self::Port => "inet_service",
        }
    }
}

impl Load {
    fn words(self) -> &'static str {
        match self {
            Self::InputInterface => "iifname",
            Self::EtherSource => "ether saddr",
            Self::Ipv4Source => "ip saddr",
            Self::Ipv4Destination => "ip daddr",
            Self::Protocol => "meta l4proto",
            Self::DestinationPort => "th dport",
            Self::Ipv6SourceEnd => "@nh,160,32",
            Self::Ipv6DestinationEnd => "@nh,288,32",
            Self::ArpSenderMac => "arp saddr ether",
            Self::ArpSenderIpv4 => "arp saddr ip",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&words.join(" "))
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |matches: &Matches| match matches {
            Matches::Is => "",
            Matches::IsNot => "!= ",
        };
        match self {
            Self::InputInterface(m, name) => write!(f, "iifname {}\"{name}\"", not(m)),
            Self::InputInterfaces(m, prefix) => write!(f, "iifname {}\"{prefix}*\"", not(m)),
            Self::OutputInterface(m, name) => write!(f, "oifname {}\"{name}\"", not(m)),
            Self::Family(m, Family::Ipv4) => write!(f, "meta nfproto {}ipv4", not(m)),
            Self::Family(m, Family::Ipv6) => write!(f, "meta nfproto {}ipv6", not(m)),
            Self::EtherType(EtherType::Ipv4) => write!(f, "ether type ip"),
            Self::EtherType(EtherType::Arp) => write!(f, "ether type arp"),
            Self::EtherType(EtherType::Ipv6) => write!(f, "ether type ip6"),
            Self::ArpForIpv4 => write!(f, "arp htype 1 arp ptype ip"),
            Self::Source(m, network, prefix) => write!(f, "ip saddr {}{network}/{prefix}", not(m)),
            Self::Destination(m, network, prefix) => write!(f, "ip daddr {}{network}/{prefix}", not(m)),
            Self::Source6(m, network, prefix) => write!(f, "ip6 saddr {}{network}/{prefix}", not(m)),
            Self::Destination6(m, network, prefix) => write!(f, "ip6 daddr {}{network}/{prefix}", not(m)),
            Self::Protocol(Protocol::Icmpv6) => write!(f, "meta l4proto ipv6-icmp"),
            Self::Protocol(protocol) => write!(f, "meta l4proto {}", format!("{protocol:?}").to_lowercase()),
            Self::IcmpRedirect => write!(f, "icmp type redirect"),
            Self::Icmpv6(Icmpv6::EchoRequest) => write!(f, "icmpv6 type echo-request"),
            Self::Icmpv6(Icmpv6::NeighbourSolicitation) => write!(f, "icmpv6 type nd-neighbor-solicit"),
            Self::Icmpv6(Icmpv6::Redirect) => write!(f, "icmpv6 type nd-redirect"),
            Self::DestinationPort(port) => write!(f, "th dport {port}"),
            Self::Member(loads, set) => {
                let words: Vec<&str> = loads.iter().map(|load| load.words()).collect();
                write!(f, "{} @{set}", words.join(" . "))
            }
            Self::Established => write!(f, "ct state established,related"),
            Self::Reply => write!(f, "ct direction reply"),
            Self::ClampSegments => write!(f, "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"),
            Self::Masquerade => write!(f, "masquerade"),
            Self::End(Verdict::Accept) => write!(f, "accept"),
            Self::End(Verdict::Drop) => write!(f, "drop"),
        }
    }
}
