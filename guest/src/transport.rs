//! The link to the host: AF_VSOCK where there is a transport, else banger-emu's port, or a Unix socket in the process machine.
//! Knows which streams exist, not what they say.

use link::mux::{self, Attach, Incoming, MuxHandle, MuxListener, OpenError};
use messages::guest::{BENCH_PORT, OPERATION_PORT, SSH_PORT};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

/// A stream to or from the host.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}
/// Any of them.
pub type Stream = Box<dyn Duplex>;

/// A failed accept (out of descriptors, say) is tried again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Opens streams to the host.
#[derive(Clone, Debug)]
pub enum Dialer {
    Mux(MuxHandle),
    Vsock { host_cid: u32 },
}

/// Says why the host cannot be reached now.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error(transparent)]
    Mux(#[from] OpenError),
    #[error("failed to connect to the host over vsock")]
    Vsock(#[source] io::Error),
}

impl Dialer {
    /// Opens a stream to a port of the host. Has no deadline of its own.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(&self, port: u32) -> Result<Stream, DialError> {
        match self {
            Self::Mux(handle) => Ok(Box::new(handle.open(port).await?)),
            Self::Vsock { host_cid } => {
                let connected = VsockStream::connect(VsockAddr::new(*host_cid, port)).await;
                Ok(Box::new(connected.map_err(DialError::Vsock)?))
            }
        }
    }
}

/// Takes streams from the host.
#[derive(Debug)]
pub enum Acceptor {
    Mux(MuxListener),
    Vsock { operations: VsockListener, bench: VsockListener, ssh: VsockListener },
}

/// A stream from the host, not yet taken.
#[derive(Debug)]
pub enum Arrival {
    Mux(Incoming),
    Vsock(u32, VsockStream),
}

impl Acceptor {
    /// The next stream; `None` where the link has ended for good.
    pub async fn accept(&mut self) -> Option<Arrival> {
        match self {
            Self::Mux(listener) => listener.accept().await.map(Arrival::Mux),
            Self::Vsock { operations, bench, ssh } => loop {
                let (port, accepted) = tokio::select! {
                    accepted = operations.accept() => (OPERATION_PORT, accepted),
                    accepted = bench.accept() => (BENCH_PORT, accepted),
                    accepted = ssh.accept() => (SSH_PORT, accepted),
                };
                match accepted {
                    Ok((stream, _)) => return Some(Arrival::Vsock(port, stream)),
                    Err(error) => {
                        tracing::warn!(%error, port, "a stream from the host was not taken");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            },
        }
    }
}

impl Arrival {
    /// The port that the host wants.
    #[must_use]
    pub fn port(&self) -> u32 {
        match self {
            Self::Mux(incoming) => incoming.port,
            Self::Vsock(port, _) => *port,
        }
    }

    /// Takes it.
    ///
    /// # Errors
    /// The link broke meanwhile.
    pub async fn accept(self) -> io::Result<Stream> {
        Ok(match self {
            Self::Mux(incoming) => Box::new(incoming.accept().await?),
            Self::Vsock(_, stream) => Box::new(stream),
        })
    }

    /// Nobody listens there.
    pub async fn refuse(self) {
        if let Self::Mux(incoming) = self {
            incoming.refuse().await;
        }
    }
}

/// A link over one byte stream. The task that moves its bytes ends with the stream, and then calls `ended`.
pub fn over_port<T>(io: T, attach: Attach, ended: impl FnOnce() + Send + 'static) -> (Dialer, Acceptor)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mux = mux::guest(io, attach);
    tokio::spawn(async move {
        let end = mux.driver.run().await;
        tracing::info!(?end, "the link's port has ended");
        ended();
    });
    (Dialer::Mux(mux.handle), Acceptor::Mux(mux.listener))
}

/// A link over AF_VSOCK.
///
/// # Errors
/// The ports are taken.
pub fn over_vsock(host_cid: u32) -> io::Result<(Dialer, Acceptor)> {
    let listen = |port| VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port));
    let (operations, bench, ssh) = (listen(OPERATION_PORT)?, listen(BENCH_PORT)?, listen(SSH_PORT)?);
    let acceptor = Acceptor::Vsock { operations, bench, ssh };
    Ok((Dialer::Vsock { host_cid }, acceptor))
}
