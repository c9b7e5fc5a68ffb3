//! Guests beside an IPv6 uplink: an instance of its own, and a router that is a thread in another namespace.

use super::isolation::{bridges, reaches, remove_network, text};
use crate::case::{Case, Outcome, SETTLE, Stop, check};
use crate::command::Program;
use nix::sched::{CloneFlags, unshare};
use std::net::{Ipv6Addr, TcpListener};
use std::sync::mpsc;

/// The two ends of the uplink, of the range for documentation (RFC 3849).
const HOST: &str = "2001:db8:7::1";
const ROUTER: &str = "2001:db8:7::2";
const UPLINK: &str = "six0";
const FAR_END: &str = "six1";

/// A router: a thread in a network namespace of its own, where it listens. Namespace and link are gone with it.
struct Router {
    port: u16,
    end: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Router {
    fn start() -> Result<Self, Stop> {
        let (started, start) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let (linked, link) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let thread = std::fs::read_link("/proc/thread-self").unwrap_or_default();
            let made = unshare(CloneFlags::CLONE_NEWNET).map_err(|error| error.to_string());
            if started.send(made.map(|()| thread)).is_err() || link.recv().is_err() {
                return;
            }
            let listened = far_end().and_then(|()| {
                let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))?;
                Ok((listener.local_addr()?.port(), listener))
            });
            let listener = match listened {
                Ok((port, listener)) => {
                    drop(started.send(Ok(port.to_string().into())));
                    Some(listener)
                }
                Err(error) => {
                    drop(started.send(Err(format!("{error:?}"))));
                    None
                }
            };
            ended.recv().ok();
            drop(listener);
        });
        let mut router = Self { port: 0, end: Some(end), thread: Some(thread) };
        let heard = |start: &mpsc::Receiver<Result<std::path::PathBuf, String>>| {
            start.recv_timeout(SETTLE).map_err(|error| Stop::Failed(error.to_string()))?.map_err(Stop::Failed)
        };
        let namespace = format!("/proc/{}/ns/net", heard(&start)?.display());
        for line in [
            format!("ip link add {UPLINK} type veth peer name {FAR_END}"),
            format!("ip link set {FAR_END} netns {namespace}"),
            format!("ip link set {UPLINK} up"),
            format!("ip -6 address add {HOST}/64 dev {UPLINK} nodad"),
            format!("ip -6 route add default via {ROUTER} dev {UPLINK}"),
        ] {
            tool(&line)?;
        }
        linked.send(()).ok();
        let port = heard(&start)?;
        router.port = port.to_string_lossy().parse().map_err(|_| Stop::Failed("no port".to_owned()))?;
        Ok(router)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        drop(Program::tool(&["ip", "link", "delete", UPLINK]).run());
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// What is done in the router's namespace: a program inherits the thread's.
fn far_end() -> Outcome {
    tool("ip link set lo up")?;
    tool(&format!("ip link set {FAR_END} up"))?;
    tool(&format!("ip -6 address add {ROUTER}/64 dev {FAR_END} nodad"))
}

fn tool(line: &str) -> Outcome {
    let words: Vec<&str> = line.split(' ').collect();
    let done = Program::tool(&words).run()?;
    check(done.code() == 0, || format!("`{line}`: {}", done.err().trim()))
}

pub(super) fn ipv6(case: &Case<'_>) -> Outcome {
    let router = Router::start()?;
    let config = "tap_pool_size = 1\ncidr = \"172.20.0.0/24\"\n[vm_defaults]\nvcpu = 1\nmemory_mib = 512\ndisk_size = \"2GiB\"\n";
    let world = case.world.beside("six", config)?;
    let own = Case::new(&world, "ipv6");
    let before = bridges()?;
    let result = beside_the_uplink(&own, router.port);
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
    let rows = [
        ("the world", &vm, ROUTER, outside, true),
        ("the peer", &vm, peer_address.as_str(), 22, false),
        ("an allowed port of the host", &vm, gateway.as_str(), open_port, true),
        ("another port of the host", &vm, gateway.as_str(), shut_port, false),
        ("the peer at the same port", &peer, gateway.as_str(), open_port, false),
        ("the host by its other address", &vm, HOST, open_port, false),
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
    check(!reaches(case, &vm, ROUTER, outside)?, || "the peer's address gets through".to_owned())?;
    case.guest(&vm, &route(&address))?;
    check(reaches(case, &vm, ROUTER, outside)?, || "the guest is not itself again".to_owned())?;
    drop((open, shut));
    Ok(())
}
