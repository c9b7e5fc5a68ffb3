//! The closed list of what `bangerd` may ask of `bangerd-root`. No path, argv or shell string crosses this socket.
//!
//! Every operation is idempotent: the helper holds no truth, it makes the kernel match. It re-checks every field.

use crate::error::WireError;
use crate::ids::{InstanceId, InterfaceName};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// A request to the helper. Replies carry the same number and may come in any order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivilegedRequest {
    pub number: u64,
    pub operation: PrivilegedOperation,
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivilegedResponse {
    pub number: u64,
    pub result: Result<PrivilegedReply, WireError>,
}

/// An IPv4 network with the host's address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The bridge's own address.
    pub gateway: Ipv4Addr,
    /// 16 to 29.
    pub prefix: u8,
}

impl Subnet {
    /// Whether an address is one of the network's.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
        u32::from(address) & mask == u32::from(self.gateway) & mask
    }
}

/// One tap of an instance: its name is derived, never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TapNumber(pub u16);

/// The name of a tap: `bt<instance>-<number>`, at most 13 bytes.
#[must_use]
pub fn tap_name(instance: InstanceId, tap: TapNumber) -> InterfaceName {
    format!("bt{instance}-{}", tap.0).parse().expect("two letters, six hex digits and at most six more")
}

/// The name of a bridge where the config has none: `bb<instance>`.
#[must_use]
pub fn default_bridge_name(instance: InstanceId) -> InterfaceName {
    format!("bb{instance}").parse().expect("two letters and six hex digits")
}

/// The alias (`IFLA_IFALIAS`) that marks an interface as this instance's. The helper touches no other interface.
#[must_use]
pub fn interface_alias(instance: InstanceId) -> String {
    format!("banger:{instance}")
}

/// The nftables table of an instance.
#[must_use]
pub fn table_name(instance: InstanceId) -> String {
    format!("banger_{instance}")
}

/// Everything the helper does. Append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrivilegedOperation {
    /// Reply: `Status`.
    Status,
    /// Makes the bridge with its address, up. Refuses a name that something else has, and a subnet that overlaps a route.
    EnsureBridge { instance: InstanceId, bridge: InterfaceName, subnet: Subnet },
    /// Makes a persistent tap owned by the owner's uid, isolated on the bridge, up.
    EnsureTap { instance: InstanceId, bridge: InterfaceName, tap: TapNumber, mtu: Option<u16> },
    /// Removes a tap; no tap is fine.
    RemoveTap { instance: InstanceId, tap: TapNumber },
    /// Reply: `Taps`: all of the instance's.
    ListTaps { instance: InstanceId },
    /// Masquerades the subnet to the host's uplink and switches IPv4 forwarding on.
    EnsureNat { instance: InstanceId, bridge: InterfaceName, subnet: Subnet },
    /// Removes everything of this instance: taps, bridge, table.
    RemoveInstance { instance: InstanceId },
    /// Binds port 53 of the bridge's address. Reply: `DnsSockets`.
    BindDns { instance: InstanceId, bridge: InterfaceName, subnet: Subnet },
    /// Has the host's own resolver (systemd-resolved) ask the bridge's address for `.vm`, until the helper ends.
    RouteNames { instance: InstanceId, bridge: InterfaceName, subnet: Subnet },
}

/// What the helper answers. Append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrivilegedReply {
    Done,
    Status {
        build: String,
        pid: u32,
        owner_uid: u32,
    },
    Taps(Vec<TapNumber>),
    /// With two descriptors in its ancillary data: a UDP socket, and a TCP socket that listens.
    DnsSockets,
}
