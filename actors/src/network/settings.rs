//! What network an instance has, from its config and identity. Asks the host nothing.

use crate::config::Loaded;
use messages::ids::{InstanceId, InterfaceName};
use messages::privileged::{Subnet, default_bridge_name};
use std::net::Ipv4Addr;

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

/// The desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSettings {
    pub instance: InstanceId,
    pub bridge: InterfaceName,
    pub subnet: Subnet,
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
        Ok(Self {
            instance,
            bridge: config.bridge_name.clone().unwrap_or_else(|| default_bridge_name(instance)),
            subnet,
            default_dns: config.default_dns.clone(),
        })
    }
}

/// 172.16.1.0/24 to 172.16.255.0/24: beside the default, and below 172.17.0.0/16, where docker's networks begin. Two
/// instances that meet are told so by the helper, and one gets a `cidr`.
fn derived_subnet(instance: InstanceId) -> Subnet {
    let sum = instance.0.iter().fold(0_u32, |sum, byte| sum * 31 + u32::from(*byte));
    let third = u8::try_from(sum % 255 + 1).expect("1 to 255");
    Subnet { gateway: Ipv4Addr::new(172, 16, third, 1), prefix: 24 }
}
