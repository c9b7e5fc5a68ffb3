//! Listening sockets and the processes that hold them, from /proc. One snapshot: a process may end while it is read.

use messages::guest::{GuestPorts, ListeningPort};
use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `TCP_LISTEN` and `TCP_CLOSE` of net/tcp_states.h; a UDP socket without a peer is in the second.
const TCP_LISTENING: &str = "0A";
const UDP_UNCONNECTED: &str = "07";
/// More sockets than this are not told; the list must fit a frame.
const PORTS_MAX: usize = 1024;

/// All listening sockets of the guest.
#[must_use]
pub fn list() -> GuestPorts {
    let holders = holders();
    let tables = [
        ("tcp", "/proc/net/tcp", TCP_LISTENING),
        ("tcp", "/proc/net/tcp6", TCP_LISTENING),
        ("udp", "/proc/net/udp", UDP_UNCONNECTED),
        ("udp", "/proc/net/udp6", UDP_UNCONNECTED),
    ];
    let mut ports: Vec<ListeningPort> = tables
        .iter()
        .flat_map(|(protocol, path, state)| {
            let table = fs::read_to_string(path).unwrap_or_default();
            let sockets: Vec<_> = table.lines().skip(1).filter_map(|line| socket(line, state)).collect();
            sockets.into_iter().map(|(address, port, inode)| {
                let holder = holders.get(&inode);
                ListeningPort {
                    protocol: (*protocol).to_owned(),
                    address,
                    port,
                    process: holder.map(|(_, name)| name.clone()),
                    pid: holder.map(|(pid, _)| *pid),
                }
            })
        })
        .collect();
    ports.sort_by(|a, b| (&a.protocol, a.port, a.address).cmp(&(&b.protocol, b.port, b.address)));
    ports.dedup();
    ports.truncate(PORTS_MAX);
    GuestPorts { ports }
}

/// (address, port, inode) of a line in the wanted state.
fn socket(line: &str, state: &str) -> Option<(IpAddr, u16, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    if fields.nth(1)? != state {
        return None;
    }
    Some((address_of(address)?, u16::from_str_radix(port, 16).ok()?, fields.nth(5)?.parse().ok()?))
}

/// The kernel prints each 32-bit word of an address as the host's integer, while the bytes lie in network order.
fn address_of(hex: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> = hex
        .as_bytes()
        .chunks(8)
        .map(|word| Some(u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?.to_ne_bytes()))
        .collect();
    match *words? {
        [word] => Some(Ipv4Addr::from(word).into()),
        [a, b, c, d] => Some(Ipv6Addr::from(<[u8; 16]>::try_from([a, b, c, d].concat()).ok()?).into()),
        _ => None,
    }
}

/// Which process holds a socket, by inode: the first found, as forked servers share theirs.
fn holders() -> HashMap<u64, (u32, String)> {
    let mut holders = HashMap::new();
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    for pid in pids {
        let inodes = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().filter_map(|entry| {
            let link = fs::read_link(entry.ok()?.path()).ok()?;
            link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
        });
        let mut name = None;
        for inode in inodes {
            let name = name.get_or_insert_with(|| {
                fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
            });
            holders.entry(inode).or_insert_with(|| (pid, name.clone()));
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_understood() {
        let line = "   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0 0 10 0";
        assert_eq!(socket(line, TCP_LISTENING), Some((Ipv4Addr::LOCALHOST.into(), 22, 4242)));
        assert_eq!(socket(line, UDP_UNCONNECTED), None);
        assert_eq!(socket("garbage", TCP_LISTENING), None);
        assert_eq!(address_of("00000000000000000000000001000000"), Some(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(address_of("0100007"), address_of("0100007"));
        assert_eq!(address_of("zz"), None);
    }

    #[test]
    fn a_listener_of_this_process_is_found_with_its_name() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ports = list().ports;
        let found = ports.iter().find(|port| (port.address, port.port) == (address.ip(), address.port())).unwrap();
        assert_eq!((found.protocol.as_str(), found.pid), ("tcp", Some(std::process::id())));
        assert!(found.process.is_some());
    }
}
