//! What derives from a tap's number: its guest's address and hardware address. The same number gives the same, for ever.

use crate::network::Uplink;
use messages::guest::GuestNetwork;
use messages::ids::{InstanceId, InterfaceName};
use messages::privileged::{Subnet, TapNumber, guest_address, guest_mac, tap_name};
use std::net::Ipv4Addr;

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
        Self {
            number,
            name: tap_name(instance, number),
            mac: guest_mac(instance, number),
            address: guest_address(subnet, number).expect("the pool gives out numbers that have an address"),
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
