//! What we ask of docker's firewall: to let the bridge's traffic pass. Ours does the rest.
//!
//! Every chain of a hook has to accept a packet, so our table cannot overrule docker's, which drops what it does not forward
//! itself. Docker leaves a chain to others for that (`DOCKER-USER`).

use crate::privileged::validate::{BridgeName, Instance};
use messages::ids::InterfaceName;

/// Which way traffic goes through the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    FromGuests,
    ToGuests,
}

/// An accept for one direction of a bridge's traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DockerRule {
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

impl DockerRule {
    /// By this it is known again.
    pub(crate) fn comment(&self) -> String {
        let way = match self.direction {
            Direction::FromGuests => "from",
            Direction::ToGuests => "to",
        };
        format!("{} {way} {}", self.mark, self.bridge)
    }

    /// What an instance needs.
    pub(crate) fn wanted(instance: Instance, bridge: &BridgeName) -> [Self; 2] {
        [Direction::FromGuests, Direction::ToGuests].map(|direction| Self {
            mark: instance.alias(),
            direction,
            bridge: bridge.interface().clone(),
        })
    }
}

impl KnownRule {
    /// Whether the instance made it.
    pub(crate) fn is_of(&self, instance: Instance) -> bool {
        self.comment.split(' ').next() == Some(&instance.alias())
    }
}
