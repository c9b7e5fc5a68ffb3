//! Interfaces, addresses and routes by rtnetlink. Each function is one request, or one dump.

use crate::privileged::host::{HostError, HostResult, Link, LinkChange, LinkKind, Route};
use futures::{Stream, TryStreamExt};
use messages::ids::InterfaceName;
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::{Error, Handle, LinkBridge, LinkBridgePort, LinkUnspec, RouteMessageBuilder};
use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `IFLA_TUN_OWNER` (linux/if_link.h).
const TUN_OWNER: u16 = 1;

/// Turns rtnetlink's error into the errno it carries, so that the layers above can tell "absent" from "refused".
fn io_error(error: &Error) -> io::Error {
    match error {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

fn failed(action: &'static str, target: impl ToString) -> impl FnOnce(Error) -> HostError {
    move |e| HostError::new(action, target, io_error(&e))
}

fn has_code(error: &Error, code: i32) -> bool {
    io_error(error).raw_os_error() == Some(code)
}

async fn collect<T>(stream: impl Stream<Item = Result<T, Error>>) -> Result<Vec<T>, Error> {
    stream.try_collect().await
}

pub(super) async fn all(handle: &Handle) -> HostResult<Vec<Link>> {
    let messages = collect(handle.link().get().execute()).await.map_err(failed("list", "interfaces"))?;
    Ok(messages.into_iter().map(describe).collect())
}

pub(super) async fn named(handle: &Handle, name: &InterfaceName) -> HostResult<Option<Link>> {
    match collect(handle.link().get().match_name(name.to_string()).execute()).await {
        Ok(messages) => Ok(messages.into_iter().map(describe).find(|link| link.name == name.as_str())),
        Err(e) if has_code(&e, libc::ENODEV) => Ok(None),
        Err(e) => Err(failed("look up", name)(e)),
    }
}

fn describe(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: LinkKind::Other,
        alias: None,
        mtu: 0,
        controller: None,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::LinkInfo(infos) => link.kind = kind_of(&infos),
            _ => {}
        }
    }
    link
}

fn kind_of(infos: &[LinkInfo]) -> LinkKind {
    let is = |wanted: &InfoKind| infos.iter().any(|info| matches!(info, LinkInfo::Kind(kind) if kind == wanted));
    if is(&InfoKind::Bridge) {
        LinkKind::Bridge
    } else if is(&InfoKind::Tun) {
        LinkKind::Tap { owner: infos.iter().find_map(tap_owner) }
    } else {
        LinkKind::Other
    }
}

fn tap_owner(info: &LinkInfo) -> Option<u32> {
    let LinkInfo::Data(InfoData::Tun(attributes)) = info else { return None };
    let owner = attributes.iter().find(|a| a.kind() == TUN_OWNER && a.value_len() == 4)?;
    let mut bytes = [0; 4];
    owner.emit_value(&mut bytes);
    Some(u32::from_ne_bytes(bytes))
}

pub(super) async fn routes(handle: &Handle) -> HostResult<Vec<Route>> {
    let message = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let mut messages = collect(handle.route().get(message).execute()).await.map_err(failed("list", "routes"))?;
    let message = RouteMessageBuilder::<Ipv6Addr>::new().build();
    match collect(handle.route().get(message).execute()).await {
        Ok(more) => messages.extend(more),
        // A kernel without IPv6.
        Err(e) if has_code(&e, libc::EAFNOSUPPORT) || has_code(&e, libc::EOPNOTSUPP) => {}
        Err(e) => return Err(failed("list", "IPv6 routes")(e)),
    }
    Ok(messages.into_iter().filter_map(describe_route).collect())
}

fn describe_route(message: RouteMessage) -> Option<Route> {
    let destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut route = Route { destination, prefix: message.header.destination_prefix_length, interface: None };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(to)) => route.destination = to.into(),
            RouteAttribute::Destination(RouteAddress::Inet6(to)) => route.destination = to.into(),
            RouteAttribute::Oif(index) => route.interface = Some(index),
            _ => {}
        }
    }
    Some(route)
}

pub(super) async fn address_messages(handle: &Handle, index: u32) -> HostResult<Vec<AddressMessage>> {
    collect(handle.address().get().set_link_index_filter(index).execute())
        .await
        .map_err(failed("list the addresses of interface", index))
}

/// An interface's own address; none for the link's, which the kernel gives by itself.
pub(super) fn own_address(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    // `Local` is the interface's own IPv4 address; `Address` is the peer's on point-to-point links.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address @ IpAddr::V4(_)) => Some(*address),
        AddressAttribute::Address(address @ IpAddr::V6(v6)) if !v6.is_unicast_link_local() => Some(*address),
        _ => None,
    })?;
    Some((local, message.header.prefix_len))
}

/// An interface without an IPv6 address that the kernel gives it: it has the one that is added, or none.
fn without_ipv6() -> LinkAttribute {
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])])
}

/// Down: rtnetlink would bring it up, and an interface that is up takes no new name.
pub(super) async fn create_bridge(handle: &Handle, name: &InterfaceName) -> HostResult<()> {
    handle
        .link()
        .add(LinkBridge::new(name.as_str()).down().build())
        .execute()
        .await
        .map_err(failed("make the bridge", name))
}

