//! The process machine: commands run on the host, in a directory. Everything but the boot is as in a guest.

use crate::agent::{Agent, Running};
use crate::exec::plan::Place;
use crate::exec::session::World;
use crate::ssh::setup::Keys;
use crate::transport::{self, Acceptor, Dialer};
use link::mux::Attach;
use messages::guest::{BootSpec, StopKind};
use messages::vm::Readiness;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::sync::Notify;

/// A directory of the host.
#[derive(Debug)]
pub struct ProcessMachine {
    directory: PathBuf,
    ended: Arc<Notify>,
}

/// Where the process machine's host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// banger-emu's socket.
    Socket(PathBuf),
    /// A context id: AF_VSOCK without a guest around it, to try that side of the agent.
    Vsock(u32),
}

impl Link {
    /// `vsock:<cid>`, or a path.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.strip_prefix("vsock:").and_then(|cid| cid.parse().ok()) {
            Some(cid) => Self::Vsock(cid),
            None => Self::Socket(text.into()),
        }
    }
}

/// Runs the process machine until it is stopped or its host is gone.
///
/// # Errors
/// The link cannot be opened.
pub async fn run(link: &Link, directory: &Path) -> io::Result<()> {
    let ended = Arc::new(Notify::new());
    let machine = ProcessMachine { directory: directory.canonicalize()?, ended: ended.clone() };
    let agent = Agent::new(super::Machine::Process(machine), 0);
    let (dialer, acceptor) = open(link, ended.clone()).await?;
    tokio::spawn(crate::control::run(agent.clone(), dialer));
    tokio::spawn(agent.clone().serve(acceptor));
    ended.notified().await;
    // A machine that ends takes its processes with it.
    for target in agent.executor.registry.targets() {
        target.signal(libc::SIGKILL);
    }
    Ok(())
}

async fn open(link: &Link, ended: Arc<Notify>) -> io::Result<(Dialer, Acceptor)> {
    match link {
        Link::Socket(path) => {
            let socket = UnixStream::connect(path).await?;
            Ok(transport::over_port(socket, Attach::Fresh, move || ended.notify_one()))
        }
        Link::Vsock(cid) => transport::over_vsock(*cid),
    }
}

impl ProcessMachine {
    /// There is nothing to boot: both levels are reached at once.
    pub fn boot(&self, agent: &Agent, spec: BootSpec) {
        let place = Place::Process { directory: self.directory.clone() };
        let keys = Keys::of(&spec);
        agent.executor.enter(World { place, config: spec.config, keys });
        agent.run_as(Running { vm: spec.vm, nonce: spec.nonce, readiness: None, warning: None });
        agent.ready(Readiness::Agent, None);
        agent.ready(Readiness::System, None);
    }

    /// Hangs up what runs, says so, and ends.
    pub async fn stop(&self, agent: &Agent, kind: StopKind) {
        let targets = agent.executor.registry.targets();
        for target in targets {
            tokio::spawn(target.hang_up());
        }
        agent.last_words(kind).await;
        self.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_paths_or_context_ids() {
        assert_eq!(Link::parse("/run/emu.sock"), Link::Socket("/run/emu.sock".into()));
        assert_eq!(Link::parse("vsock:1"), Link::Vsock(1));
        assert_eq!(Link::parse("vsock:one"), Link::Socket("vsock:one".into()));
    }
}
