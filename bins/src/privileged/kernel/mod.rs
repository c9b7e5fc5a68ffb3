//! The real [`super::host::Host`]: rtnetlink for interfaces, nf_tables batches, the tun driver, and a few files under `/proc`.

mod forwarding6;
mod links;
mod netfilter;

use super::confine;
use super::host::{Host, HostError, HostResult, Link, LinkChange, Route};
use super::nft::{ForeignChain, KnownRule, Passage, Set, Table};
use super::resolved::NamesKeeper;
use super::sys;
use messages::ids::InterfaceName;
use std::fs::OpenOptions;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;

/// With [`IPV4_SETTINGS`] and those of [`forwarding6`], the only files that the helper writes. Constant on purpose: no path
/// crosses the socket.
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// Two settings of the bridge lie below it; a bridge's name has no character that means anything in a path.
const IPV4_SETTINGS: &str = "/proc/sys/net/ipv4";
/// The driver that makes taps.
const TUN: &str = "/dev/net/tun";

/// Where guests ask for names.
const DNS_PORT: u16 = 53;

/// Both leave the helper at once: it neither reads from them nor keeps them.
fn sockets(at: SocketAddr) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok((UdpSocket::bind(at)?.into(), TcpListener::bind(at)?.into()))
}

/// This host's kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    netlink: rtnetlink::Handle,
    names: NamesKeeper,
}

impl Kernel {
    /// Opens the routing socket. Must come after the privileges were dropped: the kernel remembers what the opener had.
    ///
    /// # Errors
    /// The kernel has no routing sockets, or no tokio runtime is running.
    pub(super) fn open(names: NamesKeeper) -> io::Result<Self> {
        let (connection, netlink, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { netlink, names })
    }
}

impl Host for Kernel {
    async fn links(&mut self) -> HostResult<Vec<Link>> {
        links::all(&self.netlink).await
    }

    async fn link(&mut self, name: &InterfaceName) -> HostResult<Option<Link>> {
        links::named(&self.netlink, name).await
    }

    async fn routes(&mut self) -> HostResult<Vec<Route>> {
        links::routes(&self.netlink).await
    }

    async fn addresses(&mut self, index: u32) -> HostResult<Vec<(IpAddr, u8)>> {
        let messages = links::address_messages(&self.netlink, index).await?;
        Ok(messages.iter().filter_map(links::own_address).collect())
    }

    async fn create_bridge(&mut self, name: &InterfaceName) -> HostResult<()> {
        links::create_bridge(&self.netlink, name).await
    }

    async fn create_tap(&mut self, name: &InterfaceName, owner: u32) -> HostResult<()> {
        let tun = OpenOptions::new().read(true).write(true).open(TUN).map_err(|e| HostError::new("open", TUN, e))?;
        sys::make_tap(&tun, name, owner).map_err(|e| HostError::new("make the tap", name, e))
    }

    async fn change_link(&mut self, link: &Link, change: &LinkChange) -> HostResult<()> {
        links::change(&self.netlink, link, change).await
    }

    async fn isolate_port(&mut self, link: &Link, guest: [u8; 6]) -> HostResult<()> {
        links::isolate(&self.netlink, link).await?;
        links::pin(&self.netlink, link, guest).await
    }

    async fn delete_link(&mut self, link: &Link) -> HostResult<()> {
        links::delete(&self.netlink, link).await
    }

    async fn add_address(&mut self, link: &Link, address: IpAddr, prefix: u8) -> HostResult<()> {
        links::add_address(&self.netlink, link, address, prefix).await
    }

    async fn remove_address(&mut self, link: &Link, address: IpAddr, prefix: u8) -> HostResult<()> {
        links::remove_address(&self.netlink, link, address, prefix).await
    }

    async fn bind_dns(&mut self, address: Ipv4Addr) -> HostResult<(OwnedFd, OwnedFd)> {
        let at = SocketAddr::from((address, DNS_PORT));
        confine::with_low_ports(|| sockets(at)).map_err(|e| HostError::new("bind", at, e))
    }

    async fn route_names(&mut self, link: &Link, address: Ipv4Addr) -> Result<(), String> {
        self.names.route(link.index, address).await
    }

    async fn revert_names(&mut self, link: &Link) -> Result<(), String> {
        self.names.revert(link.index).await
    }

    async fn trust_bridge(&mut self, link: &Link) -> Result<(), String> {
        self.names.trust(link.index).await
    }

    async fn distrust_bridge(&mut self, link: &Link) -> Result<(), String> {
        self.names.distrust(link.index).await
    }

    async fn enable_forwarding(&mut self) -> HostResult<()> {
        set_switch(Path::new(IP_FORWARD), "1")
    }

    async fn allow_ipv6(&mut self, bridge: &InterfaceName) -> HostResult<()> {
        forwarding6::allow(bridge)
    }

    async fn know_neighbours(&mut self, bridge: &Link, neighbours: &[(Ipv6Addr, [u8; 6])]) -> HostResult<()> {
        links::know(&self.netlink, bridge, neighbours).await
    }

    async fn enable_forwarding6(&mut self, bridge: &InterfaceName) -> HostResult<()> {
        forwarding6::enable(bridge)
    }

    async fn answer_for_guests(&mut self, bridge: &InterfaceName) -> HostResult<()> {
        let below = |group: &str, switch: &str| Path::new(IPV4_SETTINGS).join(group).join(bridge.as_str()).join(switch);
        set_switch(&below("conf", "proxy_arp_pvlan"), "1")?;
        // Else the kernel waits up to 0.8 s before it answers for somebody.
        set_switch(&below("neigh", "proxy_delay"), "0")
    }

    async fn replace_tables(&mut self, tables: &[Table]) -> HostResult<bool> {
        let name = tables.first().map_or("", |table| &table.name);
        netfilter::replace(tables).map_err(|e| HostError::new("write the nftables table", name, e))
    }

    async fn refill_sets(&mut self, table: &str, sets: &[Set]) -> HostResult<bool> {
        match netfilter::refill(table, sets) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(HostError::new("write sets of the nftables table", table, e)),
        }
    }

    async fn foreign_rules(&mut self, chain: ForeignChain) -> HostResult<Option<Vec<KnownRule>>> {
        netfilter::foreign_rules(chain).map_err(|e| HostError::new("read the rules of", chain.name, e))
    }

    async fn change_foreign_rules(&mut self, chain: ForeignChain, add: &[Passage], remove: &[u64]) -> HostResult<()> {
        let changed = netfilter::change_foreign_rules(chain, add, remove);
        changed.map_err(|e| HostError::new("change the rules of", chain.name, e))
    }

    async fn remove_tables(&mut self, name: &str) -> HostResult<()> {
        netfilter::remove(name).map_err(|e| HostError::new("remove the nftables table", name, e))
    }
}

/// Writes a setting of the kernel's, where it is another: writing `ip_forward` also resets `net.ipv4.conf.*`.
fn set_switch(path: &Path, value: &str) -> HostResult<()> {
    let failed = |action| move |e: io::Error| HostError::new(action, path.display(), e);
    let current = std::fs::read_to_string(path).map_err(failed("read"))?;
    if current.trim() == value { Ok(()) } else { std::fs::write(path, format!("{value}\n")).map_err(failed("write")) }
}
