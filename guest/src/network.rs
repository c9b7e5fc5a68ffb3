//! The guest's interfaces, by rtnetlink: loopback up, and the one interface of the spec as it says. Writes no file.

use futures::TryStreamExt as _;
use messages::guest::GuestNetwork;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr};
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
    handle.route().add(route).replace().execute().await.map_err(failed("set the default route"))
}

async fn remove_other_addresses(handle: &Handle, index: u32, network: &GuestNetwork) -> Result<(), NetworkError> {
    let listed: Result<Vec<AddressMessage>, _> =
        handle.address().get().set_link_index_filter(index).execute().try_collect().await;
    for message in listed.map_err(failed("list the addresses"))? {
        let other = message.attributes.iter().any(|attribute| {
            matches!(attribute, AddressAttribute::Address(IpAddr::V4(address)) if *address != network.address)
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
