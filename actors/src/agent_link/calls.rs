//! The daemon's handle on one agent: frames out, and questions whose answers are matched by number.

use super::connection::IdentifyError;
use super::listener::{ListenError, Listener};
use super::server::{ConnectionId, LinkEvent, LinkLimits, Server};
use messages::error::{ErrorKind, WireError};
use messages::frame::{self, FrameError};
use messages::guest::{DaemonFrame, GuestAnswer, GuestQuestion};
use messages::ids::BootNonce;
use messages::limits::GUEST_FRAME_MAX;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// How many calls may wait for an answer.
const PENDING_MAX: usize = 64;
/// How many frames may wait to be written: an acknowledgement for each of a few hundred commands that end at once, say.
const OUTGOING_MAX: usize = 1024;
/// How many events may wait for the VM actor. Small: each may be as long as a frame.
const EVENTS_MAX: usize = 8;

/// Says how a frame or a call did not get through.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("the agent is not connected")]
    NotConnected,
    /// Whether the guest did it is not known.
    #[error("the agent's connection ended before it answered")]
    Disconnected,
    /// Whether the guest did it is not known.
    #[error("the agent did not answer within {} ms", after.as_millis())]
    Timeout { after: Duration },
    #[error("the agent has {OUTGOING_MAX} frames to take already")]
    Behind,
    #[error("the agent has {PENDING_MAX} questions to answer already")]
    Busy,
    #[error("the frame cannot be sent")]
    Frame(#[from] FrameError),
    #[error("the guest refused")]
    Guest(#[source] WireError),
}

impl CallError {
    /// The error as it crosses a socket.
    #[must_use]
    pub fn to_wire(&self) -> WireError {
        let kind = match self {
            Self::NotConnected => ErrorKind::Unavailable,
            Self::Disconnected => ErrorKind::Lost,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Behind | Self::Busy => ErrorKind::Resources,
            Self::Frame(_) => ErrorKind::Usage,
            Self::Guest(error) => return error.clone(),
        };
        WireError::from_error(kind, self)
    }
}

/// A handle on the link to one agent. When the last clone is dropped, the socket is closed and removed.
#[derive(Clone, Debug)]
pub struct AgentLink {
    shared: Arc<Shared>,
    /// Its end tells the server that nobody holds the link any more.
    _open: Arc<watch::Sender<()>>,
}

/// What the handles and the server have in common.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Has the server drop the present connection.
    pub(super) hang_up: tokio::sync::Notify,
    /// Has the server tell when nothing is left on the link.
    pub(super) drain: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    pinned: Option<BootNonce>,
}

#[derive(Debug)]
struct Current {
    id: ConnectionId,
    outgoing: mpsc::Sender<Vec<u8>>,
    answers: Arc<Answers>,
}

