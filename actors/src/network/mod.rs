//! The instance's network on this host: settings → desired state → plan → privileged calls.
//!
//! Everything is decided in pure functions ([`settings`], [`plan`], [`uplink`]); the actor only carries the plan out, once,
//! and again when somebody finds the network gone.

mod actor;
mod plan;
mod settings;
#[cfg(test)]
mod tests;
mod uplink;

pub use actor::{Certainty, EnsureNetwork, Network};
pub use plan::plan;
pub use settings::{Ipv6Use, NetworkSettings, Place, SettingsError};
pub use uplink::{HostIpv6, HostUplink, Uplink, UplinkSource, host_resolvers};
