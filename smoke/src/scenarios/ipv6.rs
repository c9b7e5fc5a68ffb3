//! Guests beside an IPv6 uplink: an instance of its own, and a router in another namespace.

use super::isolation::{bridges, reaches, remove_network, text};
use crate::case::{Case, Outcome, Stop, check};
use crate::command::Program;
use crate::outside::{Outside, Uplink, tool};
use std::net::{IpAddr, Ipv6Addr, TcpListener};

/// The two ends of the uplink, of the range for documentation (RFC 3849).
const HOST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 1);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 2);
const UPLINK: Uplink =
    Uplink { near: "six0", far: "six1", host: IpAddr::V6(HOST), outside: IpAddr::V6(ROUTER), prefix: 64 };

pub(super) fn ipv6(case: &Case<'_>) -> Outcome {
    let router = Outside::start(UPLINK)?;
    // What makes it a host with IPv6.
    tool(&format!("ip -6 route add default via {ROUTER} dev {}", UPLINK.near))?;
    let config = "tap_pool_size = 1\ncidr = \"172.20.0.0/24\"\n[vm_defaults]\nvcpu = 1\nmemory_mib = 512\ndisk_size = \"2GiB\"\n";
    let port = router.listener.local_addr()?.port();
    let world = case.world.beside("six", config)?;
    let own = Case::new(&world, "ipv6");
    let before = bridges()?;
    let result = beside_the_uplink(&own, port);
    drop(own.clean_up());
    drop(world.banger(&["daemon", "stop"]).run());
    case.note(own.take_log());
    for bridge in bridges()?.difference(&before) {
        remove_network(bridge)?;
    }
    result
}

/// A port of the host's, open on all its addresses of both kinds.
fn service() -> Result<(TcpListener, u16), Stop> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

fn beside_the_uplink(case: &Case<'_>, outside: u16) -> Outcome {
    let (vm, peer) = (case.vm(), case.vm_named("peer"));
    let ((open, open_port), (shut, shut_port)) = (service()?, service()?);
    case.create(&peer, &["--wait", "system"])?;
    case.create(&vm, &["--wait", "system", "--net-allow", &format!("host:{open_port}")])?;
    let (address, peer_address) = (text(&case.show(&vm)?, "address6"), text(&case.show(&peer)?, "address6"));
    check(address.starts_with("fd") && address != peer_address, || format!("{address} and {peer_address}"))?;
    let listed = case.list()?;
    check(listed.iter().any(|view| text(view, "address6") == address), || "vm list does not say it".to_owned())?;
    let own = case.guest(&vm, "ip -6 -o address show dev eth0 scope global")?;
    check(own.contains(&format!("{address}/128")), || format!("{vm} should have {address}, and has {own}"))?;
    let gateway = case.guest(&vm, "ip -6 route show default | cut -d' ' -f3")?;
    let (host, router) = (HOST.to_string(), ROUTER.to_string());
    let rows = [
        ("the world", &vm, router.as_str(), outside, true),
        ("the peer", &vm, peer_address.as_str(), 22, false),
        ("an allowed port of the host", &vm, gateway.as_str(), open_port, true),
        ("another port of the host", &vm, gateway.as_str(), shut_port, false),
        ("the peer at the same port", &peer, gateway.as_str(), open_port, false),
        ("the host by its other address", &vm, host.as_str(), open_port, false),
        ("metadata", &vm, "fd00:ec2::254", 80, false),
    ];
    for (name, from, to, port, expected) in rows {
        let found = reaches(case, from, to, port)?;
        case.note(format!("  {name}: {from} to [{to}]:{port}: {found}"));
        check(found == expected, || format!("{name}: {from} to [{to}]:{port} is {found}"))?;
    }
    // The host reaches its guest.
    let to_guest = format!("timeout 4 bash -c 'exec 3<>/dev/tcp/{address}/22'");
    check(Program::tool(&["sh", "-c", &to_guest]).run()?.code() == 0, || format!("the host does not reach {address}"))?;
    let said = case.guest(&vm, &format!("getent ahostsv6 {peer}.vm | head -n 1"))?;
    check(said.split_whitespace().next() == Some(&peer_address), || format!("{peer}.vm is `{said}`"))?;
    let said = case.guest(&vm, &format!("getent hosts {peer_address}"))?;
    check(said.contains(&format!("{peer}.vm")), || format!("{peer_address} is `{said}`"))?;
    // As somebody else it reaches nothing.
    let route = |source: &str| format!("ip -6 route replace default via {gateway} dev eth0 src {source}");
    case.guest(&vm, &format!("ip -6 address add {peer_address}/128 dev eth0 nodad && {}", route(&peer_address)))?;
    check(!reaches(case, &vm, &router, outside)?, || "the peer's address gets through".to_owned())?;
    case.guest(&vm, &route(&address))?;
    check(reaches(case, &vm, &router, outside)?, || "the guest is not itself again".to_owned())?;
    drop((open, shut));
    Ok(())
}
