//! The closed list of what `bangerd` may ask of `bangerd-root`. No path, argv or shell string crosses this socket.
//!
//! Every operation is idempotent: the helper holds no truth, it makes the kernel match. It re-checks every field.

use crate::error::WireError;
use crate::ids::{InstanceId, InterfaceName};
use crate::limits::TAPS_MAX;
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

/// The first octet of a guest's hardware address: locally administered, unicast, and not that of the bridge (02).
const GUEST_MAC_PREFIX: u8 = 0x06;
/// The network's own address and, as a rule, the gateway come first.
const FIRST_GUEST: u32 = 2;

/// The hardware address of the guest behind a tap. The same tap gives the same, for ever: both sides derive it, so that
/// no message can give a guest another's.
#[must_use]
pub fn guest_mac(instance: InstanceId, tap: TapNumber) -> [u8; 6] {
    let [a, b, c] = instance.0;
    let [high, low] = tap.0.to_be_bytes();
    [GUEST_MAC_PREFIX, a, b, c, high, low]
}

/// The address of the guest behind a tap, if the network has one for it: not the gateway's, not the broadcast's.
#[must_use]
pub fn guest_address(subnet: Subnet, tap: TapNumber) -> Option<Ipv4Addr> {
    let size = 1_u32.checked_shl(32 - u32::from(subnet.prefix.clamp(1, 32)))?;
    let host = FIRST_GUEST + u32::from(tap.0);
    if tap.0 >= TAPS_MAX || host >= size - 1 {
        return None;
    }
    let address = Ipv4Addr::from((u32::from(subnet.gateway) & !(size - 1)) + host);
    (address != subnet.gateway).then_some(address)
}

/// Every tap that the network has an address for.
pub fn guest_taps(subnet: Subnet) -> impl Iterator<Item = TapNumber> {
    (0..TAPS_MAX).map(TapNumber).filter(move |tap| guest_address(subnet, *tap).is_some())
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

/// What one guest may reach beyond what every guest may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Grant {
    /// Whose guest.
    pub from: TapNumber,
    pub to: GrantTarget,
}

/// What a grant opens. Append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GrantTarget {
    /// Another guest of the same instance.
    Tap(TapNumber),
    /// A TCP port at the gateway's address.
    Tcp(u16),
    /// A UDP port at the gateway's address.
    Udp(u16),
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
    /// Writes the instance's rules (isolation, anti-spoofing, NAT to the host's uplink), without grants, where they are not
    /// as they should be, and switches IPv4 forwarding on. Reply: `Rewritten`, or `Done` where nothing was missing.
    EnsureNat { instance: InstanceId, bridge: InterfaceName, subnet: Subnet },
    /// Removes everything of this instance: taps, bridge, table.
    RemoveInstance { instance: InstanceId },
    /// Binds port 53 of the bridge's address. Reply: `DnsSockets`.
    BindDns { instance: InstanceId, bridge: InterfaceName, subnet: Subnet },
    /// Has the host's own resolver (systemd-resolved) ask the bridge's address for `.vm`, until the helper ends.
    RouteNames { instance: InstanceId, bridge: InterfaceName, subnet: Subnet },
    /// Makes these the only grants of the instance, in one transaction. Not found: `EnsureNat` has to come first.
    SetGrants { instance: InstanceId, subnet: Subnet, grants: Vec<Grant> },
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
    /// Done, and the rules were written anew: they hold no grants.
    Rewritten,
}
