//! The host's way to SSH in this guest: each stream on the SSH port is a connection to the image's sshd or, where it has none,
//! to a server of our own. The agent itself moves bytes and reads none of them: [`server`] runs in a process of its own for
//! each connection, so that no cipher keeps the agent from anything, and nothing of it is in memory while nobody uses it.

mod forward;
mod inbox;
pub mod server;
mod session;
pub mod setup;

use crate::agent::Agent;
use crate::transport::Stream;
use link::frames::write_frame;
use messages::limits::GUEST_FRAME_MAX;
use messages::vm::Readiness;
use setup::Setup;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// Where an image's sshd listens.
const SSHD: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 22);
/// How often an sshd that is still to be started is looked for.
const POLL: Duration = Duration::from_millis(100);
/// An init that has not settled by then will not start it.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the files may take that say who is let in.
const SETUP_TIME: Duration = Duration::from_secs(20);
/// How long a server of ours may take to end what ran in its sessions.
const FAREWELL: Duration = Duration::from_secs(10);

/// Serves one connection for as long as both ends want it. A guest that is still booting makes its client wait, which is
/// what a client would have to do anyway.
pub async fn serve(mut stream: Stream, agent: Arc<Agent>) {
    let served = match find(&agent).await {
        Some(mut sshd) => tokio::io::copy_bidirectional(&mut stream, &mut sshd).await.map(drop),
        None => own(stream, &agent).await,
    };
    if let Err(error) = served {
        tracing::debug!(%error, "an SSH connection was broken off");
    }
}

/// The image's sshd, once it is there; `None` where it will not be.
async fn find(agent: &Agent) -> Option<TcpStream> {
    if !agent.machine().is_guest() {
        // What listens on the host is not this machine's.
        return None;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Asked first: what is there when the init has settled is found by the connect after it.
        let settled = agent.running().is_none_or(|running| running.readiness >= Some(Readiness::System));
        match TcpStream::connect(SSHD).await {
            Ok(sshd) => {
                // Keystrokes must not wait for each other.
                sshd.set_nodelay(true).ok();
                return Some(sshd);
            }
            Err(_) if settled || Instant::now() > deadline => return None,
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

async fn own(mut stream: Stream, agent: &Agent) -> io::Result<()> {
    let world = agent.executor.world().ok_or_else(|| io::Error::other("the guest is still booting"))?;
    // On a thread: /root may lie on a file system that does not answer, and everything else has to go on.
    let gathering = tokio::task::spawn_blocking(move || Setup::gather(&world));
    let gathered = tokio::time::timeout(SETUP_TIME, gathering).await.map_err(|_| io::ErrorKind::TimedOut)?;
    let setup = gathered.map_err(io::Error::other)??;
    let (mut ours, mut child) = start()?;
    hand(&mut ours, &setup).await?;
    let moved = relay(&mut stream, &mut ours).await;
    drop((stream, ours));
    match tokio::time::timeout(FAREWELL, child.wait()).await {
        Ok(ended) => drop(ended?),
        Err(_) => child.kill().await?,
    }
    moved
}

/// Moves bytes until the server has ended. One whose client has left is given a moment for that.
async fn relay(stream: &mut Stream, server: &mut UnixStream) -> io::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(stream);
    let (mut from_server, mut to_server) = server.split();
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_server).await?;
        to_server.shutdown().await?;
        tokio::time::sleep(FAREWELL).await;
        Ok(())
    };
    let down = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::select! {
        result = up => result,
        result = down => result,
    }
}

async fn hand<W: AsyncWrite + Unpin>(to: &mut W, setup: &Setup) -> io::Result<()> {
    write_frame(to, setup, GUEST_FRAME_MAX).await.map_err(io::Error::other)
}

/// A server with its end of a connection as its stdin.
fn start() -> io::Result<(UnixStream, Child)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let child = Command::new("/proc/self/exe")
        .arg0("banger-sshd")
        .arg("--ssh")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    Ok((UnixStream::from_std(ours)?, child))
}