/// A kernel without IPv6 refuses this, and has nothing to disable.
async fn disable_ipv6(handle: &Handle, link: &Link) -> HostResult<()> {
    let message = LinkUnspec::new_with_index(link.index).append_extra_attribute(without_ipv6()).build();
    match handle.link().set(message).execute().await {
        Ok(()) => Ok(()),
        Err(e) if has_code(&e, libc::EAFNOSUPPORT) || has_code(&e, libc::EINVAL) => Ok(()),
        Err(e) => Err(failed("turn IPv6 off on", &link.name)(e)),
    }
}

pub(super) async fn change(handle: &Handle, link: &Link, change: &LinkChange) -> HostResult<()> {
    let mut message = LinkUnspec::new_with_index(link.index);
    if let Some(alias) = &change.alias {
        message = message.alias(alias);
    }
    if let Some(address) = change.address {
        message = message.address(address.to_vec());
    }
    if let Some(name) = &change.name {
        message = message.name(name.as_str());
    }
    if let Some(mtu) = change.mtu {
        message = message.mtu(mtu);
    }
    if let Some(controller) = change.controller {
        message = message.controller(controller);
    }
    if change.down {
        message = message.down();
    }
    if change.up {
        disable_ipv6(handle, link).await?;
        message = message.up();
    }
    handle.link().change(message.build()).execute().await.map_err(failed("change", &link.name))
}

/// No learning: even a frame that no rule sees, such as spanning tree's, cannot draw another guest's traffic to its port.
/// No flooding: what is for nobody that the bridge knows is for no guest.
pub(super) async fn isolate(handle: &Handle, link: &Link) -> HostResult<()> {
    let message = LinkBridgePort::new(link.index).isolated(true).learning(false).flood(false).build();
    handle.link().set_port(message).execute().await.map_err(failed("isolate the port", &link.name))
}

/// Tells the bridge who lives behind a port.
pub(super) async fn pin(handle: &Handle, link: &Link, guest: [u8; 6]) -> HostResult<()> {
    handle
        .neighbours()
        .add_bridge(link.index, &guest)
        // `static` in bridge(8)'s words; `Permanent` would make it an address of the host's own.
        .state(NeighbourState::Noarp)
        .flags(NeighbourFlags::Controller)
        .replace()
        .execute()
        .await
        .map_err(failed("tell the bridge of the guest behind", &link.name))
}

/// Tells the kernel the hardware addresses of guests, those that it does not know.
pub(super) async fn know(handle: &Handle, bridge: &Link, neighbours: &[(Ipv6Addr, [u8; 6])]) -> HostResult<()> {
    let known = collect(handle.neighbours().get().set_address_family(AddressFamily::Inet6).execute()).await;
    let known = known.map_err(failed("list the neighbours of", &bridge.name))?;
    let known: HashSet<_> = known.iter().filter_map(|message| permanent_neighbour(message, bridge.index)).collect();
    for (address, mac) in neighbours.iter().filter(|neighbour| !known.contains(neighbour)) {
        let add = handle.neighbours().add(bridge.index, IpAddr::V6(*address)).link_layer_address(mac);
        let add = add.state(NeighbourState::Permanent).replace();
        add.execute().await.map_err(failed("tell where guests live behind", &bridge.name))?;
    }
    Ok(())
}

fn permanent_neighbour(message: &NeighbourMessage, index: u32) -> Option<(Ipv6Addr, [u8; 6])> {
    if message.header.ifindex != index || message.header.state != NeighbourState::Permanent {
        return None;
    }
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(*address),
        _ => None,
    })?;
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })?;
    Some((address, mac))
}

pub(super) async fn delete(handle: &Handle, link: &Link) -> HostResult<()> {
    match handle.link().del(link.index).execute().await {
        Err(e) if !has_code(&e, libc::ENODEV) => Err(failed("remove", &link.name)(e)),
        _ => Ok(()),
    }
}

pub(super) async fn add_address(handle: &Handle, link: &Link, address: IpAddr, prefix: u8) -> HostResult<()> {
    let mut add = handle.address().add(link.index, address, prefix);
    if address.is_ipv6() {
        // Nobody else can have it, and asking would delay its use.
        add.message_mut().header.flags = AddressHeaderFlags::Nodad;
        add.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    match add.execute().await {
        Err(e) if !has_code(&e, libc::EEXIST) => Err(failed("give an address to", &link.name)(e)),
        _ => Ok(()),
    }
}

pub(super) async fn remove_address(handle: &Handle, link: &Link, address: IpAddr, prefix: u8) -> HostResult<()> {
    let messages = address_messages(handle, link.index).await?;
    for message in messages.into_iter().filter(|m| own_address(m) == Some((address, prefix))) {
        match handle.address().del(message).execute().await {
            Err(e) if !has_code(&e, libc::EADDRNOTAVAIL) => {
                return Err(failed("take an address from", &link.name)(e));
            }
            _ => {}
        }
    }
    Ok(())
}
