//! Names of VMs, asked from a guest and from the host.

use crate::case::{Case, Outcome, Stop, check};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// How soon a change must be seen.
const AT_ONCE: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(5);
/// Types of records (RFC 1035, section 3.2.2).
const TYPE_A: u16 = 1;
/// "There is no such name" (RFC 1035, section 4.1.1).
const NO_NAME: u8 = 3;

pub(super) fn dns(case: &Case<'_>) -> Outcome {
    let (vm, peer) = (case.vm(), case.vm_named("peer"));
    case.create(&vm, &[])?;
    case.create(&peer, &[])?;
    let address = case.show(&peer)?["address"].as_str().unwrap_or_default().to_owned();
    let (loopback, bridge) = listeners(case)?;

    let gateway = bridge.ip().to_string();
    let first = case.guest(&vm, "sed -n 's/^nameserver //p' /etc/resolv.conf | head -n 1")?;
    check(first == gateway, || format!("the guest asks {first} first, not {gateway}"))?;
    for name in [format!("{peer}.vm"), peer.to_uppercase() + ".VM", peer.clone()] {
        let said = case.guest(&vm, &format!("getent ahostsv4 {name} | head -n 1"))?;
        check(said.split_whitespace().next() == Some(&address), || format!("in a guest {name} is `{said}`"))?;
    }
    let said = case.guest(&vm, &format!("getent hosts {address}"))?;
    check(said.contains(&format!("{peer}.vm")), || format!("in a guest {address} is `{said}`"))?;
    let said = case.guest(&vm, "getent hosts nobody.vm; echo $?")?;
    check(said == "2", || format!("in a guest nobody.vm is `{said}`"))?;

    for server in [loopback, bridge] {
        let found = ask(server, &format!("{peer}.vm"))?;
        check(found == Found::Address(address.parse()?), || format!("{server} says {found:?}"))?;
        let found = ask(server, "example.com")?;
        check(matches!(found, Found::Code(5)), || format!("{server} answers this host for others: {found:?}"))?;
    }
    case.ok(&["vm", "rename", &peer, &case.vm_named("other")])?;
    becomes(case, bridge, &format!("{}.vm", case.vm_named("other")), &Found::Address(address.parse()?))?;
    becomes(case, bridge, &format!("{peer}.vm"), &Found::Code(NO_NAME))?;
    case.ok(&["vm", "stop", &case.vm_named("other")])?;
    becomes(case, bridge, &format!("{}.vm", case.vm_named("other")), &Found::Code(NO_NAME))?;
    case.ok(&["vm", "delete", "--force", &vm])?;
    becomes(case, loopback, &format!("{vm}.vm"), &Found::Code(NO_NAME))
}

/// Where the daemon answers, for this host and for guests.
pub(crate) fn listeners(case: &Case<'_>) -> Result<(SocketAddr, SocketAddr), Stop> {
    let status: serde_json::Value = serde_json::from_slice(&case.ok(&["daemon", "status", "--json"])?.stdout)?;
    let of = |which: &str| -> Result<SocketAddr, Stop> {
        let listener = &status["dns"][which];
        let address = listener["address"].as_str();
        Ok(address.ok_or_else(|| Stop::Failed(format!("no listener for {which}: {listener}")))?.parse()?)
    };
    Ok((of("loopback")?, of("bridge")?))
}

/// Changed before the command that changed it had ended, or within what was promised after.
fn becomes(case: &Case<'_>, server: SocketAddr, name: &str, expected: &Found) -> Outcome {
    let began = Instant::now();
    loop {
        let found = ask(server, name)?;
        let took = began.elapsed();
        if found == *expected {
            case.note(format!("  {name} is {found:?} after {} ms", took.as_millis()));
            return Ok(());
        }
        check(took < AT_ONCE, || format!("{name} is {found:?} after {} ms, not {expected:?}", took.as_millis()))?;
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    Address(Ipv4Addr),
    /// An error, or 0 for a name that has no address.
    Code(u8),
}

fn ask(server: SocketAddr, name: &str) -> Result<Found, Stop> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&question(name))?;
    let mut buffer = [0; 1500];
    let length = socket.recv(&mut buffer)?;
    Ok(answer(&buffer[..length]))
}

/// One question for an address, as RFC 1035 section 4.1 has it.
fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x4d, 0x2a, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(TYPE_A.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// What a reply without EDNS says: its last four bytes are the address, where it has one.
fn answer(bytes: &[u8]) -> Found {
    match bytes {
        [_, _, _, flags, _, _, 0, answers, .., a, b, c, d] if flags & 15 == 0 && *answers > 0 => {
            Found::Address(Ipv4Addr::new(*a, *b, *c, *d))
        }
        [_, _, _, flags, ..] => Found::Code(flags & 15),
        _ => Found::Code(u8::MAX),
    }
}
