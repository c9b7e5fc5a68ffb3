//! Accepts connections, reads requests and answers them. One task carries operations out, one after the other.
//!
//! ```text
//! connection ─┐
//! connection ─┼─ Work (bounded) ─▶ worker: check, look, do ─▶ the answer's channel ─▶ connection
//! connection ─┘
//! ```
//! A connection that breaks the protocol, or stalls, ends itself and nothing else.

use super::host::Host;
use super::ops::{Operations, Performed};
use super::peer::{Admission, admit, refusal};
use actors_sys::fd_stream::FdStream;
use link::frames::{FrameReader, ReadError, send_hello, write_frame};
use messages::error::WireError;
use messages::limits::PRIVILEGED_FRAME_MAX;
use messages::privileged::{PrivilegedOperation, PrivilegedRequest, PrivilegedResponse};
use std::future::Future;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};
use tracing::{debug, info, warn};

/// How many connections of the owner's, and root's, may be open. The daemon needs one; the rest is for a `status` or two.
const CONNECTIONS_MAX: usize = 32;
/// How many peers may be told at once that they are refused; more are cut off. They must not stand in the owner's way.
const REFUSALS_MAX: usize = 4;
/// How long a refused peer may take to be told.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// How long a peer may take for its hello.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// How long a peer may take to read an answer.
const WRITE_TIME: Duration = Duration::from_secs(10);
/// How many requests may wait for the worker; more make their connections wait.
const WORK_QUEUE: usize = 64;

/// Why the helper stopped without being told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the worker ended: nothing can be carried out any more")]
    Worker(#[source] JoinError),
}

struct Work {
    operation: PrivilegedOperation,
    answer: oneshot::Sender<Result<Performed, WireError>>,
}

/// Serves until `stop` resolves; the operation that is running then is finished first.
///
/// # Errors
/// At once, when the worker panics. What it held of the host is lost with it, so there is no second one: the next helper starts from
/// what the kernel has, and one that stayed would accept connections only to close them.
pub(super) async fn serve<H: Host>(
    listener: UnixListener,
    host: H,
    owner_uid: u32,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (work, queue) = mpsc::channel(WORK_QUEUE);
    let mut worker = tokio::spawn(carry_out(queue, Operations::new(host, owner_uid)));
    let mut connections = JoinSet::new();
    let mut refusals = JoinSet::new();
    tokio::pin!(stop);
    let ended = loop {
        tokio::select! {
            biased;
            () = &mut stop => break None,
            result = &mut worker => break Some(result),
            Some(_) = connections.join_next() => {}
            Some(_) = refusals.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if admit(peer.uid(), owner_uid) == Admission::Admitted => {
                        connections.spawn(converse(stream, peer.uid(), work.clone()));
                    }
                    Ok(peer) if refusals.len() < REFUSALS_MAX => {
                        refusals.spawn(refuse(stream, peer.uid(), owner_uid));
                    }
                    Ok(peer) => debug!(peer_uid = peer.uid(), "cut off a peer that is not the owner: one of too many"),
                    Err(error) => warn!(%error, "the kernel does not say who connected"),
                },
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    // Out of descriptors, most likely: give the open connections time to end.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    info!("stopping; taps and rules stay");
    drop(work);
    connections.shutdown().await;
    refusals.shutdown().await;
    let ended = match ended {
        Some(result) => result,
        None => worker.await,
    };
    ended.map_err(ServeError::Worker)
}

async fn carry_out<H: Host>(mut queue: mpsc::Receiver<Work>, mut operations: Operations<H>) {
    while let Some(work) = queue.recv().await {
        // Whoever asked is gone: nobody waits for this, and the daemon asks again for what it wants.
        if work.answer.is_closed() {
            continue;
        }
        let result = operations.perform(&work.operation).await.map_err(WireError::from);
        match &result {
            Ok(_) => debug!(operation = ?work.operation, "done"),
            Err(error) => warn!(operation = ?work.operation, %error, "refused or failed"),
        }
        if work.answer.send(result).is_err() {
            debug!("the asker left before the answer");
        }
    }
}

async fn converse(stream: UnixStream, peer_uid: u32, work: mpsc::Sender<Work>) {
    if let Err(error) = Connection::new(stream).converse(&work).await {
        warn!(peer_uid, error = &error as &dyn std::error::Error, "closed a connection");
    }
}

async fn refuse(stream: UnixStream, peer_uid: u32, owner_uid: u32) {
    warn!(peer_uid, "refused a peer that is not the owner");
    let refusal = refusal(peer_uid, owner_uid);
    let told = tokio::time::timeout(REFUSAL_TIME, Connection::new(stream).refuse(&refusal)).await;
    if let Err(error) = told.unwrap_or(Err(Ended::Slow("be refused"))) {
        debug!(peer_uid, error = &error as &dyn std::error::Error, "a refused peer was not told");
    }
}

/// Why a connection was ended by this side.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the peer broke the protocol")]
    Protocol(#[from] ReadError),
    #[error("the peer took too long to {0}")]
    Slow(&'static str),
    #[error("the worker is gone, and the helper ends")]
    NoWorker,
}

/// Nobody sends descriptors to the helper: the kernel closes those that come all the same.
struct Connection(FrameReader<FdStream>);

impl Connection {
    fn new(stream: UnixStream) -> Self {
        Self(FrameReader::new(FdStream::send_only(stream), PRIVILEGED_FRAME_MAX))
    }

    async fn converse(&mut self, work: &mpsc::Sender<Work>) -> Result<(), Ended> {
        self.hello().await?;
        while let Some(request) = self.0.message::<PrivilegedRequest>().await? {
            let (answer, answered) = oneshot::channel();
            work.send(Work { operation: request.operation, answer }).await.map_err(|_| Ended::NoWorker)?;
            let result = answered.await.map_err(|_| Ended::NoWorker)?;
            self.answer(request.number, result).await?;
        }
        Ok(())
    }

    /// Answers the first request with the refusal, so that the peer learns why, and closes.
    async fn refuse(&mut self, refusal: &WireError) -> Result<(), Ended> {
        self.hello().await?;
        match self.0.message::<PrivilegedRequest>().await? {
            Some(request) => self.answer(request.number, Err(refusal.clone())).await,
            None => Ok(()),
        }
    }

    /// Ours first: a peer of another generation can then say which two versions met.
    async fn hello(&mut self) -> Result<(), Ended> {
        let exchange = async {
            send_hello(self.0.get_mut()).await?;
            self.0.hello().await.map(|_| ())
        };
        Ok(tokio::time::timeout(HELLO_TIME, exchange).await.map_err(|_| Ended::Slow("say hello"))??)
    }

    async fn answer(&mut self, number: u64, result: Result<Performed, WireError>) -> Result<(), Ended> {
        let result = match result {
            Ok(Performed { reply, descriptors }) => {
                descriptors.into_iter().try_for_each(|fd| self.0.get_mut().queue_fd(fd)).map_err(ReadError::Io)?;
                Ok(reply)
            }
            Err(error) => Err(error),
        };
        let response = PrivilegedResponse { number, result };
        let write = write_frame(self.0.get_mut(), &response, PRIVILEGED_FRAME_MAX);
        Ok(tokio::time::timeout(WRITE_TIME, write).await.map_err(|_| Ended::Slow("read its answer"))??)
    }
}
