//! What we ask of other firewalls: to let the bridge's traffic pass. Ours does the rest.
//!
//! Every chain of a hook has to accept a packet, so our table cannot overrule another's drop. Docker leaves a chain to others
//! for that. Of ufw's, those that it fills from `before.rules` are taken: `ufw allow` and `ufw delete` write the `user` chains
//! anew, and leave these alone. Where iptables wrote the table, `iptables` goes on reading what we add to it.

use crate::privileged::validate::{BridgeName, Instance};
use messages::ids::InterfaceName;

/// Which way traffic goes through the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    FromGuests,
    ToGuests,
}

/// Whose packets a chain of `iptables` or `ip6tables` sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocols {
    Ipv4,
    Ipv6,
}

/// A chain of another firewall's, in a table that iptables-nft made (`filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ForeignChain {
    pub(crate) protocols: Protocols,
    pub(crate) name: &'static str,
    /// What has to be let through there.
    ways: &'static [Direction],
}

const BOTH: &[Direction] = &[Direction::FromGuests, Direction::ToGuests];
/// To the host itself: its resolver for guests, and what was granted.
const IN: &[Direction] = &[Direction::FromGuests];

/// Everywhere that room was found. A chain that is not there is passed over.
pub(crate) const FOREIGN_CHAINS: [ForeignChain; 6] = [
    ForeignChain { protocols: Protocols::Ipv4, name: "DOCKER-USER", ways: BOTH },
    ForeignChain { protocols: Protocols::Ipv6, name: "DOCKER-USER", ways: BOTH },
    ForeignChain { protocols: Protocols::Ipv4, name: "ufw-before-forward", ways: BOTH },
    ForeignChain { protocols: Protocols::Ipv4, name: "ufw-before-input", ways: IN },
    ForeignChain { protocols: Protocols::Ipv6, name: "ufw6-before-forward", ways: BOTH },
    ForeignChain { protocols: Protocols::Ipv6, name: "ufw6-before-input", ways: IN },
];

/// An accept for one direction of a bridge's traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Passage {
    /// The instance's alias.
    mark: String,
    pub(super) direction: Direction,
    pub(super) bridge: InterfaceName,
}

/// A rule that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KnownRule {
    pub(crate) handle: u64,
    pub(crate) comment: String,
}

impl Passage {
    /// By this it is known again.
    pub(crate) fn comment(&self) -> String {
        let way = match self.direction {
            Direction::FromGuests => "from",
            Direction::ToGuests => "to",
        };
        format!("{} {way} {}", self.mark, self.bridge)
    }
}

impl ForeignChain {
    /// What an instance needs there.
    pub(crate) fn wanted(self, instance: Instance, bridge: &BridgeName) -> Vec<Passage> {
        let passage = |direction: &Direction| Passage {
            mark: instance.alias(),
            direction: *direction,
            bridge: bridge.interface().clone(),
        };
        self.ways.iter().map(passage).collect()
    }
}

impl KnownRule {
    /// Whether the instance made it.
    pub(crate) fn is_of(&self, instance: Instance) -> bool {
        self.comment.split(' ').next() == Some(&instance.alias())
    }
}
