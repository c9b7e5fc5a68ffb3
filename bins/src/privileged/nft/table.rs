//! A table as data. It prints itself in nft's own syntax, so that tests and logs can be read.

use messages::ids::InterfaceName;
use std::fmt;
use std::net::Ipv4Addr;

/// One table of the `inet` family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub name: String,
    pub chains: Vec<Chain>,
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

/// Where a chain sits. The values are the kernel's `NF_INET_*` (`linux/netfilter.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Input = 1,
    Forward = 2,
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
}

/// The transport layer's protocol. The values are IANA's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Icmp = 1,
    Tcp = 6,
    Udp = 17,
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
    OutputInterface(Matches, InterfaceName),
    Family(Matches, Family),
    /// Holds only after `Family(Is, Ipv4)`: it reads the IPv4 header.
    Source(Matches, Ipv4Addr, u8),
    /// As `Source`.
    Destination(Matches, Ipv4Addr, u8),
    Protocol(Protocol),
    /// Holds only after `Protocol` of TCP or UDP.
    DestinationPort(u16),
    /// Established or related.
    Established,
    Masquerade,
    End(Verdict),
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.name)?;
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
            Self::OutputInterface(m, name) => write!(f, "oifname {}\"{name}\"", not(m)),
            Self::Family(m, Family::Ipv4) => write!(f, "meta nfproto {}ipv4", not(m)),
            Self::Source(m, network, prefix) => write!(f, "ip saddr {}{network}/{prefix}", not(m)),
            Self::Destination(m, network, prefix) => write!(f, "ip daddr {}{network}/{prefix}", not(m)),
            Self::Protocol(protocol) => write!(f, "meta l4proto {}", format!("{protocol:?}").to_lowercase()),
            Self::DestinationPort(port) => write!(f, "th dport {port}"),
            Self::Established => write!(f, "ct state established,related"),
            Self::Masquerade => write!(f, "masquerade"),
            Self::End(Verdict::Accept) => write!(f, "accept"),
            Self::End(Verdict::Drop) => write!(f, "drop"),
        }
    }
}
