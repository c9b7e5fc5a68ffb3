//! Firecracker's host side of vsock: a listening Unix socket that takes `CONNECT <port>`, and connections of the guest's to
//! `<uds_path>_<port>`. Carries bytes between those sockets and the link's streams, and looks at none of them.

mod relay;
mod request;
#[cfg(test)]
mod tests;

use crate::emu::metrics::Metrics;
use crate::emu::script::{Moment, Script, Verdict};
use link::mux::{Incoming, MuxHandle, MuxListener};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a client may take to say what it wants.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// How long the other side may take to take a stream. Firecracker gives its guests 2 s; emulated ones are slower.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Clients at once; more stay in the listener's queue.
const CLIENTS_MAX: usize = 1024;
/// The first port number that `OK` names, as in Firecracker. It means nothing here.
const FIRST_LOCAL_PORT: u32 = 1 << 30;

/// A listening socket whose file goes with it.
#[derive(Debug)]
pub struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
}

impl SocketFile {
    /// Binds `path`, which must not exist.
    ///
    /// # Errors
    /// The kernel's.
    pub fn bind(path: &Path) -> io::Result<Self> {
        Ok(Self { listener: UnixListener::bind(path)?, path: path.to_owned() })
    }

    /// The socket.
    #[must_use]
    pub const fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "a socket was removed by somebody else");
        }
    }
}

/// What every connection needs.
#[derive(Debug)]
struct Context {
    handle: MuxHandle,
    script: Script,
    metrics: Metrics,
    uds_path: PathBuf,
    next_local_port: AtomicU32,
    /// The link has ended: nothing more can come from the guest than what has been taken from it.
    over: CancellationToken,
}

/// A client holds one of the slots for as long as it is served.
struct Client {
    stream: UnixStream,
    slot: OwnedSemaphorePermit,
}

/// Serves both directions until the link has ended and the clients have been given what the guest said before. Dropping it
/// ends every connection at once.
pub async fn serve(
    socket: Arc<SocketFile>,
    handle: MuxHandle,
    mut arrivals: MuxListener,
    script: Script,
    metrics: Metrics,
) {
    let uds_path = socket.path.clone();
    let next_local_port = AtomicU32::new(FIRST_LOCAL_PORT);
    let over = CancellationToken::new();
    let context = Arc::new(Context { handle, script, metrics, uds_path, next_local_port, over });
    let slots = Arc::new(Semaphore::new(CLIENTS_MAX));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            client = next_client(&socket, &slots) => {
                connections.spawn(from_host(client, context.clone()));
            }
            arrival = arrivals.accept() => {
                let Some(arrival) = arrival else { break };
                connections.spawn(from_guest(arrival, context.clone()));
            }
            // Lets go of what has ended.
            Some(_) = connections.join_next() => {}
        }
    }
    context.over.cancel();
    while connections.join_next().await.is_some() {}
}

async fn next_client(socket: &SocketFile, slots: &Arc<Semaphore>) -> Client {
    loop {
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        match socket.listener.accept().await {
            Ok((stream, _)) => return Client { stream, slot },
            Err(error) => {
                // Out of descriptors, most likely: the client waits in the queue until some are free.
                tracing::warn!(%error, "cannot accept a vsock connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One `CONNECT`. Every refusal is a closed connection, as Firecracker's are.
async fn from_host(client: Client, context: Arc<Context>) {
    let Client { mut stream, slot } = client;
    let request = match timeout(REQUEST_DEADLINE, request::read(&mut stream)).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a vsock client was refused");
            return context.metrics.connect(true);
        }
        Err(_) => {
            tracing::debug!("a vsock client said nothing");
            return context.metrics.connect(true);
        }
    };
    if context.script.play(Moment::Connect).await == Verdict::Refuse {
        return context.metrics.connect(true);
    }
    let opened = timeout(CONNECT_DEADLINE, context.handle.open(request.port)).await;
    let mut guest = match opened {
        Ok(Ok(guest)) => guest,
        Ok(Err(error)) => {
            tracing::debug!(port = request.port, %error, "no stream to the guest");
            return context.metrics.connect(true);
        }
        Err(_) => {
            tracing::debug!(port = request.port, "the guest did not take a stream in time");
            return context.metrics.connect(true);
        }
    };
    context.metrics.connect(false);
    let local_port = context.next_local_port.fetch_add(1, Ordering::Relaxed);
    let greeting = format!("OK {local_port}\n");
    let early = &request.early[..];
    if stream.write_all(greeting.as_bytes()).await.is_ok() && (early.is_empty() || guest.write_all(early).await.is_ok())
    {
        relay::relay(stream, guest, &context.over).await;
    }
    drop(slot);
}

/// One stream that the guest opens. The link bounds how many there are.
async fn from_guest(arrival: Incoming, context: Arc<Context>) {
    let port = arrival.port;
    if context.script.play(Moment::GuestConnect).await == Verdict::Refuse {
        context.metrics.guest_connect(true);
        return arrival.refuse().await;
    }
    let mut path = OsString::from(&context.uds_path);
    path.push(format!("_{port}"));
    match timeout(CONNECT_DEADLINE, UnixStream::connect(&path)).await {
        Ok(Ok(stream)) => {
            context.metrics.guest_connect(false);
            match arrival.accept().await {
                Ok(guest) => relay::relay(stream, guest, &context.over).await,
                Err(error) => tracing::debug!(port, %error, "the guest went away"),
            }
        }
        refused => {
            tracing::debug!(port, ?refused, "nobody listens for the guest");
            context.metrics.guest_connect(true);
            arrival.refuse().await;
        }
    }
}
