//! What every connection shares.

use super::artifacts::Library;
use crate::config::Config;
use crate::ext4::files::Ext4Files;
use crate::host::{HostFacts, disk_space};
use crate::paths::Paths;
use crate::registry::{DiskFacts, Registry};
use crate::store::Store;
use crate::vm::ports::Ports;
use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message};
use futures::future::BoxFuture;
use messages::WireError;
use messages::error::ErrorKind;
use messages::reply::{NamesView, Reply};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// What the daemon says of its surroundings.
pub trait DaemonFacts: Send + Sync + 'static {
    /// `firecracker` or `emulated`, and why.
    fn vmm(&self) -> String;
    /// The helper's version, or why it cannot be reached.
    fn helper(&self) -> BoxFuture<'static, Result<String, String>>;
    /// Where names are answered.
    fn dns(&self) -> NamesView;
}

/// What every connection shares.
#[derive(Clone)]
pub struct ServerContext {
    pub registry: Addr<Registry>,
    pub library: Arc<dyn Library>,
    pub ports: Arc<dyn Ports>,
    pub facts: Arc<dyn DaemonFacts>,
    pub store: Store,
    /// Files inside of disks that no VM runs on.
    pub disk_files: Addr<Ext4Files>,
    pub config: Arc<Config>,
    pub paths: Arc<Paths>,
    pub host: HostFacts,
    pub started: Instant,
    /// Cancelled when the daemon is to end.
    pub shutdown: CancellationToken,
}

impl std::fmt::Debug for ServerContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerContext")
    }
}

/// A reply, and the descriptor that goes with it.
#[derive(Debug)]
pub struct Answer {
    pub reply: Reply,
    pub descriptor: Option<OwnedFd>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, descriptor: None }
    }
}

/// Sends to an actor that may just be restarting.
pub(super) async fn ask<A, M, T, E>(actor: &Addr<A>, message: M) -> Result<T, WireError>
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message<Result = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Into<WireError> + Send + 'static,
{
    match actor.send(message).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(WireError::new(ErrorKind::Unavailable, "a part of the daemon is being restarted")
            .hint("try again in a second")),
    }
}

impl ServerContext {
    /// The figures of the state directory's file system. On a blocking thread: a slow disk delays this request alone.
    pub(super) async fn disk(&self) -> Result<DiskFacts, WireError> {
        let dir = self.paths.state_dir.clone();
        let asked = tokio::task::spawn_blocking(move || disk_space(&dir)).await;
        let failed = |why: String| WireError::new(ErrorKind::Host, format!("cannot ask for free disk space: {why}"));
        let (free, total) =
            asked.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
        Ok(DiskFacts { free, total })
    }
}
