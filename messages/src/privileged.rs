//! The closed list of what `bangerd` may ask of `bangerd-root`. No path, argv or shell string crosses this socket.
//!
//! Every operation is idempotent: the helper holds no truth, it makes the kernel match. It re-checks every field.

use crate::error::WireError;
use crate::ids::{InstanceId, InterfaceName};
use crate::limits::TAPS_MAX;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

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

/// The network of an instance's guests, with the host's address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The bridge's own address.
    pub gateway: Ipv4Addr,
    /// 16 to 29.
    pub prefix: u8,
    /// The first address of a /64 of unique local addresses (RFC 4193), where guests have IPv6, too.
    pub ipv6: Option<Ipv6Addr>,
}

impl Subnet {
    /// The bridge's own IPv6 address.
    #[must_use]
    pub fn gateway6(self) -> Option<Ipv6Addr> {
        self.ipv6.map(|network| Ipv6Addr::from(u128::from(network) | 1))
    }

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

/// The IPv6 address of the guest behind a tap: the network's /64, and the guest's IPv4 address as its last four bytes. So the
/// two say the same, and rules that know guests by their IPv4 addresses know them by these, too.
#[must_use]
pub fn guest_address6(subnet: Subnet, tap: TapNumber) -> Option<Ipv6Addr> {
    let (network, address) = (subnet.ipv6?, guest_address(subnet, tap)?);
    Some(Ipv6Addr::from(u128::from(network) | u128::from(u32::from(address))))
}

/// The /64 of an instance where the config names none: `fd`, 40 bits that look random and are the same for ever, subnet 0
/// (RFC 4193, section 3.2).
#[must_use]
pub fn default_network6(instance: InstanceId) -> Ipv6Addr {
    let [a, b, c] = instance.0;
    // The finisher of splitmix64: instances that differ in a bit have nothing in common.
    let mut mixed = u64::from_be_bytes([0, 0, 0, 0, 0, a, b, c]).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let [d, e, f, g, h, ..] = (mixed ^ (mixed >> 31)).to_be_bytes();
    Ipv6Addr::from([0xfd, d, e, f, g, h, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// The bridge's hardware address. Set by hand, it stays: else it would be the lowest of the ports', and change, with every
/// tap that comes and goes, under the guests' feet. The first octet says "locally administered".
#[must_use]
pub fn bridge_mac(instance: InstanceId) -> [u8; 6] {
    let [a, b, c] = instance.0;
    [0x02, a, b, c, 0xff, 0xff]
}

/// Every tap that the network has an address for.
pub fn guest_taps(subnet: Subnet) -> impl Iterator<Item = TapNumber> {
    (0..TAPS_MAX).map(TapNumber).filter(move |tap| guest_address(subnet, *tap).is_some())
}

/// What the mark of everything that is made for one user begins with.
#[must_use]
pub fn owner_mark(owner_uid: u32) -> String {
    format!("banger:{owner_uid}:")
}

/// The alias (`IFLA_IFALIAS`) that marks an interface as this instance's, and as this user's: whoever asks chooses the instance,
/// so it alone says nothing of whose it is. The helper touches no other interface.
#[must_use]
pub fn interface_alias(owner_uid: u32, instance: InstanceId) -> String {
    format!("{}{instance}", owner_mark(owner_uid))
}

/// The nftables table of a user's instance. Nobody else's helper names it.
#[must_use]
pub fn table_name(owner_uid: u32, instance: InstanceId) -> String {
    format!("banger_{owner_uid}_{instance}")
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
    /// A TCP port at the gateway's addresses.
    Tcp(u16),
    /// A UDP port at the gateway's addresses.
    Udp(u16),
}

/// Everything the helper does. Append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrivilegedOperation {
    /// Reply: `Status`.
    Status,
    /// Makes the bridge with its addresses, up. Refuses a name that something else has, and a subnet that overlaps a route.
    EnsureBridge { instance: InstanceId, bridge: InterfaceName, subnet: Subnet },
    /// Makes a persistent tap owned by the owner's uid, isolated on the bridge, up.
    EnsureTap { instance: InstanceId, bridge: InterfaceName, tap: TapNumber, mtu: Option<u16> },
    /// Removes a tap; no tap is fine.
    RemoveTap { instance: InstanceId, tap: TapNumber },
    /// Reply: `Taps`: all of the instance's.
    ListTaps { instance: InstanceId },
    /// Writes the instance's rules (isolation, anti-spoofing, NAT to the host's uplink), without grants, where they are not
    /// as they should be, and switches forwarding on. Reply: `Rewritten`, or `Done` where nothing was missing. Not found, as
    /// with everything below that names a subnet: the bridge does not have its addresses.
    EnsureNat { instance: InstanceId, bridge: InterfaceName, subnet: Subnet },
    /// Removes everything of this instance: taps, bridge, table.
    RemoveInstance { instance: InstanceId },
    /// Binds port 53 of the bridge's address. Reply: `DnsSockets`.
    BindDns { instance: InstanceId, bridge: InterfaceName, subnet: Subnet },
    /// Has the host's own resolver (systemd-resolved) ask the bridge's address for `.vm`, until the helper ends.
    RouteNames { instance: InstanceId, bridge: InterfaceName, subnet: Subnet },
    /// Makes these the only grants of the instance, in one transaction. Not found: `EnsureNat` has to come first.
    SetGrants { instance: InstanceId, bridge: InterfaceName, subnet: Subnet, grants: Vec<Grant> },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_derive_from_instance_and_tap() {
        let network = default_network6(InstanceId([0xab, 0xcd, 0xef]));
        assert_eq!(network.to_string(), "fd04:9e1b:5b34::");
        let subnet = Subnet { gateway: Ipv4Addr::new(172, 16, 0, 1), prefix: 24, ipv6: Some(network) };
        assert_eq!(subnet.gateway6().unwrap().segments()[4..], [0, 0, 0, 1]);
        let guest = guest_address6(subnet, TapNumber(3)).unwrap();
        assert_eq!(guest.segments()[..4], network.segments()[..4]);
        assert_eq!(guest.segments()[4..], [0, 0, 0xac10, 5], "172.16.0.5");
        assert_eq!(guest_address6(subnet, TapNumber(253)), None);
        assert_eq!(guest_address6(Subnet { ipv6: None, ..subnet }, TapNumber(3)), None);
    }

    #[test]
    fn instances_that_are_alike_have_networks_that_are_not() {
        let networks: std::collections::BTreeSet<Ipv6Addr> =
            (0..=255).flat_map(|b| (0..=255).map(move |c| default_network6(InstanceId([0, b, c])))).collect();
        assert_eq!(networks.len(), 1 << 16);
        assert!(networks.iter().all(|network| network.octets()[0] == 0xfd && network.octets()[6..] == [0; 10]));
    }
}
