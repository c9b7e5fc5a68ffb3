//! A network namespace with the helper's real executor in it, guests that are open tap files, and an uplink that is one too.
//!
//! The namespace belongs to one thread and is gone with it, whatever happened: no address of it is ever seen outside.

use super::frames::{self, End};
use crate::privileged::kernel::Kernel;
use crate::privileged::ops::{OperationError, Operations};
use crate::privileged::resolved::NamesKeeper;
use crate::privileged::sys;
use messages::ids::InstanceId;
use messages::privileged::{
    Grant, PrivilegedOperation, PrivilegedReply, Subnet, TapNumber, default_bridge_name, guest_address, guest_mac,
    tap_name,
};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sched::{CloneFlags, unshare};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// `struct virtio_net_hdr`, all zero: no offloads.
const HEADER: usize = 10;
/// How long to wait for a frame that should come.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long to wait for a frame that should not: a frame through the kernel takes microseconds.
const SILENCE: Duration = Duration::from_millis(60);
const OWNER: u32 = 65_534;

pub(super) const UPLINK: &str = "up0";
/// The router behind the uplink.
pub(super) const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The host's address there (RFC 2544's range: nobody's).
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
pub(super) const ROUTER_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 2];

/// Runs a test in a namespace of its own, or says that it cannot.
pub(super) fn in_a_namespace(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/dev/net/tun").exists() {
        return skip("real packets need root and /dev/net/tun");
    }
    let thread = std::thread::spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            test();
            true
        }
        Err(_) => false,
    });
    match thread.join() {
        Ok(true) => {}
        Ok(false) => skip("no network namespace can be made here"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

pub(super) fn skip(why: &str) {
    println!("skipped: {why}");
}

/// An open tap file.
#[derive(Debug)]
pub(super) struct Port {
    file: File,
    pub(super) end: End,
}

impl Port {
    fn open(name: &str, end: End) -> Self {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun").unwrap();
        sys::attach_tap(&file, name).unwrap();
        Self { file, end }
    }

    fn send(&self, frame: &[u8]) {
        (&self.file).write_all(&[&[0; HEADER][..], frame].concat()).unwrap();
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 65536];
        let length = (&self.file).read(&mut buffer).ok()?;
        Some(buffer[HEADER..length].to_vec())
    }
}

/// One instance's bridge, rules and taps.
pub(super) struct Lab {
    runtime: tokio::runtime::Runtime,
    operations: Operations<Kernel>,
    /// Guests in the order of [`Lab::guest`], after the uplink.
    ports: Vec<Port>,
}

pub(super) fn subnet(third: u8) -> Subnet {
    Subnet { gateway: Ipv4Addr::new(172, 16, third, 1), prefix: 24, ipv6: None }
}

/// Where the frames of a port appear: 0 is the uplink.
pub(super) type At = usize;
pub(super) const AT_UPLINK: At = 0;

impl Lab {
    pub(super) fn new() -> Self {
        Self::with_names(NamesKeeper::Absent("not in this test".to_owned()))
    }

    pub(super) fn with_names(names: NamesKeeper) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let kernel = runtime.block_on(async { Kernel::open(names) }).unwrap();
        let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        sys::make_tap(&tun, &UPLINK.parse().unwrap(), 0).unwrap();
        drop(tun);
        let port = Port::open(UPLINK, End { mac: ROUTER_MAC, ip: ROUTER });
        let lab = Self { runtime, operations: Operations::new(kernel, OWNER), ports: vec![port] };
        ip(&["address", "add", &format!("{HOST}/24"), "dev", UPLINK]);
        ip(&["link", "set", UPLINK, "up"]);
        ip(&["link", "set", "lo", "up"]);
        ip(&["route", "add", "default", "via", &ROUTER.to_string()]);
        lab
    }

    pub(super) fn perform(&mut self, operation: &PrivilegedOperation) -> Result<PrivilegedReply, OperationError> {
        self.runtime.block_on(self.operations.perform(operation)).map(|performed| performed.reply)
    }

    pub(super) fn done(&mut self, operation: &PrivilegedOperation) {
        self.perform(operation).unwrap_or_else(|error| panic!("{operation:?}: {error:?}"));
    }

    /// Bridge and rules.
    pub(super) fn network(&mut self, instance: InstanceId, subnet: Subnet) {
        let bridge = default_bridge_name(instance);
        self.done(&PrivilegedOperation::EnsureBridge { instance, bridge: bridge.clone(), subnet });
        self.done(&PrivilegedOperation::EnsureNat { instance, bridge, subnet });
    }

    pub(super) fn tap(&mut self, instance: InstanceId, tap: u16) {
        let bridge = default_bridge_name(instance);
        self.done(&PrivilegedOperation::EnsureTap { instance, bridge, tap: TapNumber(tap), mtu: None });
    }

    /// A tap with a guest on it; says where its frames appear.
    pub(super) fn guest(&mut self, instance: InstanceId, subnet: Subnet, tap: u16) -> At {
        self.tap(instance, tap);
        let tap = TapNumber(tap);
        let end = End { mac: guest_mac(instance, tap), ip: guest_address(subnet, tap).unwrap() };
        self.ports.push(Port::open(tap_name(instance, tap).as_str(), end));
        let at = self.ports.len() - 1;
        self.wait_for_carrier(at, instance, subnet);
        at
    }

    /// A neighbour on another network of the host's, where the host is `host`; says where its frames appear. Whatever source it
    /// writes is routed.
    pub(super) fn neighbour(&mut self, name: &str, end: End, host: End) -> At {
        let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        sys::make_tap(&tun, &name.parse().unwrap(), 0).unwrap();
        drop(tun);
        self.ports.push(Port::open(name, end));
        ip(&["link", "set", name, "address", &host.mac.map(|byte| format!("{byte:02x}")).join(":")]);
        ip(&["address", "add", &format!("{}/24", host.ip), "dev", name]);
        for interface in ["all", name] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), "0").unwrap();
        }
        ip(&["link", "set", name, "up"]);
        self.ports.len() - 1
    }

    /// Sends a frame until it comes out at the uplink, which it has to: the kernel may not have noticed a carrier yet.
    pub(super) fn leaves(&self, from: At, frame: &[u8], mark: &[u8]) -> Vec<u8> {
        let started = Instant::now();
        loop {
            self.send(from, frame);
            if let Some(out) = self.watch(SILENCE, |at, frame| at == AT_UPLINK && frame.ends_with(mark)) {
                return out;
            }
            assert!(started.elapsed() < PATIENCE, "{}: does not leave", String::from_utf8_lossy(mark));
        }
    }

    /// The kernel takes notice of a carrier at its leisure, and drops frames until then.
    fn wait_for_carrier(&self, at: At, instance: InstanceId, subnet: Subnet) {
        let [a, b, c] = instance.0;
        let gateway = End { mac: [0x02, a, b, c, 0xff, 0xff], ip: subnet.gateway };
        let started = Instant::now();
        loop {
            self.send(at, &frames::echo(self.end(at), gateway, b"carrier"));
            self.send(at, &frames::udp(self.end(at), End { ip: ROUTER, ..gateway }, (1, 1), b"carrier"));
            let (mut here, mut there) = (false, false);
            let both = |found: At, frame: &[u8]| {
                here |= found == at && frame.ends_with(b"carrier");
                there |= found == AT_UPLINK && frame.ends_with(b"carrier");
                here && there
            };
            if self.watch(SILENCE, both).is_some() {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "no carrier: {here} {there}");
        }
    }

    pub(super) fn grant(&mut self, instance: InstanceId, subnet: Subnet, grants: &[Grant]) {
        let bridge = default_bridge_name(instance);
        self.done(&PrivilegedOperation::SetGrants { instance, bridge, subnet, grants: grants.to_vec() });
    }

    pub(super) fn end(&self, at: At) -> End {
        self.ports[at].end
    }

    pub(super) fn send(&self, from: At, frame: &[u8]) {
        self.ports[from].send(frame);
    }

    /// The first frame that is wanted; none within `patience`. Guests and router answer the host's questions meanwhile.
    fn watch(&self, patience: Duration, mut wanted: impl FnMut(At, &[u8]) -> bool) -> Option<Vec<u8>> {
        let end = Instant::now() + patience;
        loop {
            for (at, port) in self.ports.iter().enumerate() {
                while let Some(frame) = port.receive() {
                    if let Some(asker) = frames::asks_for(&frame, port.end.ip) {
                        port.send(&frames::arp(port.end.mac, asker.mac, 2, port.end, asker));
                    }
                    if wanted(at, &frame) {
                        return Some(frame);
                    }
                }
            }
            let left = end.checked_duration_since(Instant::now())?;
            let mut fds: Vec<PollFd<'_>> =
                self.ports.iter().map(|port| PollFd::new(port.file.as_fd(), PollFlags::POLLIN)).collect();
            nix::poll::poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)).unwrap();
        }
    }

    /// Waits for a frame that has to come.
    pub(super) fn arrives(&self, what: &str, wanted: impl Fn(At, &[u8]) -> bool) -> Vec<u8> {
        let mut others = Vec::new();
        let found = self.watch(PATIENCE, |at, frame| {
            others.push(format!("{at}: {}", hex::encode(frame)));
            wanted(at, frame)
        });
        found.unwrap_or_else(|| panic!("{what}: does not arrive, but these do: {others:#?}"))
    }

    /// Whether such a frame comes while one would.
    pub(super) fn comes(&self, patience: bool, wanted: impl Fn(At, &[u8]) -> bool) -> bool {
        self.watch(if patience { PATIENCE } else { SILENCE }, wanted).is_some()
    }
}

/// Runs a tool that has to succeed, in this thread's namespace.
pub(super) fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(super) fn ip(arguments: &[&str]) {
    tool("ip", arguments);
}
