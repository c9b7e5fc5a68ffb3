//! The world outside of the host: a network namespace behind an uplink of its own, where somebody listens. Knows nothing of guests.

use crate::case::{Outcome, Stop, check, failed};
use crate::command::Program;
use nix::sched::{CloneFlags, unshare};
use std::net::{IpAddr, TcpListener};
use std::path::Path;
use std::sync::mpsc;

/// A veth pair and the addresses of its ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Uplink {
    /// The host's end.
    pub(crate) near: &'static str,
    pub(crate) far: &'static str,
    pub(crate) host: IpAddr,
    pub(crate) outside: IpAddr,
    pub(crate) prefix: u8,
}

/// Somebody who listens out there. The link is gone with it, and the namespace with the last socket in it.
#[derive(Debug)]
pub(crate) struct Outside {
    /// In the other namespace, whoever accepts from it.
    pub(crate) listener: TcpListener,
    uplink: Uplink,
}

impl Outside {
    /// Makes namespace and link. Whoever wants more routed there than what lies on the link adds the route.
    pub(crate) fn start(uplink: Uplink) -> Result<Self, Stop> {
        let (entered, inside) = mpsc::channel();
        let (linked, link) = mpsc::channel();
        // A namespace is a thread's own; what it binds there stays there when it has ended.
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            entered.send(std::fs::read_link("/proc/thread-self")?).ok();
            if link.recv().is_err() {
                return failed("the link to the outside could not be made");
            }
            uplink.far_end()
        });
        // Gone from here, the thread has said why by its end.
        let made = inside.recv().map(|thread| uplink.near_end(&Path::new("/proc").join(thread).join("ns/net")));
        if let Ok(Ok(())) = made {
            linked.send(()).ok();
        }
        drop(linked);
        let Ok(listener) = thread.join() else { return failed("the thread that goes outside panicked") };
        if let Ok(made) = made {
            made?;
        }
        Ok(Self { listener: listener?, uplink })
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        drop(Program::tool(&["ip", "link", "delete", self.uplink.near]).run());
    }
}

impl Uplink {
    fn near_end(&self, namespace: &Path) -> Outcome {
        let Self { near, far, host, prefix, .. } = self;
        tool(&format!("ip link add {near} type veth peer name {far}"))?;
        tool(&format!("ip link set {far} netns {}", namespace.display()))?;
        tool(&format!("ip link set {near} up"))?;
        tool(&format!("ip address add {host}/{prefix} dev {near}{}", at_once(*host)))
    }

    /// What is done in the other namespace: a program inherits the thread's.
    fn far_end(&self) -> Result<TcpListener, Stop> {
        let Self { far, outside, prefix, .. } = self;
        tool("ip link set lo up")?;
        tool(&format!("ip link set {far} up"))?;
        tool(&format!("ip address add {outside}/{prefix} dev {far}{}", at_once(*outside)))?;
        Ok(TcpListener::bind((*outside, 0))?)
    }
}

/// Without the second in which an IPv6 address might turn out to be somebody else's.
fn at_once(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

/// Runs a program, given by its words, that must succeed.
pub(crate) fn tool(line: &str) -> Outcome {
    let words: Vec<&str> = line.split(' ').collect();
    let done = Program::tool(&words).run()?;
    check(done.code() == 0, || format!("`{line}`: {}", done.err().trim()))
}
