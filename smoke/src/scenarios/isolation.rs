//! Guests among each other: what they reach, what they do not, and how many there can be.

use crate::case::{Case, Outcome, SETTLE, Stop, check};
use crate::command::Program;
use messages::error::ErrorKind;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::Instant;

/// How many guests of [`MEMORY`] run at once.
const TWELVE: usize = 12;
const MEMORY: &str = "256M";

/// Whether a guest can open a TCP connection. A packet that is dropped is waited for in vain.
pub(super) fn reaches(case: &Case<'_>, vm: &str, address: &str, port: u16) -> Result<bool, Stop> {
    let probe = format!("timeout 4 bash -c 'exec 3<>/dev/tcp/{address}/{port}' 2>/dev/null && echo yes || echo no");
    Ok(case.guest(vm, &probe)? == "yes")
}

pub(super) fn text(view: &Value, field: &str) -> String {
    view[field].as_str().unwrap_or_default().to_owned()
}

/// A port of the host's, open on all its addresses.
fn service() -> Result<(TcpListener, u16), Stop> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

pub(super) fn isolation(case: &Case<'_>) -> Outcome {
    let (vm, peer) = (case.vm(), case.vm_named("peer"));
    let unknown = ["vm", "create", "--no-start", "--name", &vm, "--net-allow", "vm:no-such-vm"];
    let refused = case.code(i32::from(ErrorKind::NotFound.exit_code()), &unknown)?;
    check(refused.err().contains("no-such-vm"), || format!("does not name it: {}", refused.err()))?;
    let (open, open_port) = service()?;
    let (shut, shut_port) = service()?;
    case.create(&peer, &["--wait", "system"])?;
    let (allow_peer, allow_port) = (format!("vm:{peer}"), format!("host:{open_port}"));
    case.create(&vm, &["--wait", "system", "--net-allow", &allow_peer, "--net-allow", &allow_port])?;
    let (view, peer_view) = (case.show(&vm)?, case.show(&peer)?);
    check(view["net_allow"] == serde_json::json!([allow_peer, allow_port]), || format!("{}", view["net_allow"]))?;
    let (address, peer_address) = (text(&view, "address"), text(&peer_view, "address"));
    let gateway = case.guest(&vm, "ip route show default | cut -d' ' -f3")?;
    let rows = [
        ("an allowed peer", &vm, peer_address.as_str(), 22, true),
        ("the other way round", &peer, address.as_str(), 22, false),
        ("an allowed port of the host", &vm, gateway.as_str(), open_port, true),
        ("another port of the host", &vm, gateway.as_str(), shut_port, false),
        ("the peer at the same port", &peer, gateway.as_str(), open_port, false),
        ("metadata", &vm, "169.254.169.254", 80, false),
    ];
    for (name, from, to, port, expected) in rows {
        let found = reaches(case, from, to, port)?;
        case.note(format!("  {name}: {from} to {to}:{port}: {found}"));
        check(found == expected, || format!("{name}: {from} to {to}:{port} is {found}"))?;
    }
    // As somebody else it reaches nothing, not even what it may.
    let mac = case.guest(&vm, "cat /sys/class/net/eth0/address")?;
    case.guest(&vm, "ip link set eth0 address 06:00:00:00:00:99")?;
    check(!reaches(case, &vm, &gateway, open_port)?, || "a false hardware address gets through".to_owned())?;
    case.guest(&vm, &format!("ip link set eth0 address {mac}"))?;
    case.wait(SETTLE, "the guest to be itself again", || {
        Ok(if reaches(case, &vm, &gateway, open_port)? { Ok(()) } else { Err("not yet".to_owned()) })
    })?;
    // What was allowed goes with the peer, whoever has its address next.
    case.ok(&["vm", "delete", "--force", &peer])?;
    let heir = case.vm_named("heir");
    case.create(&heir, &["--wait", "system"])?;
    let heir_address = text(&case.show(&heir)?, "address");
    check(!reaches(case, &vm, &heir_address, 22)?, || format!("{vm} reaches {heir_address}, which nobody allowed"))?;
    drop((open, shut));
    Ok(())
}

