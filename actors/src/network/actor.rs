//! The actor: carries the plan out, and remembers that it did.

use super::{HostIpv6, NetworkSettings, plan};
use crate::dns::ServeBridge;
use crate::privileged::Perform;
use crate::supervise::{Panicked, guard_future};
use actix::{Actor, AtomicResponse, Context, Handler, Message, Recipient, Supervised};
use messages::WireError;
use messages::error::ErrorKind;
use messages::privileged::PrivilegedReply;
use std::cell::{Cell, RefCell};
use std::net::Ipv6Addr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Enough for every VM of a full bridge to ask at once.
const MAILBOX: usize = 1024;

/// After a helper did not answer in time, whoever asks within this asked while it was waited for: each would wait as long again, one
/// behind the other.
const SILENCE: Duration = Duration::from_secs(1);

/// How sure the asker has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// Once per daemon is enough.
    Remembered,
    /// Something was missing: look again.
    Fresh,
}

/// Brings the network about; returns once it is there, with how often its rules were written: new ones hold no grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<u64, WireError>")]
pub struct EnsureNetwork(pub Certainty);

/// Bridge and NAT of this instance.
#[derive(Debug)]
pub struct Network {
    settings: NetworkSettings,
    helper: Recipient<Perform>,
    /// Who serves names on the bridge; told as soon as there is one.
    names: Option<Recipient<ServeBridge>>,
    /// True once the plan was carried out and nobody has missed anything since.
    there: Rc<Cell<bool>>,
    /// How often the helper wrote the rules.
    writings: Rc<Cell<u64>>,
    /// When the helper last did not answer in time, and what was said of it.
    silent: Rc<RefCell<Option<(Instant, WireError)>>>,
    /// Says whether the host has IPv6.
    host: fn() -> HostIpv6,
    /// The IPv6 network of guests. Once there is one it stays until the daemon ends: running guests hold addresses of it,
    /// and a host whose IPv6 comes and goes must not take their connections to others of its networks.
    ipv6: Rc<watch::Sender<Option<Ipv6Addr>>>,
}

impl Network {
    /// A network that is brought about when it is first needed.
    #[must_use]
    pub fn new(settings: NetworkSettings, helper: Recipient<Perform>) -> Self {
        let host = HostIpv6::read;
        // At once, for guests from before the daemon's start: their addresses are told before the bridge is asked for.
        let ipv6 = settings.ipv6_network(host());
        Self {
            settings,
            helper,
            names: None,
            there: Rc::new(Cell::new(false)),
            writings: Rc::new(Cell::new(0)),
            silent: Rc::default(),
            host,
            ipv6: Rc::new(watch::Sender::new(ipv6)),
        }
    }

    /// Takes somebody else's word for what the host has.
    #[must_use]
    pub fn with_host(self, host: fn() -> HostIpv6) -> Self {
        self.ipv6.send_replace(self.settings.ipv6_network(host()));
        Self { host, ..self }
    }

    /// The IPv6 network that guests have.
    #[must_use]
    pub fn ipv6(&self) -> watch::Receiver<Option<Ipv6Addr>> {
        self.ipv6.subscribe()
    }

    /// Has names served on the bridge, before the first guest is told whom to ask.
    #[must_use]
    pub fn with_names(self, names: Recipient<ServeBridge>) -> Self {
        Self { names: Some(names), ..self }
    }
}

impl Actor for Network {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Supervised for Network {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.there.set(false);
    }
}

impl Handler<EnsureNetwork> for Network {
    // One at a time: those who ask meanwhile find it done.
    type Result = AtomicResponse<Self, Result<u64, WireError>>;

    fn handle(&mut self, EnsureNetwork(certainty): EnsureNetwork, _: &mut Self::Context) -> Self::Result {
        let (there, writings) = (Rc::clone(&self.there), Rc::clone(&self.writings));
        let helper = self.helper.clone();
        let names = self.names.clone();
        let host = if self.ipv6.borrow().is_some() { HostIpv6::Yes } else { (self.host)() };
        let (operations, ipv6) = (plan(&self.settings, host), self.settings.ipv6_network(host));
        let (published, silent) = (Rc::clone(&self.ipv6), Rc::clone(&self.silent));
        guard_future(self, async move {
            if there.get() && certainty == Certainty::Remembered {
                return Ok(writings.get());
            }
            let waited_along = silent.borrow().clone().filter(|(since, _)| since.elapsed() < SILENCE);
            if let Some((_, error)) = waited_along {
                return Err(error);
            }
            there.set(false);
            for operation in operations {
                let sent = helper.send(Perform(operation)).await;
                let reply = sent
                    .map_err(|e| WireError::from_error(ErrorKind::Unavailable, &e))?
                    .map_err(|e| e.context("cannot set the VMs' network up"))
                    .inspect_err(|error| {
                        if error.kind == ErrorKind::Timeout {
                            silent.replace(Some((Instant::now(), error.clone())));
                        }
                    })?;
                if reply == PrivilegedReply::Rewritten {
                    writings.set(writings.get() + 1);
                }
            }
            // Names are a comfort: a network without them is there all the same.
            if let Some(names) = names
                && let Ok(Err(error)) | Err(error) = names.send(ServeBridge).await.map_err(|e| Panicked(e.to_string()))
            {
                tracing::warn!(%error, "names are not served on the bridge");
            }
            published.send_if_modified(|known| std::mem::replace(known, ipv6) != ipv6);
            there.set(true);
            Ok::<_, WireError>(writings.get())
        })
    }
}
