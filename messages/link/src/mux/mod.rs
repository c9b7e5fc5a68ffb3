//! Many streams over one port: yamux in epoch envelopes, each stream opened to a vsock port number.
//!
//! `banger-emu` is the host side, `banger-agent` the guest side. Whoever calls must poll the returned driver; it ends when the
//! port ends. Both sides may open streams. The opener sends the port number (`u32`, little endian), the other side answers one
//! byte: [`ACCEPTED`] or [`REFUSED`].
//!
//! ```text
//!   no epoch ──GuestStart──▶ session (one yamux connection) ──GuestStart or HostStart──▶ next session
//! ```
//! A new epoch ends every stream of the old one. A session that is broken (by yamux, not by the port) is followed by a new epoch, which
//! either side asks for.

mod driver;
mod input;
mod port;
mod stream;
#[cfg(test)]
mod tests;

pub use driver::{Driver, MuxEnd};
pub use stream::{Incoming, MuxStream};

use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

/// The answer to an opener that somebody listens.
pub(crate) const ACCEPTED: u8 = 1;
/// The answer that nobody does.
pub(crate) const REFUSED: u8 = 0;
/// Streams of the host's at once. "Hundreds of commands at once" fit; each may hold 256 KiB unread.
pub const STREAMS_MAX: usize = 704;
/// Streams of the guest's at once: it has a few, which the host's must not keep it from opening.
pub const GUEST_STREAMS_MAX: usize = 64;
/// What all streams together may have unread above their 256 KiB each, in bytes.
pub(crate) const EXTRA_WINDOW: usize = 32 << 20;
/// Incoming streams that nobody has taken yet; more are refused.
const BACKLOG: usize = 256;

/// Whether the other end may still be in the middle of an older conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Both ends are new: a cold boot.
    Fresh,
    /// An end was replaced: the agent was restarted, or the VM restored from a snapshot.
    Resumed,
}

/// Says why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("nobody listens on port {0} on the other side of the link")]
    Refused(u32),
    #[error("the other side of the link is not there")]
    NoPeer,
    #[error("the link has as many streams as it can have")]
    TooMany,
    #[error("the link broke")]
    Io(#[source] io::Error),
}

pub(crate) struct OpenRequest {
    pub(crate) port: u32,
    pub(crate) reply: oneshot::Sender<Result<MuxStream, OpenError>>,
}

/// Opens streams. Cheap to clone.
#[derive(Clone)]
pub struct MuxHandle {
    requests: mpsc::Sender<OpenRequest>,
}

impl std::fmt::Debug for MuxHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MuxHandle")
    }
}

impl MuxHandle {
    /// Opens a stream to `port`; resolves when the other side has accepted or refused. Has no deadline of its own.
    ///
    /// # Errors
    /// [`OpenError`]. `NoPeer` at once where no epoch is open.
    pub async fn open(&self, port: u32) -> Result<MuxStream, OpenError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(OpenRequest { port, reply }).await.map_err(|_| OpenError::NoPeer)?;
        answer.await.map_err(|_| OpenError::NoPeer)?
    }
}

/// Takes the streams that the other side opens.
#[derive(Debug)]
pub struct MuxListener {
    incoming: mpsc::Receiver<Incoming>,
}

impl MuxListener {
    /// The next one; `None` when the port has ended.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }
}

/// One side of a link.
#[derive(Debug)]
pub struct Mux<T> {
    pub handle: MuxHandle,
    pub listener: MuxListener,
    /// Must be polled (spawned) for anything to move.
    pub driver: Driver<T>,
}

/// The host's side, over QEMU's character device.
pub fn host<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: T, attach: Attach) -> Mux<T> {
    assemble(io, attach, port::Side::Host)
}

/// The guest's side, over its end of the port. `io` must not report end-of-file while the host is merely away.
pub fn guest<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: T, attach: Attach) -> Mux<T> {
    assemble(io, attach, port::Side::Guest)
}

fn assemble<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: T, attach: Attach, side: port::Side) -> Mux<T> {
    let (requests, opens) = mpsc::channel(64);
    let (arrivals, incoming) = mpsc::channel(BACKLOG);
    let driver = Driver::new(port::Port::new(io, side, attach), opens, arrivals);
    Mux { handle: MuxHandle { requests }, listener: MuxListener { incoming }, driver }
}
