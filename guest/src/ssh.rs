//! The host's way to SSH in this guest: each stream on the SSH port is a connection to the image's sshd. Moves bytes, and
//! reads none of them.

use crate::agent::Agent;
use crate::transport::Stream;
use messages::vm::Readiness;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Where an image's sshd listens.
const SSHD: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 22);
/// How often an sshd that is still to be started is looked for.
const POLL: Duration = Duration::from_millis(100);
/// An init that has not settled by then will not start it.
const PATIENCE: Duration = Duration::from_secs(300);

/// Serves one connection for as long as both ends want it. A guest that is still booting makes its client wait, which is
/// what a client would have to do anyway.
pub async fn serve(mut stream: Stream, agent: Arc<Agent>) {
    let Some(mut sshd) = find(&agent).await else {
        return tracing::warn!("a client wants SSH, and this guest has no SSH server");
    };
    if let Err(error) = tokio::io::copy_bidirectional(&mut stream, &mut sshd).await {
        tracing::debug!(%error, "an SSH connection was broken off");
    }
}

async fn find(agent: &Agent) -> Option<TcpStream> {
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
