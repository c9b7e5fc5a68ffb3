//! What derives from a tap's number: its guest's address and hardware address. The same number gives the same, for ever.

use crate::network::Uplink;
use messages::guest::{GuestNetwork, GuestNetwork6};
use messages::ids::{InstanceId, InterfaceName};
use messages::privileged::{Subnet, TapNumber, bridge_mac, guest_address, guest_address6, guest_mac, tap_name};
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
    pub ipv6: Option<GuestNetwork6>,
}

impl TapLease {
    pub(super) fn new(instance: InstanceId, subnet: Subnet, number: TapNumber, uplink: Uplink) -> Self {
        let dual = Subnet { ipv6: uplink.ipv6, ..subnet };
        let ipv6 = dual.gateway6().zip(guest_address6(dual, number));
        Self {
            number,
            name: tap_name(instance, number),
            mac: guest_mac(instance, number),
            address: guest_address(subnet, number).expect("the pool gives out numbers that have an address"),
            prefix: subnet.prefix,
            gateway: subnet.gateway,
            mtu: uplink.mtu,
            resolvers: uplink.for_guests(),
            ipv6: ipv6.map(|(gateway, address)| GuestNetwork6 { address, gateway, gateway_mac: bridge_mac(instance) }),
        }
    }
}

impl From<TapLease> for GuestNetwork {
    fn from(lease: TapLease) -> Self {
        let TapLease { mac, address, prefix, gateway, mtu, resolvers, ipv6, .. } = lease;
        Self { mac, address, prefix, gateway, mtu, resolvers, ipv6 }
    }
}
