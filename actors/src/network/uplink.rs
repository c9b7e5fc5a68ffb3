//! How this host reaches the world: its uplink's MTU and its real resolvers. Read anew for each lease, since laptops move.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// The host's routes, as the kernel prints them.
const ROUTES: &str = "/proc/net/route";
/// The same for IPv6, and the addresses.
const ROUTES6: &str = "/proc/net/ipv6_route";
const ADDRESSES6: &str = "/proc/net/if_inet6";
/// `RTF_UP` and `RTF_REJECT` (linux/route.h).
const ROUTE_UP: u32 = 0x1;
const ROUTE_REJECTS: u32 = 0x200;
/// Each interface has a directory here.
const INTERFACES: &str = "/sys/class/net";
/// Where resolvers are, in the order of trust: where the first names only a local stub, systemd-resolved's own list has
/// what lies behind it.
const RESOLVER_FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// As many as glibc reads (`MAXNS`, resolv.h).
const RESOLVERS_MAX: usize = 3;
/// Of a list, so many are looked at: some of them are left out later.
const LISTED_MAX: usize = 8;

/// What guests are told of the world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// None where there is no default route.
    pub mtu: Option<u16>,
    pub resolvers: Vec<Ipv4Addr>,
    /// The daemon's own resolver, where guests can ask it. It forwards to the others.
    pub own_resolver: Option<Ipv4Addr>,
    /// The /64 that guests have one address of, where they have IPv6.
    pub ipv6: Option<Ipv6Addr>,
}

/// Whether the host reaches the world by IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostIpv6 {
    Yes,
    No,
}

impl HostIpv6 {
    /// What this host has now.
    #[must_use]
    pub fn read() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self::of(&read(ROUTES6), &read(ADDRESSES6))
    }

    /// A default route that leads somewhere, on an interface whose address is not of the link only: the kernel has one of
    /// its own, which rejects.
    pub(super) fn of(routes: &str, addresses: &str) -> Self {
        let default = |line: &str| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let [destination, "00", _, "00", _, _, _, _, flags, interface] = fields[..] else { return None };
            let flags = u32::from_str_radix(flags, 16).ok()?;
            let leads = flags & (ROUTE_UP | ROUTE_REJECTS) == ROUTE_UP && destination.bytes().all(|b| b == b'0');
            leads.then(|| interface.to_owned())
        };
        let has_address = |interface: &str| {
            addresses.lines().any(|line| {
                let fields: Vec<&str> = line.split_ascii_whitespace().collect();
                matches!(fields[..], [_, _, _, "00", _, name] if name == interface)
            })
        };
        if routes.lines().filter_map(default).any(|interface| has_address(&interface)) { Self::Yes } else { Self::No }
    }
}

impl Uplink {
    /// Whom a guest is told to ask, in this order. Our own first: it alone knows `<vm>.vm`. The others stay behind it for
    /// the time in which the daemon is being restarted; they are asked only when it is silent.
    #[must_use]
    pub fn for_guests(&self) -> Vec<Ipv4Addr> {
        // A host whose resolver sends `.vm` here may list us as well.
        let others = self.resolvers.iter().copied().filter(|resolver| Some(*resolver) != self.own_resolver);
        self.own_resolver.into_iter().chain(others).take(RESOLVERS_MAX).collect()
    }
}

/// Where an [`Uplink`] comes from.
pub trait UplinkSource: Send {
    /// The uplink of this moment.
    fn read(&self) -> Uplink;
}

/// This host. Reads a few small files of the kernel's and of `/etc`; takes microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostUplink;

impl UplinkSource for HostUplink {
    fn read(&self) -> Uplink {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let mtu = default_interface(&read(ROUTES)).and_then(|name| {
            let file = Path::new(INTERFACES).join(name).join("mtu");
            std::fs::read_to_string(file).ok()?.trim().parse().ok()
        });
        // Guests have no IPv6 address to ask from, or one that the resolver may not be reached by.
        let resolvers = host_resolvers(IpAddr::is_ipv4).into_iter().filter_map(|address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        });
        Uplink { mtu, resolvers: resolvers.collect(), own_resolver: None, ipv6: None }
    }
}

/// The host's own resolvers that are acceptable, behind any stub on loopback.
#[must_use]
pub fn host_resolvers(acceptable: fn(&IpAddr) -> bool) -> Vec<IpAddr> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let found = RESOLVER_FILES.iter().map(|path| resolvers(&read(path), acceptable)).find(|found| !found.is_empty());
    found.unwrap_or_default()
}

/// The interface of the default route with the smallest metric.
pub(super) fn default_interface<'a>(routes: &'a str) -> Option<&'a str> {
    let default = |line: &'a str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [name, destination, _, _, _, _, metric, mask, ..] = fields[..] else { return None };
        let metric = metric.parse::<u32>().ok()?;
        (destination == "00000000" && mask == "00000000").then_some((metric, name))
    };
    routes
        .lines()
        .filter_map(default)
        .min_by_key(|(metric, _)| *metric)
        .map(|(_, name)| name)
        // It becomes part of a path; the kernel allows no `/` in a name, and this asks nobody.
        .filter(|name| !name.contains('/') && *name != "..")
}

/// The acceptable resolvers of a `resolv.conf` that others can ask, too: a loopback address would be the asker's own. IPv6
/// ones with a zone are left out, since the zone means nothing elsewhere.
pub(super) fn resolvers(text: &str, acceptable: fn(&IpAddr) -> bool) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split_ascii_whitespace().next()?.parse::<IpAddr>().ok())
        .filter(|address| !address.is_loopback() && !address.is_unspecified() && acceptable(address))
        .take(LISTED_MAX)
        .collect()
}
