//! What one guest, and all of them together, may have of the resolver at the same time.

use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Questions on their way to the host's resolvers; each holds a socket. A resolver that answers in 20 ms serves 6400 a second.
pub(super) const FORWARDS_MAX: usize = 128;
/// And of one guest.
pub(super) const FORWARDS_EACH: usize = 32;
/// TCP connections.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// And of one guest, or of the host.
pub(super) const CONNECTIONS_EACH: usize = 16;
/// How long a TCP connection may be silent, and how long its peer may take to read an answer.
pub(super) const CONNECTION_IDLE: Duration = Duration::from_secs(5);
/// How long one resolver gets by UDP, or by TCP. Three of them fit into the 5 s that glibc waits (`RES_TIMEOUT`, resolv.h).
pub(super) const UPSTREAM_TIME: Duration = Duration::from_millis(1500);
/// How many resolvers are asked: as many as glibc would (`MAXNS`, resolv.h).
pub(super) const UPSTREAMS_MAX: usize = 3;
/// The largest UDP answer that is asked for and given: what DNS Flag Day 2020 settled on, below every MTU.
pub(super) const UDP_PAYLOAD: u16 = 1232;

/// Sources are spread over so many shares by their last bits: neighbours in a subnet have one each.
const SHARES: usize = 64;

/// A bound for all, and one for each.
#[derive(Debug)]
pub(super) struct Shares {
    all: Semaphore,
    each: Vec<Semaphore>,
}

/// A place that is given back when dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    _all: SemaphorePermit<'a>,
    _each: SemaphorePermit<'a>,
}

impl Shares {
    pub(super) fn new(all: usize, each: usize) -> Self {
        Self { all: Semaphore::new(all), each: (0..SHARES).map(|_| Semaphore::new(each)).collect() }
    }

    /// A place, unless this source or all of them together have theirs in use. Never waits: a queue would be a guest's to fill.
    pub(super) fn take(&self, source: Ipv4Addr) -> Option<Place<'_>> {
        let share = usize::from(source.octets()[3]) % SHARES;
        let each = self.each[share].try_acquire().ok()?;
        let all = self.all.try_acquire().ok()?;
        Some(Place { _all: all, _each: each })
    }
}
