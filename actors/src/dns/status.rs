//! What the keeper publishes of itself: where it listens, or why not. Read by `daemon status` and by the tap pool.

use messages::reply::NamesView;
use std::net::{Ipv4Addr, SocketAddr};

/// The listener for programs on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LoopbackListener {
    #[default]
    Starting,
    Serving(SocketAddr),
    Failed(String),
}

/// The listener for guests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BridgeListener {
    /// The network has not been brought about yet, or there is no helper.
    #[default]
    NotAsked,
    Serving(SocketAddr),
    /// Why not; guests keep to the host's resolvers.
    Failed(String),
}

/// Whether this host's own resolver sends `.vm` to the bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostRouting {
    #[default]
    NotAsked,
    Routed,
    Failed(String),
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsStatus {
    pub loopback: LoopbackListener,
    pub bridge: BridgeListener,
    pub routing: HostRouting,
    /// How many VMs have a name.
    pub names: usize,
}

impl DnsStatus {
    /// What guests can ask here, if they can.
    #[must_use]
    pub fn guests_resolver(&self) -> Option<Ipv4Addr> {
        match &self.bridge {
            BridgeListener::Serving(SocketAddr::V4(address)) => Some(*address.ip()),
            BridgeListener::Serving(SocketAddr::V6(_)) | BridgeListener::NotAsked | BridgeListener::Failed(_) => None,
        }
    }

    /// For users.
    #[must_use]
    pub fn view(&self) -> NamesView {
        NamesView {
            names: u32::try_from(self.names).unwrap_or(u32::MAX),
            loopback: match &self.loopback {
                LoopbackListener::Serving(address) => Ok(address.to_string()),
                LoopbackListener::Starting => Err("it is being started".to_owned()),
                LoopbackListener::Failed(why) => Err(why.clone()),
            },
            bridge: match &self.bridge {
                BridgeListener::Serving(address) => Ok(address.to_string()),
                BridgeListener::NotAsked => Err("the VMs' network is not up yet".to_owned()),
                BridgeListener::Failed(why) => Err(why.clone()),
            },
            routed: match &self.routing {
                HostRouting::Routed => Ok(()),
                HostRouting::NotAsked => Err("nothing answers on the bridge yet".to_owned()),
                HostRouting::Failed(why) => Err(why.clone()),
            },
        }
    }
}