impl AgentLink {
    /// Listens for the agent at `path` (`VmFiles::agent_socket`), and tells what happens in `events`: whoever receives them
    /// slowly slows this guest only. Served by a task of the present runtime.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn listen(path: &Path) -> Result<(Self, mpsc::Receiver<LinkEvent>), ListenError> {
        Self::listen_within(path, LinkLimits::default())
    }

    /// [`AgentLink::listen`] with other deadlines.
    ///
    /// # Errors
    /// As [`AgentLink::listen`].
    pub fn listen_within(path: &Path, limits: LinkLimits) -> Result<(Self, mpsc::Receiver<LinkEvent>), ListenError> {
        let listener = Listener::bind(path)?;
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let (open, closed) = watch::channel(());
        let shared = Arc::new(Shared::default());
        tokio::spawn(Server { listener, shared: Arc::clone(&shared), events, closed, limits }.run());
        Ok((Self { shared, _open: Arc::new(open) }, receiver))
    }

    /// The connection that calls would go to.
    #[must_use]
    pub fn connection(&self) -> Option<ConnectionId> {
        self.shared.state().current.as_ref().map(|current| current.id)
    }

    /// From now on only an agent that knows this boot's nonce is let in, and a stranger cannot take its place: on Firecracker
    /// any program in the guest can dial the host. To be set once the agent has told that it is ready, and taken back
    /// (`None`) when the VMM has ended.
    pub fn pin(&self, nonce: Option<BootNonce>) {
        self.shared.state().pinned = nonce;
    }

    /// Closes the present connection; the agent dials again.
    pub fn disconnect(&self) {
        self.shared.hang_up.notify_one();
    }

    /// Asks for [`LinkEvent::Drained`] once the streams have ended and all that was said on them has been told. For a VMM that
    /// has ended: its side of a stream is closed then, but what its guest said last may still lie in it.
    pub fn drain(&self) {
        self.shared.drain.notify_one();
    }

    /// Sends a frame to the connection that it is meant for. Never waits: a guest that takes nothing in loses the connection, and has
    /// to begin again.
    ///
    /// # Errors
    /// [`CallError::NotConnected`] where it has ended or was replaced, [`CallError::Behind`] where it ends by this.
    pub fn send(&self, connection: ConnectionId, frame: &DaemonFrame) -> Result<(), CallError> {
        let bytes = frame::encode(frame, GUEST_FRAME_MAX)?;
        let outgoing = match &self.shared.state().current {
            Some(current) if current.id == connection => current.outgoing.clone(),
            _ => return Err(CallError::NotConnected),
        };
        outgoing.try_send(bytes).map_err(|error| match error {
            TrySendError::Full(_) => {
                self.disconnect();
                CallError::Behind
            }
            TrySendError::Closed(_) => CallError::NotConnected,
        })
    }

    /// Asks the agent and waits for its answer.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call(&self, question: GuestQuestion, limit: Duration) -> Result<GuestAnswer, CallError> {
        let (outgoing, answers) = match &self.shared.state().current {
            Some(current) => (current.outgoing.clone(), Arc::clone(&current.answers)),
            None => return Err(CallError::NotConnected),
        };
        let mut pending = answers.expect()?;
        let bytes = frame::encode(&DaemonFrame::Call { call: pending.call, question }, GUEST_FRAME_MAX)?;
        let exchange = async {
            outgoing.send(bytes).await.map_err(|_| CallError::NotConnected)?;
            (&mut pending.answer).await.map_err(|_| CallError::Disconnected)
        };
        let answer = timeout(limit, exchange).await.map_err(|_| CallError::Timeout { after: limit })??;
        answer.map_err(CallError::Guest)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pinned(&self) -> Option<BootNonce> {
        self.state().pinned
    }

    /// Makes a connection the present one. What it is to write comes out of the receiver.
    pub(super) fn connected(&self, id: ConnectionId) -> (mpsc::Receiver<Vec<u8>>, Arc<Answers>) {
        let (outgoing, receiver) = mpsc::channel(OUTGOING_MAX);
        let answers = Arc::new(Answers::default());
        self.state().current = Some(Current { id, outgoing, answers: Arc::clone(&answers) });
        (receiver, answers)
    }

    /// Fails every pending call of the present connection: there is none any more.
    pub(super) fn disconnected(&self, why: &IdentifyError) {
        let current = self.state().current.take();
        if let Some(current) = current {
            let failed = current.answers.fail_all();
            tracing::debug!(connection = ?current.id, failed, %why, "an agent's control stream ended");
        }
    }
}

type Answer = Result<GuestAnswer, WireError>;

/// The calls of one connection that wait for their answers.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// Grows by one with each call; a number is never used twice on a connection.
    last: u32,
    calls: HashMap<u32, oneshot::Sender<Answer>>,
    ended: bool,
}

/// One call's place in the list; leaves it when dropped.
#[derive(Debug)]
struct Pending {
    call: u32,
    answer: oneshot::Receiver<Answer>,
    answers: Arc<Answers>,
}

impl Answers {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(self: &Arc<Self>) -> Result<Pending, CallError> {
        let (sender, answer) = oneshot::channel();
        let mut waiting = self.waiting();
        if waiting.ended {
            return Err(CallError::NotConnected);
        }
        if waiting.calls.len() >= PENDING_MAX {
            return Err(CallError::Busy);
        }
        waiting.last = waiting.last.wrapping_add(1);
        let call = waiting.last;
        waiting.calls.insert(call, sender);
        Ok(Pending { call, answer, answers: Arc::clone(self) })
    }

    /// Hands an answer to its call. One that nobody waits for came too late, or was never asked for.
    pub(super) fn answer(&self, call: u32, result: Answer) {
        let waiter = self.waiting().calls.remove(&call);
        if waiter.is_none_or(|waiter| waiter.send(result).is_err()) {
            tracing::debug!(call, "an answer that nobody waits for");
        }
    }

    /// Ends every call without an answer, and takes no more.
    fn fail_all(&self) -> usize {
        let mut waiting = self.waiting();
        waiting.ended = true;
        let failed = waiting.calls.len();
        waiting.calls.clear();
        failed
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.answers.waiting().calls.remove(&self.call);
    }
}
