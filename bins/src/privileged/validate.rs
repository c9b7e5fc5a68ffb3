//! Turns what arrived on the socket into operations that may be carried out. Whatever passes here is safe to name to the kernel.
//!
//! The wire types check themselves too; this module does not rely on it, because a newtype's check can be relaxed for
//! another reader's sake. It asks the kernel nothing: what needs the host's state is checked in [`super::ops`].

use messages::error::{ErrorKind, WireError};
use messages::ids::{InstanceId, InterfaceName};
use messages::limits::{GRANTS_MAX, TAPS_MAX};
use messages::privileged::{
    Grant, GrantTarget, PrivilegedOperation, Subnet, TapNumber, bridge_mac, default_bridge_name, guest_address,
    guest_address6, guest_mac, guest_taps, interface_alias, table_name, tap_name,
};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The smallest MTU of a tap: what IPv4 asks of every host (RFC 791).
const MTU_MIN: u16 = 576;
/// The largest MTU that the kernel's tap driver takes: 65535 less an Ethernet header (`drivers/net/tun.c`).
const MTU_MAX: u16 = 65521;

/// The prefix of every IPv6 network of guests.
pub(super) const PREFIX6: u8 = 64;
/// Where clouds answer to the host by IPv6 with its credentials, in the range that networks of guests are taken from: Amazon's
/// and Google's.
pub(super) const METADATA6: [(Ipv6Addr, u8); 2] =
    [(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), 32), (Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0), 32)];

/// Why a request was refused before anything was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("`{0}` cannot be the bridge of instance {1}")]
    Bridge(String, InstanceId),
    #[error("tap {0} is beyond the {TAPS_MAX} ports of a bridge")]
    Tap(u16),
    #[error("an MTU of {0} is not between {MTU_MIN} and {MTU_MAX}")]
    Mtu(u16),
    #[error("a prefix of {0} is not between 16 and 29")]
    Prefix(u8),
    #[error("{0}/{1} is not in a private range (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16)")]
    NotPrivate(Ipv4Addr, u8),
    #[error("{0} is not a host's address in a /{1}")]
    Gateway(Ipv4Addr, u8),
    #[error("{0}/64 is not a network of unique local addresses (fd00::/8) that guests may have")]
    Network6(Ipv6Addr),
    #[error("tap {0} has no address in this subnet")]
    NoAddress(u16),
    #[error("a grant of port 0")]
    Port,
    #[error("{0} grants are more than {GRANTS_MAX}")]
    Grants(usize),
}

impl From<Invalid> for WireError {
    fn from(invalid: Invalid) -> Self {
        Self::from_error(ErrorKind::Usage, &invalid)
    }
}

/// A bridge name that this instance may have, as far as one can tell without asking the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BridgeName(InterfaceName);

impl BridgeName {
    /// The interface's name.
    #[must_use]
    pub(super) fn interface(&self) -> &InterfaceName {
        &self.0
    }

    fn check(instance: InstanceId, name: &InterfaceName) -> Result<Self, Invalid> {
        let text = name.as_str();
        let invalid = || Invalid::Bridge(text.to_owned(), instance);
        let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        if !plain || !starts_well || text.len() > 15 || matches!(text, "lo" | "all" | "default") {
            return Err(invalid());
        }
        let derived_for_another = is_derived(text) && *name != default_bridge_name(instance);
        if derived_for_another { Err(invalid()) } else { Ok(Self(name.clone())) }
    }
}

/// Whether a name has the form of those that banger derives: those belong to the instance that they name.
fn is_derived(name: &str) -> bool {
    let hex = |text: &str| text.len() == 6 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let bridge = name.strip_prefix("bb").is_some_and(hex);
    let tap = name.strip_prefix("bt").and_then(|rest| rest.split_once('-')).is_some_and(|(id, _)| hex(id));
    bridge || tap
}

/// A private IPv4 network with a host's address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CheckedSubnet {
    gateway: Ipv4Addr,
    prefix: u8,
    ipv6: Option<CheckedNetwork6>,
}

