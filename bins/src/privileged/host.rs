//! What the helper asks of the kernel, as one trait: [`super::kernel::Kernel`] does it, the recording double of the tests plays it.
//!
//! Only checked values arrive here ([`super::validate`]); the trait decides nothing.

use super::nft::{ForeignChain, KnownRule, Passage, Set, Table};
use messages::ids::InterfaceName;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

/// A system call, or a request to the kernel, that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{target}`")]
pub struct HostError {
    /// What was tried, as the words after "cannot".
    pub action: &'static str,
    /// The interface, table or file.
    pub target: String,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl HostError {
    pub(crate) fn new(action: &'static str, target: impl ToString, source: impl Into<io::Error>) -> Self {
        Self { action, target: target.to_string(), source: source.into() }
    }
}

/// The kinds of interface that the helper tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkKind {
    /// A software bridge.
    Bridge,
    /// A tun or tap device.
    Tap {
        /// Who may open it, if the kernel says.
        owner: Option<u32>,
    },
    /// Anything else.
    Other,
}

/// A network interface as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub kind: LinkKind,
    /// `IFLA_IFALIAS`.
    pub alias: Option<String>,
    pub mtu: u32,
    /// The index of the bridge that it is a port of.
    pub controller: Option<u32>,
    pub up: bool,
}

/// What to set on an interface; `None` leaves it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkChange {
    pub alias: Option<String>,
    /// The hardware address.
    pub(crate) address: Option<[u8; 6]>,
    /// Renames it; only an interface that is down takes a new name.
    pub name: Option<InterfaceName>,
    pub mtu: Option<u32>,
    pub controller: Option<u32>,
    /// Takes it down, before anything else is changed.
    pub down: bool,
    /// Brings it up.
    pub up: bool,
}

/// A route of the host, in any table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub destination: IpAddr,
    pub prefix: u8,
    /// The index of the interface it leaves by; none for blackholes and the like.
    pub interface: Option<u32>,
}

/// The answer of one call.
pub(super) type HostResult<T> = Result<T, HostError>;

/// Everything that the helper does to this host.
pub(super) trait Host: Send + 'static {
    /// All interfaces.
    fn links(&mut self) -> impl Future<Output = HostResult<Vec<Link>>> + Send;
    /// The interface of this name, if there is one.
    fn link(&mut self, name: &InterfaceName) -> impl Future<Output = HostResult<Option<Link>>> + Send;
    /// All routes, IPv6's too where the kernel has it.
    fn routes(&mut self) -> impl Future<Output = HostResult<Vec<Route>>> + Send;
    /// The addresses of one interface.
    fn addresses(&mut self, index: u32) -> impl Future<Output = HostResult<Vec<(IpAddr, u8)>>> + Send;
    /// Makes a bridge. It is down, and carries no alias yet: the kernel takes none in the request that makes a link.
    fn create_bridge(&mut self, name: &InterfaceName) -> impl Future<Output = HostResult<()>> + Send;
    /// Makes a persistent tap that `owner` may open. It is down and no port of anything.
    fn create_tap(&mut self, name: &InterfaceName, owner: u32) -> impl Future<Output = HostResult<()>> + Send;
    /// Changes an interface.
    fn change_link(&mut self, link: &Link, change: &LinkChange) -> impl Future<Output = HostResult<()>> + Send;
    /// Keeps a bridge port from reaching other isolated ports, and from telling the bridge who lives behind it: that is
    /// `guest`, whatever frames say.
    fn isolate_port(&mut self, link: &Link, guest: [u8; 6]) -> impl Future<Output = HostResult<()>> + Send;
    /// Removes an interface; one that is gone already is fine.
    fn delete_link(&mut self, link: &Link) -> impl Future<Output = HostResult<()>> + Send;
    /// Gives an interface an address; one that it has already is fine.
    fn add_address(&mut self, link: &Link, address: IpAddr, prefix: u8) -> impl Future<Output = HostResult<()>> + Send;
    /// Takes an address from an interface.
    fn remove_address(
        &mut self,
        link: &Link,
        address: IpAddr,
        prefix: u8,
    ) -> impl Future<Output = HostResult<()>> + Send;
    /// Binds port 53 of an address: a UDP socket, and a TCP socket that listens.
    fn bind_dns(&mut self, address: Ipv4Addr) -> impl Future<Output = HostResult<(OwnedFd, OwnedFd)>> + Send;
    /// Has the host's own resolver ask an address for `.vm`, by way of a bridge. An error is a sentence.
    fn route_names(&mut self, link: &Link, address: Ipv4Addr) -> impl Future<Output = Result<(), String>> + Send;
    /// Takes that back; nothing to take back is fine.
    fn revert_names(&mut self, link: &Link) -> impl Future<Output = Result<(), String>> + Send;
    /// Has firewalld, where it runs, let a bridge's traffic pass. An error is a sentence.
    fn trust_bridge(&mut self, link: &Link) -> impl Future<Output = Result<(), String>> + Send;
    /// Takes that back; nothing to take back is fine.
    fn distrust_bridge(&mut self, link: &Link) -> impl Future<Output = Result<(), String>> + Send;
    /// Switches IPv4 forwarding on.
    fn enable_forwarding(&mut self) -> impl Future<Output = HostResult<()>> + Send;
    /// Lets a bridge take IPv6 addresses, and no other's word for routes.
    fn allow_ipv6(&mut self, bridge: &InterfaceName) -> impl Future<Output = HostResult<()>> + Send;
    /// Tells the kernel where each of these lives behind a bridge, for good: no guest is asked, or believed.
    fn know_neighbours(
        &mut self,
        bridge: &Link,
        neighbours: &[(Ipv6Addr, [u8; 6])],
    ) -> impl Future<Output = HostResult<()>> + Send;
    /// Switches IPv6 forwarding on, and leaves every interface but the bridge a host's: what it learnt from routers stays.
    fn enable_forwarding6(&mut self, bridge: &InterfaceName) -> impl Future<Output = HostResult<()>> + Send;
    /// Makes a bridge answer for its guests when one asks for another, at once: isolated ports hear no other's answer.
    fn answer_for_guests(&mut self, bridge: &InterfaceName) -> impl Future<Output = HostResult<()>> + Send;
    /// Puts the tables in the place of any of their names, all at once. False: exactly these were there.
    fn replace_tables(&mut self, tables: &[Table]) -> impl Future<Output = HostResult<bool>> + Send;
    /// The commented rules of a chain of another firewall's; none where there is no such chain.
    fn foreign_rules(&mut self, chain: ForeignChain)
    -> impl Future<Output = HostResult<Option<Vec<KnownRule>>>> + Send;
    /// Adds rules to such a chain, and removes those of these handles.
    fn change_foreign_rules(
        &mut self,
        chain: ForeignChain,
        add: &[Passage],
        remove: &[u64],
    ) -> impl Future<Output = HostResult<()>> + Send;
    /// Gives sets of the host's table of this name other elements, all at once. False: there is no such table.
    fn refill_sets(&mut self, table: &str, sets: &[Set]) -> impl Future<Output = HostResult<bool>> + Send;
    /// Removes the tables of this name; none is fine.
    fn remove_tables(&mut self, name: &str) -> impl Future<Output = HostResult<()>> + Send;
}
