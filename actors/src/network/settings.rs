//! What network an instance has, from its config and identity. Asks the host nothing.

use super::HostIpv6;
use crate::config::{Cidr6, Loaded};
use messages::ids::{InstanceId, InterfaceName};
use messages::privileged::{Subnet, default_bridge_name, default_network6};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Whether an instance is the user's usual one, or has a state directory of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Takes the config's default network.
    Usual,
    /// Gets a network of its own where the config names none, so that it can live beside the usual one.
    Own,
}

/// The config asks for a network that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(pub String);

/// When guests have the IPv6 network of the settings, where those name one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6Use {
    /// Once the host has a way out by IPv6.
    WithTheHost,
    Always,
}

/// The desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSettings {
    pub instance: InstanceId,
    pub bridge: InterfaceName,
    pub subnet: Subnet,
    pub ipv6: Ipv6Use,
    /// What guests ask for names; empty means the host's own upstreams.
    pub default_dns: Vec<Ipv4Addr>,
}

impl NetworkSettings {
    /// The settings of an instance.
    ///
    /// # Errors
    /// [`SettingsError`], where `bridge_ip` does not lie in `cidr`.
    pub fn new(loaded: &Loaded, instance: InstanceId, place: Place) -> Result<Self, SettingsError> {
        let config = &loaded.config;
        let named = ["cidr", "bridge_ip"].iter().any(|key| loaded.from_file.contains(*key));
        let subnet = match place {
            Place::Own if !named => derived_subnet(instance),
            _ => config.subnet().map_err(SettingsError)?,
        };
        let (network6, ipv6) = match config.cidr6 {
            Cidr6::Auto => (Some(default_network6(instance)), Ipv6Use::WithTheHost),
            Cidr6::Off => (None, Ipv6Use::WithTheHost),
            Cidr6::Network(network) => (Some(network), Ipv6Use::Always),
        };
        Ok(Self {
            instance,
            bridge: config.bridge_name.clone().unwrap_or_else(|| default_bridge_name(instance)),
            subnet: Subnet { ipv6: network6, ..subnet },
            ipv6,
            default_dns: config.default_dns.clone(),
        })
    }
}

impl NetworkSettings {
    /// The IPv6 network that guests have on such a host.
    #[must_use]
    pub fn ipv6_network(&self, host: HostIpv6) -> Option<Ipv6Addr> {
        self.subnet.ipv6.filter(|_| self.ipv6 == Ipv6Use::Always || host == HostIpv6::Yes)
    }
}

/// 172.16.1.0/24 to 172.16.255.0/24: beside the default, and below 172.17.0.0/16, where docker's networks begin. Two
/// instances that meet are told so by the helper, and one gets a `cidr`.
fn derived_subnet(instance: InstanceId) -> Subnet {
    let sum = instance.0.iter().fold(0_u32, |sum, byte| sum * 31 + u32::from(*byte));
    let third = u8::try_from(sum % 255 + 1).expect("1 to 255");
    Subnet { gateway: Ipv4Addr::new(172, 16, third, 1), prefix: 24, ipv6: None }
}
