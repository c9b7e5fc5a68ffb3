//! Sockets that answer: binds those on loopback, takes those for the bridge from the helper, and serves both until dropped.

use super::responder::Responder;
use super::tcp;
use hickory_server::Server;
use messages::ids::InstanceId;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// Below the ports that kernels hand out (32768, `ip_local_port_range`), and above what services take.
const PORT_FIRST: u16 = 20_000;
const PORT_COUNT: u16 = 10_000;
/// How often a pair of equal ports is tried for: UDP may be taken where TCP was free.
const PORT_TRIES: usize = 16;

/// The two sockets of one listener, non-blocking.
#[derive(Debug)]
pub(super) struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

impl Sockets {
    /// Takes over sockets that the helper bound.
    ///
    /// # Errors
    /// They are something else, or are not bound where they should be.
    pub(super) fn adopt(udp: OwnedFd, tcp: OwnedFd, expected: Ipv4Addr) -> io::Result<Self> {
        let sockets = Self { udp: udp.into(), tcp: tcp.into() };
        let (at, also_at) = (sockets.udp.local_addr()?, sockets.tcp.local_addr()?);
        if at != also_at || at.ip() != IpAddr::V4(expected) {
            return Err(io::Error::other("the network helper sent sockets of another address"));
        }
        sockets.udp.set_nonblocking(true)?;
        sockets.tcp.set_nonblocking(true)?;
        Ok(sockets)
    }

    /// Binds on loopback: at the instance's own port, which configurations of other resolvers may name, else at any.
    ///
    /// # Errors
    /// The last try's.
    pub(super) fn on_loopback(instance: InstanceId) -> io::Result<Self> {
        let mut result = Self::bind(usual_port(instance));
        for _ in 0..PORT_TRIES {
            if result.is_ok() {
                break;
            }
            result = Self::bind(0);
        }
        result
    }

    fn bind(port: u16) -> io::Result<Self> {
        let tcp = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let udp = std::net::UdpSocket::bind(tcp.local_addr()?)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp, tcp })
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

/// The port of an instance on loopback: the same for the same state directory, for ever.
pub(super) fn usual_port(instance: InstanceId) -> u16 {
    let [a, b, c] = instance.0.map(u32::from);
    let offset = (a << 16 | b << 8 | c) % u32::from(PORT_COUNT);
    PORT_FIRST + u16::try_from(offset).expect("below PORT_COUNT")
}

/// A listener that serves; it ends when dropped.
#[derive(Debug)]
pub(super) struct Listener {
    task: AbortHandle,
    ended: CancellationToken,
}

impl Listener {
    /// Whether it still serves.
    pub(super) fn serves(&self) -> bool {
        !self.ended.is_cancelled()
    }

    /// Resolves when it serves no longer, for whatever reason.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + 'static {
        self.ended.clone().cancelled_owned()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves on the worker pool.
///
/// # Errors
/// The runtime does not take the sockets.
pub(super) fn serve(sockets: Sockets, responder: Responder, runtime: &Handle) -> io::Result<Listener> {
    let (udp, tcp) = {
        let _entered = runtime.enter();
        (UdpSocket::from_std(sockets.udp)?, TcpListener::from_std(sockets.tcp)?)
    };
    let ended = CancellationToken::new();
    let guard = ended.clone().drop_guard();
    let task = runtime.spawn(async move {
        // Its drop tells, also after a panic.
        let _guard = guard;
        let mut parts = JoinSet::new();
        parts.spawn(tcp::serve(tcp, responder.clone()));
        parts.spawn(async move {
            let mut server = Server::new(responder);
            server.register_socket(udp);
            if let Err(error) = server.block_until_done().await {
                tracing::error!(%error, "DNS over UDP ended");
            }
        });
        // Both serve for ever; with either gone, both begin anew.
        if let Some(Err(error)) = parts.join_next().await {
            tracing::error!(%error, "a DNS listener ended");
        }
    });
    Ok(Listener { task: task.abort_handle(), ended })
}