pub(super) fn twelve(case: &Case<'_>) -> Outcome {
    let names: Vec<String> = (0..TWELVE).map(|number| case.vm_named(&format!("n{number}"))).collect();
    let started = Instant::now();
    for name in &names {
        case.ok(&["vm", "create", "--name", name, "--memory", MEMORY, "--vcpu", "1"])?;
    }
    for name in &names {
        case.wait(SETTLE * 3, &format!("an agent in {name}"), || {
            let readiness = case.field(name, "readiness")?.unwrap_or_default();
            Ok(if readiness.is_null() { Err("none".to_owned()) } else { Ok(()) })
        })?;
    }
    case.note(format!("  {TWELVE} guests of {MEMORY} after {:.1} s", started.elapsed().as_secs_f64()));
    let mut addresses = BTreeSet::new();
    for name in &names {
        let address = text(&case.show(name)?, "address");
        let own = case.guest(name, "ip -4 -o address show eth0")?;
        check(own.contains(&format!("{address}/")), || format!("{name} should have {address}, and has {own}"))?;
        addresses.insert(address);
    }
    check(addresses.len() == TWELVE, || format!("{addresses:?}"))
}

pub(super) fn two_instances(case: &Case<'_>) -> Outcome {
    let config = "tap_pool_size = 1\ncidr = \"172.18.0.0/24\"\n[vm_defaults]\nvcpu = 1\nmemory_mib = 512\ndisk_size = \"2GiB\"\n";
    let world = case.world.beside("i", config)?;
    let other = Case::new(&world, "two-instances");
    let before = bridges()?;
    let result = side_by_side(case, &other);
    drop(other.clean_up());
    drop(world.banger(&["daemon", "stop"]).run());
    case.note(other.take_log());
    for bridge in bridges()?.difference(&before) {
        remove_network(bridge)?;
    }
    result
}

/// The bridges of every instance.
pub(super) fn bridges() -> Result<BTreeSet<String>, Stop> {
    Ok(interfaces()?.into_iter().filter(|name| name.starts_with("bb")).collect())
}

fn interfaces() -> Result<Vec<String>, Stop> {
    let entries = std::fs::read_dir("/sys/class/net")?.flatten();
    Ok(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// A network outlives its daemon, as its VMs do; `daemon root stop` removes it with the helper, which the other scenarios need.
pub(super) fn remove_network(bridge: &str) -> Outcome {
    let instance = bridge.strip_prefix("bb").unwrap_or(bridge);
    let taps = format!("bt{instance}-");
    for name in interfaces()?.iter().filter(|name| *name == bridge || name.starts_with(&taps)) {
        Program::tool(&["ip", "link", "delete", name]).run()?;
    }
    // Their names have the owner's uid before the instance.
    let listed = Program::tool(&["nft", "list", "tables"]).run()?.out();
    for table in listed.lines().filter(|table| table.ends_with(&format!("_{instance}"))) {
        let words: Vec<&str> = ["nft", "delete"].into_iter().chain(table.split_whitespace()).collect();
        Program::tool(&words).run()?;
    }
    Ok(())
}

fn side_by_side(case: &Case<'_>, other: &Case<'_>) -> Outcome {
    let (mine, theirs) = (case.vm_named("mine"), case.vm_named("theirs"));
    let (listener, port) = service()?;
    let allow = format!("host:{port}");
    case.create(&mine, &["--wait", "system", "--net-allow", &allow])?;
    other.create(&theirs, &["--wait", "system", "--net-allow", &allow])?;
    let (my_address, their_address) = (text(&case.show(&mine)?, "address"), text(&other.show(&theirs)?, "address"));
    check(their_address.starts_with("172.18.0.") && !my_address.starts_with("172.18.0."), || {
        format!("addresses {my_address} and {their_address}")
    })?;
    check(other.list()?.len() == 1 && case.list()?.len() == 1, || "one sees the other's VMs".to_owned())?;
    let gateway = case.guest(&mine, "ip route show default | cut -d' ' -f3")?;
    for (from, vm, to, port, expected) in [
        (case, &mine, gateway.as_str(), port, true),
        (other, &theirs, "172.18.0.1", port, true),
        (case, &mine, their_address.as_str(), 22, false),
        (other, &theirs, my_address.as_str(), 22, false),
        (case, &mine, "172.18.0.1", port, false),
    ] {
        let found = reaches(from, vm, to, port)?;
        check(found == expected, || format!("{vm} to {to}:{port} is {found}"))?;
    }
    // One goes, the other stays.
    other.ok(&["vm", "delete", "--force", &theirs])?;
    check(reaches(case, &mine, &gateway, port)?, || "the first lost its network with the second".to_owned())?;
    drop(listener);
    Ok(())
}
