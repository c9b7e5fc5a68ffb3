//! Moves the bytes: one yamux connection per epoch, for as long as the port lasts.

use super::port::{EpochIo, Port, SharedPort, Side};
use super::{EXTRA_WINDOW, GUEST_STREAMS_MAX, Incoming, MuxStream, OpenError, OpenRequest, STREAMS_MAX};
use futures::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};

/// How long the other side may take to say which port it wants.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Larger frames cost less per byte, above all in an emulated guest; small enough that no stream waits long for another.
const SPLIT_SEND_SIZE: usize = 60 << 10;
/// What one side may have above what the other counts: a stream ends here some time after it has ended there.
const INBOUND_SLACK: usize = 64;
/// What yamux may count above what we do: it lets go of a stream some time after we have, and ends the whole connection where
/// one is too many.
const YAMUX_SLACK: usize = 128;
/// Between a session that was broken and the next one: a peer that breaks every one of them costs next to nothing.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// Why a driver ended.
#[derive(Debug, PartialEq, Eq)]
pub enum MuxEnd {
    /// The port reached its end: the machine behind it is gone.
    PortClosed,
    /// Every handle and the listener were dropped.
    Unused,
}

/// Moves the bytes of one side of a link.
#[derive(Debug)]
pub struct Driver<T> {
    port: SharedPort<T>,
    side: Side,
    opens: mpsc::Receiver<OpenRequest>,
    arrivals: mpsc::Sender<Incoming>,
    /// One permit for each stream of ours.
    outbound: Arc<Semaphore>,
    /// One permit for each stream of the other side's.
    inbound: Arc<Semaphore>,
}

impl std::fmt::Debug for OpenRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenRequest({})", self.port)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Driver<T> {
    pub(crate) fn new(port: Port<T>, opens: mpsc::Receiver<OpenRequest>, arrivals: mpsc::Sender<Incoming>) -> Self {
        let side = port.side();
        let (ours, theirs) = match side {
            Side::Host => (STREAMS_MAX, GUEST_STREAMS_MAX),
            Side::Guest => (GUEST_STREAMS_MAX, STREAMS_MAX),
        };
        let outbound = Arc::new(Semaphore::new(ours));
        let inbound = Arc::new(Semaphore::new(theirs + INBOUND_SLACK));
        Self { port: SharedPort::new(port), side, opens, arrivals, outbound, inbound }
    }

    /// Runs until the port ends. Needs a tokio runtime.
    ///
    /// # Errors
    /// The port's own I/O errors.
    pub async fn run(mut self) -> io::Result<MuxEnd> {
        loop {
            let Some(io) = poll_fn(|cx| self.poll_between(cx)).await? else {
                return Ok(MuxEnd::PortClosed);
            };
            let epoch = io.epoch();
            let mut connection = yamux::Connection::new(io, config(), mode(self.side));
            let mut waiting = None;
            poll_fn(|cx| self.poll_session(&mut connection, &mut waiting, cx)).await;
            if let Some(OpenRequest { reply, .. }) = waiting {
                // Nobody may be left to hear it.
                drop(reply.send(Err(OpenError::NoPeer)));
            }
            if self.arrivals.is_closed() && self.opens.is_closed() {
                return Ok(MuxEnd::Unused);
            }
            drop(connection);
            if self.port.is_in(epoch) {
                // One side broke yamux, and no new epoch is on its way: without one nothing would ever be said again.
                tokio::time::sleep(RESTART_PAUSE).await;
                self.port.restart(epoch);
            }
        }
    }

    /// Between epochs: whoever wants a stream hears that nobody is there.
    fn poll_between(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<EpochIo<T>>>> {
        let next = self.port.poll_next_epoch(cx);
        if next.is_pending() {
            while let Poll::Ready(Some(request)) = self.opens.poll_recv(cx) {
                drop(request.reply.send(Err(OpenError::NoPeer)));
            }
        }
        next
    }

    /// One epoch: ready when it is over.
    fn poll_session(
        &mut self,
        connection: &mut yamux::Connection<EpochIo<T>>,
        waiting: &mut Option<OpenRequest>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            if waiting.is_none() {
                match self.opens.poll_recv(cx) {
                    Poll::Ready(Some(request)) => *waiting = Some(request),
                    Poll::Ready(None) | Poll::Pending => break,
                }
            }
            let Ok(slot) = self.outbound.clone().try_acquire_owned() else {
                let request = waiting.take().expect("filled above");
                drop(request.reply.send(Err(OpenError::TooMany)));
                continue;
            };
            match connection.poll_new_outbound(cx) {
                Poll::Ready(Ok(stream)) => {
                    let request = waiting.take().expect("filled above");
                    tokio::spawn(open(MuxStream::new(stream, slot), request));
                }
                Poll::Ready(Err(error)) => return self.over(&error),
                Poll::Pending => break,
            }
        }
        loop {
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => match self.inbound.clone().try_acquire_owned() {
                    Ok(slot) => drop(tokio::spawn(arrive(MuxStream::new(stream, slot), self.arrivals.clone()))),
                    Err(_) => tracing::debug!("a stream too many was reset"),
                },
                Poll::Ready(Some(Err(error))) => return self.over(&error),
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn over(&self, error: &yamux::ConnectionError) -> Poll<()> {
        // The epoch changed, the port ended, or the other side broke yamux; the next epoch, if any, starts clean.
        tracing::debug!(%error, side = ?self.side, "link epoch over");
        Poll::Ready(())
    }
}

async fn open(stream: MuxStream, request: OpenRequest) {
    let OpenRequest { port, mut reply } = request;
    tokio::select! {
        opened = stream.request(port) => drop(reply.send(opened)),
        // The caller gave up: dropping the stream resets it.
        () = reply.closed() => {}
    }
}

async fn arrive(stream: MuxStream, arrivals: mpsc::Sender<Incoming>) {
    match tokio::time::timeout(REQUEST_DEADLINE, stream.requested()).await {
        Ok(Ok(incoming)) => {
            if let Err(mpsc::error::TrySendError::Full(incoming) | mpsc::error::TrySendError::Closed(incoming)) =
                arrivals.try_send(incoming)
            {
                incoming.refuse().await;
            }
        }
        Ok(Err(error)) => tracing::debug!(%error, "a stream ended before it named its port"),
        Err(_) => tracing::debug!("a stream never named its port"),
    }
}

const fn mode(side: Side) -> yamux::Mode {
    match side {
        Side::Host => yamux::Mode::Client,
        Side::Guest => yamux::Mode::Server,
    }
}

fn config() -> yamux::Config {
    let mut config = yamux::Config::default();
    let streams = STREAMS_MAX + GUEST_STREAMS_MAX + 2 * INBOUND_SLACK + YAMUX_SLACK;
    config.set_max_num_streams(streams);
    config.set_max_connection_receive_window(Some(streams * yamux::DEFAULT_CREDIT as usize + EXTRA_WINDOW));
    config.set_split_send_size(SPLIT_SEND_SIZE);
    config
}
