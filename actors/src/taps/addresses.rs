//! What derives from a tap's number: its guest's address and hardware address. The same number gives the same, for ever.

use crate::network::Uplink;
use messages::guest::GuestNetwork;
use messages::ids::{InstanceId, InterfaceName};
use messages::limits::TAPS_MAX;
use messages::privileged::{Subnet, TapNumber, tap_name};
use std::net::Ipv4Addr;

/// The first octet of a guest's hardware address: locally administered, unicast, and not that of the bridge (02).
const MAC_PREFIX: u8 = 0x06;
/// The network's own address and, as a rule, the gateway come first.
const FIRST_HOST: u32 = 2;

/// A tap that a VM holds, and the network as its guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapLease {
    pub number: TapNumber,
    pub name: InterfaceName,
    pub mac: [u8; 6],
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub mtu: Option<u16>,
    pub resolvers: Vec<Ipv4Addr>,
}

impl TapLease {
    pub(super) fn new(instance: InstanceId, subnet: Subnet, number: TapNumber, uplink: Uplink) -> Self {
        let [a, b, c] = instance.0;
        let [high, low] = number.0.to_be_bytes();
        Self {
            number,
            name: tap_name(instance, number),
            mac: [MAC_PREFIX, a, b, c, high, low],
            address: address(subnet, number),
            prefix: subnet.prefix,
            gateway: subnet.gateway,
            mtu: uplink.mtu,
            resolvers: uplink.for_guests(),
        }
    }
}

impl From<TapLease> for GuestNetwork {
    fn from(lease: TapLease) -> Self {
        let TapLease { mac, address, prefix, gateway, mtu, resolvers, .. } = lease;
        Self { mac, address, prefix, gateway, mtu, resolvers }
    }
}

fn network(subnet: Subnet) -> u32 {
    let mask = u32::MAX.checked_shl(32 - u32::from(subnet.prefix)).unwrap_or(0);
    u32::from(subnet.gateway) & mask
}

pub(super) fn address(subnet: Subnet, number: TapNumber) -> Ipv4Addr {
    Ipv4Addr::from(network(subnet) + FIRST_HOST + u32::from(number.0))
}

/// Every number that has an address: not the gateway's, not the broadcast's, and no more than a bridge has ports.
pub(super) fn numbers(subnet: Subnet) -> impl Iterator<Item = TapNumber> {
    let size = 1_u32.checked_shl(32 - u32::from(subnet.prefix)).unwrap_or(u32::MAX);
    let hosts = u16::try_from(size.saturating_sub(FIRST_HOST + 1)).unwrap_or(u16::MAX);
    (0..hosts.min(TAPS_MAX)).map(TapNumber).filter(move |number| address(subnet, *number) != subnet.gateway)
}
