//! Serves one VM's control socket: at most one stream that counts, at most one that is still saying who it is.

use super::budget::{Budget, Rate};
use super::calls::Shared;
use super::connection::{Identified, IdentifyError, Identity, carry, identify};
use super::listener::Listener;
use messages::guest::{AgentFrame, RunningIdentity};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

/// How often a guest may dial.
const DIALS: Rate = Rate { burst: 16, per_second: 10 };
/// How long to wait when this host has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One control stream of one link; never the same twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u64);

/// What happens on a link. Frames of a connection come between its `Connected` and its `Disconnected`.
#[derive(Debug)]
pub enum LinkEvent {
    /// An agent dialled and said who it is. It waits for a spec or a welcome.
    Connected {
        connection: ConnectionId,
        running: Option<RunningIdentity>,
        uptime_us: u64,
        restarts: u32,
    },
    /// Anything but an answer to a call.
    Frame {
        connection: ConnectionId,
        frame: AgentFrame,
    },
    Disconnected {
        connection: ConnectionId,
        why: IdentifyError,
    },
    /// Something dialled and was turned away. Not told while events are waiting to be received.
    Refused {
        why: IdentifyError,
    },
    /// Nobody is on the link and nothing that was said on it is left: the answer to `AgentLink::drain`.
    Drained,
}

/// The deadlines of a link.
#[derive(Clone, Copy, Debug)]
pub struct LinkLimits {
    /// From the dial to the identity. Under emulation on a loaded host an agent needs most of a second.
    pub identify: Duration,
    /// For one frame to be taken by the guest.
    pub write: Duration,
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self { identify: Duration::from_secs(10), write: Duration::from_secs(30) }
    }
}

type Boxed<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// The task behind an `AgentLink`.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) listener: Listener,
    pub(super) shared: Arc<Shared>,
    pub(super) events: mpsc::Sender<LinkEvent>,
    /// Ends when the last handle is dropped.
    pub(super) closed: watch::Receiver<()>,
    pub(super) limits: LinkLimits,
}

impl Server {
    /// Serves until nobody holds the link or nobody receives its events.
    pub(super) async fn run(mut self) {
        let mut dials = Budget::new(DIALS);
        let mut last = ConnectionId(0);
        let mut identifying: Boxed<Result<(Identity, Identified), IdentifyError>> = None;
        let mut current: Boxed<IdentifyError> = None;
        let mut draining = false;
        loop {
            if draining && current.is_none() && identifying.is_none() {
                draining = false;
                drop(self.events.send(LinkEvent::Drained).await);
            }
            tokio::select! {
                // The drain comes last: a stream that waits to be accepted may hold what it is to wait for.
                biased;
                _ = self.closed.changed() => break,
                () = self.events.closed() => break,
                () = self.shared.hang_up.notified() => {
                    if current.take().is_some() {
                        self.end(last, IdentifyError::Dropped).await;
                    }
                }
                accepted = accept(&self.listener, &mut dials) => {
                    // Replaces one that is still identifying: an agent dials again only when the stream before is dead.
                    let limit = self.limits.identify;
                    identifying = Some(Box::pin(identify(accepted, limit)));
                }
                outcome = finished(&mut identifying) => match outcome.and_then(|one| self.admit(one)) {
                    Ok(identified) => {
                        if current.take().is_some() {
                            self.end(last, IdentifyError::Replaced).await;
                        }
                        last = ConnectionId(last.0 + 1);
                        current = self.begin(last, identified).await;
                    }
                    Err(why) => {
                        // Not louder: a guest can cause ten of these a second for ever.
                        tracing::debug!(%why, "turned a control stream away");
                        drop(self.events.try_send(LinkEvent::Refused { why }));
                    }
                },
                why = finished(&mut current) => self.end(last, why).await,
                () = self.shared.drain.notified() => draining = true,
            }
        }
        self.shared.disconnected(&IdentifyError::Dropped);
    }

    fn admit(&self, one: (Identity, Identified)) -> Result<(Identity, Identified), IdentifyError> {
        let known = self.shared.pinned().is_none_or(|nonce| one.0.running.as_ref().is_some_and(|it| it.nonce == nonce));
        if known { Ok(one) } else { Err(IdentifyError::WrongNonce) }
    }

    async fn begin(&self, id: ConnectionId, identified: (Identity, Identified)) -> Boxed<IdentifyError> {
        let (outgoing, answers) = self.shared.connected(id);
        let (Identity { running, uptime_us, restarts }, stream) = identified;
        let event = LinkEvent::Connected { connection: id, running, uptime_us, restarts };
        // Refused only if nobody receives any more: then the loop ends by itself.
        drop(self.events.send(event).await);
        Some(Box::pin(carry(stream, id, outgoing, answers, self.events.clone(), self.limits)))
    }

    async fn end(&self, id: ConnectionId, why: IdentifyError) {
        self.shared.disconnected(&why);
        drop(self.events.send(LinkEvent::Disconnected { connection: id, why }).await);
    }
}

async fn accept(listener: &Listener, dials: &mut Budget) -> tokio::net::UnixStream {
    loop {
        // Before the accept: whoever drops this future must not lose a stream.
        dials.ready().await;
        match listener.socket.accept().await {
            Ok((stream, _)) => {
                dials.owe(1);
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an agent's connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The end of a future that may not be there; clears it when it ends.
async fn finished<T>(future: &mut Boxed<T>) -> T {
    match future {
        Some(running) => {
            let output = running.as_mut().await;
            *future = None;
            output
        }
        None => std::future::pending().await,
    }
}