impl CheckedSubnet {
    fn check(subnet: Subnet) -> Result<Self, Invalid> {
        let Subnet { gateway, prefix, ipv6 } = subnet;
        if !(16..=29).contains(&prefix) {
            return Err(Invalid::Prefix(prefix));
        }
        if !gateway.is_private() {
            return Err(Invalid::NotPrivate(gateway, prefix));
        }
        let ipv6 = ipv6.map(CheckedNetwork6::check).transpose()?;
        let checked = Self { gateway, prefix, ipv6 };
        let host_part = u32::from(gateway) & !mask(prefix);
        if host_part == 0 || host_part == !mask(prefix) {
            return Err(Invalid::Gateway(gateway, prefix));
        }
        Ok(checked)
    }

    /// The host's address in it.
    #[must_use]
    pub(super) fn gateway(self) -> Ipv4Addr {
        self.gateway
    }

    /// The prefix length.
    #[must_use]
    pub(super) fn prefix(self) -> u8 {
        self.prefix
    }

    /// The network's own address.
    #[must_use]
    pub(super) fn network(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.gateway) & mask(self.prefix))
    }

    /// The address of the guest behind a tap, if the network has room for it.
    #[must_use]
    pub(super) fn guest(self, tap: CheckedTap) -> Option<Ipv4Addr> {
        guest_address(self.wire(), tap.0)
    }

    /// The guests' IPv6 network, where they have one.
    #[must_use]
    pub(super) fn ipv6(self) -> Option<CheckedNetwork6> {
        self.ipv6
    }

    /// The same, for guests without IPv6.
    #[must_use]
    pub(super) fn without_ipv6(self) -> Self {
        Self { ipv6: None, ..self }
    }

    /// The bridge's own addresses.
    #[must_use]
    pub(super) fn own_addresses(self) -> Vec<(IpAddr, u8)> {
        let ipv6 = self.ipv6.map(|network| (IpAddr::V6(network.gateway()), PREFIX6));
        std::iter::once((IpAddr::V4(self.gateway), self.prefix)).chain(ipv6).collect()
    }

    fn wire(self) -> Subnet {
        Subnet { gateway: self.gateway, prefix: self.prefix, ipv6: self.ipv6.map(|network| network.0) }
    }

    /// Whether the two networks share an address.
    #[must_use]
    pub(super) fn overlaps(self, network: Ipv4Addr, prefix: u8) -> bool {
        let common = mask(self.prefix.min(prefix));
        u32::from(self.gateway) & common == u32::from(network) & common
    }
}

/// The first address of a /64 of unique local addresses that nobody else is known to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CheckedNetwork6(Ipv6Addr);

impl CheckedNetwork6 {
    fn check(network: Ipv6Addr) -> Result<Self, Invalid> {
        let octets = network.octets();
        let checked = Self(network);
        let is_metadata = METADATA6.iter().any(|(other, prefix)| checked.overlaps(*other, *prefix));
        if octets[0] != 0xfd || octets[8..] != [0; 8] || is_metadata {
            return Err(Invalid::Network6(network));
        }
        Ok(checked)
    }

    /// The network's own address.
    #[must_use]
    pub(super) fn network(self) -> Ipv6Addr {
        self.0
    }

    /// The bridge's address.
    #[must_use]
    pub(super) fn gateway(self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.0) | 1)
    }

    /// Whether the two networks share an address.
    #[must_use]
    pub(super) fn overlaps(self, network: Ipv6Addr, prefix: u8) -> bool {
        let common = mask6(prefix.min(PREFIX6));
        u128::from(self.0) & common == u128::from(network) & common
    }
}

/// The network mask of a prefix length of at most 128.
pub(super) fn mask6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0)
}

/// The network mask of a prefix length of at most 32.
fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

/// One instance of the owner's, and the names that derive from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    id: InstanceId,
    /// The helper's own knowledge: it crosses no socket.
    owner_uid: u32,
}

