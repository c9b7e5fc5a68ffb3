//! Who asks, and so what is answered. Pure.

use messages::privileged::Subnet;
use std::net::{IpAddr, Ipv4Addr};

/// Where a question came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Loopback,
    /// Port 53 of the bridge of this subnet.
    Bridge(Subnet),
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// The zone only: it has resolvers of its own, and one of those may be asking us, which would be a circle.
    Host,
    /// The zone, and the world.
    Guest(Ipv4Addr),
    /// Nothing: names of VMs are nobody else's business, and an open resolver is a weapon.
    Stranger,
}

/// Tells them apart by the source address, which the rules on the bridge keep honest.
pub(super) fn audience(place: Place, source: IpAddr) -> Audience {
    match (place, source.to_canonical()) {
        (Place::Bridge(subnet), IpAddr::V4(source)) if source == subnet.gateway => Audience::Host,
        (Place::Bridge(subnet), IpAddr::V4(source)) if subnet.contains(source) => Audience::Guest(source),
        (_, source) if source.is_loopback() => Audience::Host,
        (Place::Bridge(_) | Place::Loopback, _) => Audience::Stranger,
    }
}
