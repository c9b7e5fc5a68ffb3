//! The guest's interfaces, by rtnetlink: loopback up, and the one interface of the spec as it says. Writes no file.

use futures::TryStreamExt as _;
use messages::guest::{GuestNetwork, GuestNetwork6};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

/// The index of `lo`, always.
const LOOPBACK: u32 = 1;
/// The driver is loaded while the spec is fetched.
const INTERFACE_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(2);

/// Says what of the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("failed to open a netlink socket")]
    Socket(#[source] std::io::Error),
    #[error("no network interface has the address {0}")]
    NoInterface(String),
    #[error("failed to {step}")]
    Netlink { step: &'static str, source: rtnetlink::Error },
}

fn failed(step: &'static str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Netlink { step, source }
}

/// Sets everything up, and takes away what an earlier identity left.
///
/// # Errors
/// [`NetworkError`].
pub async fn configure(network: Option<&GuestNetwork>) -> Result<(), NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
    let connection = tokio::spawn(connection);
    let result = apply(&handle, network).await;
    connection.abort();
    result
}

async fn apply(handle: &Handle, network: Option<&GuestNetwork>) -> Result<(), NetworkError> {
    let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
    handle.link().set(up).execute().await.map_err(failed("bring the loopback interface up"))?;
    let Some(network) = network else { return Ok(()) };
    let index = interface(Path::new("/sys/class/net"), network.mac).await?;
    let mut link = LinkUnspec::new_with_index(index).up();
    if let Some(mtu) = network.mtu {
        link = link.mtu(mtu.into());
    }
    handle.link().set(link.build()).execute().await.map_err(failed("bring the interface up"))?;
    remove_other_addresses(handle, index, network).await?;
    let add = handle.address().add(index, IpAddr::V4(network.address), network.prefix).replace();
    add.execute().await.map_err(failed("set the address"))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).gateway(network.gateway).build();
    handle.route().add(route).replace().execute().await.map_err(failed("set the default route"))?;
    match &network.ipv6 {
        Some(ipv6) => apply_ipv6(handle, index, ipv6).await,
        None => Ok(()),
    }
}

/// A kernel without IPv6, which an image may bring, goes without.
async fn apply_ipv6(handle: &Handle, index: u32, ipv6: &GuestNetwork6) -> Result<(), NetworkError> {
    if !Path::new("/proc/net/if_inet6").exists() {
        return Ok(());
    }
    let mut add = handle.address().add(index, IpAddr::V6(ipv6.address), 128).replace();
    // Nobody else can have it, and asking would only delay its use by a second.
    add.message_mut().header.flags = AddressHeaderFlags::Nodad;
    add.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    add.execute().await.map_err(failed("set the IPv6 address"))?;
    // Known, so that the guest need not ask on the link, and need not believe who answers.
    let gateway = handle.neighbours().add(index, IpAddr::V6(ipv6.gateway)).link_layer_address(&ipv6.gateway_mac);
    let gateway = gateway.state(NeighbourState::Permanent).replace();
    gateway.execute().await.map_err(failed("set the gateway's hardware address"))?;
    let to_gateway = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(ipv6.gateway, 128)
        .output_interface(index)
        .scope(RouteScope::Link)
        .build();
    handle.route().add(to_gateway).replace().execute().await.map_err(failed("set the route to the IPv6 gateway"))?;
    let route = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index).gateway(ipv6.gateway).build();
    handle.route().add(route).replace().execute().await.map_err(failed("set the IPv6 default route"))
}

async fn remove_other_addresses(handle: &Handle, index: u32, network: &GuestNetwork) -> Result<(), NetworkError> {
    let listed: Result<Vec<AddressMessage>, _> =
        handle.address().get().set_link_index_filter(index).execute().try_collect().await;
    for message in listed.map_err(failed("list the addresses"))? {
        let own6 = network.ipv6.map(|ipv6| ipv6.address);
        let other = message.attributes.iter().any(|attribute| match attribute {
            AddressAttribute::Address(IpAddr::V4(address)) => *address != network.address,
            // The one of the link belongs to the hardware address.
            AddressAttribute::Address(IpAddr::V6(address)) => {
                !address.is_unicast_link_local() && Some(*address) != own6
            }
            _ => false,
        });
        if other {
            handle.address().del(message).execute().await.map_err(failed("remove an old address"))?;
        }
    }
    Ok(())
}