impl Instance {
    /// The mark of its interfaces, and of its rules in other firewalls' chains.
    #[must_use]
    pub(super) fn alias(self) -> String {
        interface_alias(self.owner_uid, self.id)
    }

    /// Whose instance of the same id an alias marks, if it is not this one.
    #[must_use]
    pub(super) fn other_owner(self, alias: &str) -> Option<u32> {
        let uid = alias.strip_suffix(&self.id.to_string())?.strip_prefix("banger:")?.strip_suffix(':')?.parse().ok()?;
        (uid != self.owner_uid).then_some(uid)
    }

    /// The bridge's name where the config has none.
    #[must_use]
    pub(super) fn default_bridge(self) -> InterfaceName {
        default_bridge_name(self.id)
    }

    /// The bridge's hardware address.
    #[must_use]
    pub(crate) fn bridge_address(self) -> [u8; 6] {
        bridge_mac(self.id)
    }

    /// Its nftables table.
    #[must_use]
    pub(super) fn table(self) -> String {
        table_name(self.owner_uid, self.id)
    }

    /// The hardware address of the guest behind a tap.
    #[must_use]
    pub(super) fn guest_mac(self, tap: CheckedTap) -> [u8; 6] {
        guest_mac(self.id, tap.0)
    }

    /// Every guest that the network has room for: tap, hardware address, address.
    pub(super) fn guests(self, subnet: CheckedSubnet) -> impl Iterator<Item = (InterfaceName, [u8; 6], Ipv4Addr)> {
        guest_taps(subnet.wire()).filter_map(move |tap| {
            Some((tap_name(self.id, tap), guest_mac(self.id, tap), guest_address(subnet.wire(), tap)?))
        })
    }

    /// The IPv6 and hardware addresses of every guest that the network has room for, where guests have IPv6.
    pub(super) fn neighbours(self, subnet: CheckedSubnet) -> Vec<(Ipv6Addr, [u8; 6])> {
        let neighbour = |tap| Some((guest_address6(subnet.wire(), tap)?, guest_mac(self.id, tap)));
        guest_taps(subnet.wire()).filter_map(neighbour).collect()
    }

    /// What the names of all its taps begin with, and no other interface's.
    #[must_use]
    pub(super) fn tap_prefix(self) -> String {
        format!("bt{}-", self.id)
    }

    /// The name of one of its taps.
    #[must_use]
    pub(super) fn tap(self, tap: CheckedTap) -> InterfaceName {
        tap_name(self.id, tap.0)
    }

    /// The number of the tap of this name, if it is one of this instance's.
    #[must_use]
    pub(super) fn tap_number(self, name: &str) -> Option<TapNumber> {
        let number = name.strip_prefix(&self.tap_prefix())?.parse::<u16>().ok().map(TapNumber)?;
        (tap_name(self.id, number).as_str() == name).then_some(number)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}

/// A tap number that a bridge has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CheckedTap(TapNumber);

/// A grant between a guest and something that exists in its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CheckedGrant {
    pub(super) from: CheckedTap,
    pub(super) to: CheckedTarget,
}

/// What a checked grant opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckedTarget {
    Tap(CheckedTap),
    Tcp(u16),
    Udp(u16),
}

/// An operation whose every field is acceptable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CheckedOperation {
    Status,
    EnsureBridge { instance: Instance, bridge: BridgeName, subnet: CheckedSubnet },
    EnsureTap { instance: Instance, bridge: BridgeName, tap: CheckedTap, mtu: Option<u16> },
    RemoveTap { instance: Instance, tap: CheckedTap },
    ListTaps { instance: Instance },
    EnsureNat { instance: Instance, bridge: BridgeName, subnet: CheckedSubnet },
    RemoveInstance { instance: Instance },
    BindDns { instance: Instance, bridge: BridgeName, subnet: CheckedSubnet },
    RouteNames { instance: Instance, bridge: BridgeName, subnet: CheckedSubnet },
    SetGrants { instance: Instance, bridge: BridgeName, subnet: CheckedSubnet, grants: Vec<CheckedGrant> },
}

