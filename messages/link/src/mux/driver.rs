//! Moves the bytes: one yamux connection per epoch, for as long as the port lasts.

use super::port::{EpochIo, Port, SharedPort, Side};
use super::{EXTRA_WINDOW, Incoming, MuxStream, OpenError, OpenRequest, STREAMS_MAX};
use futures::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// How long the other side may take to say which port it wants.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Larger frames cost less per byte, above all in an emulated guest; small enough that no stream waits long for another.
const SPLIT_SEND_SIZE: usize = 60 << 10;

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
}

impl std::fmt::Debug for OpenRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenRequest({})", self.port)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Driver<T> {
    pub(crate) fn new(port: Port<T>, opens: mpsc::Receiver<OpenRequest>, arrivals: mpsc::Sender<Incoming>) -> Self {
        let side = port.side();
        Self { port: SharedPort::new(port), side, opens, arrivals }
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
            match connection.poll_new_outbound(cx) {
                Poll::Ready(Ok(stream)) => {
                    let request = waiting.take().expect("filled above");
                    tokio::spawn(open(MuxStream::new(stream), request));
                }
                Poll::Ready(Err(error)) => return self.over(&error),
                Poll::Pending => break,
            }
        }
        loop {
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    tokio::spawn(arrive(MuxStream::new(stream), self.arrivals.clone()));
                }
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
    config.set_max_num_streams(STREAMS_MAX);
    config.set_max_connection_receive_window(Some(STREAMS_MAX * yamux::DEFAULT_CREDIT as usize + EXTRA_WINDOW));
    config.set_split_send_size(SPLIT_SEND_SIZE);
    config
}