async fn interface(class: &Path, mac: [u8; 6]) -> Result<u32, NetworkError> {
    let wanted = mac.map(|byte| format!("{byte:02x}")).join(":");
    let deadline = Instant::now() + INTERFACE_DEADLINE;
    loop {
        let names = std::fs::read_dir(class).into_iter().flatten().flatten();
        let index = names.filter_map(|entry| {
            let address = std::fs::read_to_string(entry.path().join("address")).ok()?;
            let index = std::fs::read_to_string(entry.path().join("ifindex")).ok()?;
            (address.trim() == wanted).then(|| index.trim().parse().ok())?
        });
        if let Some(index) = index.min() {
            return Ok(index);
        }
        if Instant::now() >= deadline {
            return Err(NetworkError::NoInterface(wanted));
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(arguments: &str) -> String {
        let output = std::process::Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// In a network namespace that belongs to one thread, and is gone with it.
    #[test]
    fn ipv6_is_static_and_asks_nobody() {
        let has_ip = std::process::Command::new("ip").arg("-V").output().is_ok();
        if !nix::unistd::geteuid().is_root() || !has_ip || !Path::new("/proc/net/if_inet6").exists() {
            println!("skipped: interfaces need root, ip and IPv6");
            return;
        }
        let test = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ip("link add six0 type veth peer name six1");
            ip("link set six1 up");
            ip("link set six0 up");
            ip("-6 address add fd99::7/128 dev six0 nodad");
            let index = ip("-o link show six0").split(':').next().unwrap().parse().unwrap();
            let ipv6 = GuestNetwork6 {
                address: "fd12::ac10:2".parse().unwrap(),
                gateway: "fd12::1".parse().unwrap(),
                gateway_mac: [2, 1, 2, 3, 0xff, 0xff],
            };
            let network = GuestNetwork {
                mac: [6, 0, 0, 0, 0, 1],
                address: Ipv4Addr::new(198, 51, 100, 2),
                prefix: 24,
                gateway: Ipv4Addr::new(198, 51, 100, 1),
                mtu: None,
                resolvers: Vec::new(),
                ipv6: Some(ipv6),
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().unwrap();
                tokio::spawn(connection);
                // Again is fine: an identity is taken up anew.
                for _ in 0..2 {
                    remove_other_addresses(&handle, index, &network).await.unwrap();
                    apply_ipv6(&handle, index, &ipv6).await.unwrap();
                }
            });
            let addresses = ip("-6 -o address show dev six0 scope global");
            assert!(addresses.contains("fd12::ac10:2/128") && !addresses.contains("fd99"), "{addresses}");
            assert!(!addresses.contains("tentative"), "{addresses}");
            assert!(ip("-6 route show default").contains("via fd12::1 dev six0"));
            assert!(ip("-6 neighbour show dev six0").contains("fd12::1 lladdr 02:01:02:03:ff:ff PERMANENT"));
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[tokio::test]
    async fn interfaces_are_found_by_address() {
        let class = tempfile::tempdir().unwrap();
        for (name, address, index) in [("lo", "00:00:00:00:00:00", "1"), ("eth7", "06:00:00:00:00:2a", "9")] {
            std::fs::create_dir(class.path().join(name)).unwrap();
            std::fs::write(class.path().join(name).join("address"), format!("{address}\n")).unwrap();
            std::fs::write(class.path().join(name).join("ifindex"), format!("{index}\n")).unwrap();
        }
        assert_eq!(interface(class.path(), [6, 0, 0, 0, 0, 0x2a]).await.unwrap(), 9);
    }
}