/// Checks every field. Whatever instance is named is the owner's one of that id, and nobody else's.
///
/// # Errors
/// [`Invalid`] names the first field that is not acceptable.
pub(super) fn check(operation: &PrivilegedOperation, owner_uid: u32) -> Result<CheckedOperation, Invalid> {
    use PrivilegedOperation as Op;
    let own = |id: &InstanceId| Instance { id: *id, owner_uid };
    Ok(match operation {
        Op::Status => CheckedOperation::Status,
        Op::EnsureBridge { instance, bridge, subnet } => CheckedOperation::EnsureBridge {
            instance: own(instance),
            bridge: BridgeName::check(*instance, bridge)?,
            subnet: CheckedSubnet::check(*subnet)?,
        },
        Op::EnsureTap { instance, bridge, tap, mtu } => CheckedOperation::EnsureTap {
            instance: own(instance),
            bridge: BridgeName::check(*instance, bridge)?,
            tap: check_tap(*tap)?,
            mtu: mtu.map(check_mtu).transpose()?,
        },
        Op::RemoveTap { instance, tap } => {
            CheckedOperation::RemoveTap { instance: own(instance), tap: check_tap(*tap)? }
        }
        Op::ListTaps { instance } => CheckedOperation::ListTaps { instance: own(instance) },
        Op::EnsureNat { instance, bridge, subnet } => CheckedOperation::EnsureNat {
            instance: own(instance),
            bridge: BridgeName::check(*instance, bridge)?,
            subnet: CheckedSubnet::check(*subnet)?,
        },
        Op::RemoveInstance { instance } => CheckedOperation::RemoveInstance { instance: own(instance) },
        Op::RouteNames { instance, bridge, subnet } => CheckedOperation::RouteNames {
            instance: own(instance),
            bridge: BridgeName::check(*instance, bridge)?,
            subnet: CheckedSubnet::check(*subnet)?,
        },
        Op::BindDns { instance, bridge, subnet } => CheckedOperation::BindDns {
            instance: own(instance),
            bridge: BridgeName::check(*instance, bridge)?,
            subnet: CheckedSubnet::check(*subnet)?,
        },
        Op::SetGrants { instance, bridge, subnet, grants } => {
            let bridge = BridgeName::check(*instance, bridge)?;
            let subnet = CheckedSubnet::check(*subnet)?;
            let grants = check_grants(subnet, grants)?;
            CheckedOperation::SetGrants { instance: own(instance), bridge, subnet, grants }
        }
    })
}

fn check_grants(subnet: CheckedSubnet, grants: &[Grant]) -> Result<Vec<CheckedGrant>, Invalid> {
    if grants.len() > GRANTS_MAX {
        return Err(Invalid::Grants(grants.len()));
    }
    let tap = |number: TapNumber| {
        let tap = check_tap(number)?;
        if subnet.guest(tap).is_some() { Ok(tap) } else { Err(Invalid::NoAddress(number.0)) }
    };
    let port = |port: u16| if port == 0 { Err(Invalid::Port) } else { Ok(port) };
    let check = |grant: &Grant| {
        let to = match grant.to {
            GrantTarget::Tap(number) => CheckedTarget::Tap(tap(number)?),
            GrantTarget::Tcp(number) => CheckedTarget::Tcp(port(number)?),
            GrantTarget::Udp(number) => CheckedTarget::Udp(port(number)?),
        };
        Ok(CheckedGrant { from: tap(grant.from)?, to })
    };
    grants.iter().map(check).collect()
}

fn check_tap(tap: TapNumber) -> Result<CheckedTap, Invalid> {
    if tap.0 < TAPS_MAX { Ok(CheckedTap(tap)) } else { Err(Invalid::Tap(tap.0)) }
}

fn check_mtu(mtu: u16) -> Result<u16, Invalid> {
    if (MTU_MIN..=MTU_MAX).contains(&mtu) { Ok(mtu) } else { Err(Invalid::Mtu(mtu)) }
}
