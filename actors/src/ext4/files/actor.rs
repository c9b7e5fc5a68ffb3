//! The actor: gives each job its turn at its disk, on a thread that may block. Knows nothing of disks.

use super::FilesError;
use super::queue::{Queue, Turn};
use super::tool::Tools;
use crate::artifacts::blocking;
use crate::supervise::guard_unit;
use actix::fut::{ActorFutureExt as _, WrapFuture as _};
use actix::{Actor, AsyncContext as _, Context, ResponseFuture, Supervised};
use futures::future::BoxFuture;
use messages::{ErrorKind, WireError};
use std::path::PathBuf;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Enough for every VM of a full host to ask at once.
const MAILBOX: usize = 1024;
/// More than this waiting, changes in memory with them, and whoever asks is told to come again.
const WAITING_MAX: usize = 64;

/// Runs one job, and answers whoever asked for it.
type Job = Box<dyn FnOnce(&Handle) -> BoxFuture<'static, ()>>;

/// Looks after files inside of disks.
pub struct Ext4Files {
    runtime: Handle,
    queue: Queue<Job>,
}

impl std::fmt::Debug for Ext4Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ext4Files").field("waiting", &self.queue.waiting()).finish_non_exhaustive()
    }
}

impl Ext4Files {
    /// An actor whose jobs run on `runtime`.
    #[must_use]
    pub fn new(runtime: Handle) -> Self {
        Self { runtime, queue: Queue::new(WAITING_MAX) }
    }

    /// Puts a job into its disk's line; the answer comes when its turn has come and gone. A caller that leaves stops nothing.
    pub(super) fn enqueue<T: Send + 'static>(
        &mut self,
        disk: PathBuf,
        work: impl FnOnce(&Tools) -> Result<T, FilesError> + Send + 'static,
        ctx: &mut Context<Self>,
    ) -> ResponseFuture<Result<T, WireError>> {
        let (sender, answer) = oneshot::channel();
        let job: Job = Box::new(move |runtime| {
            let tools = Tools::new(runtime.clone());
            let done = blocking(runtime, move || work(&tools).map_err(|error| WireError::from(&error)));
            Box::pin(async move {
                if sender.send(done.await).is_err() {
                    tracing::debug!("whoever waited for files of a disk has left");
                }
            })
        });
        match self.queue.arrive(&disk, job) {
            Turn::Now(job) => self.begin(disk, job, ctx),
            Turn::Later => {}
            Turn::Refused => {
                let error = WireError::from(&FilesError::Busy { waiting: self.queue.waiting() });
                return Box::pin(async move { Err(error) });
            }
        }
        let lost = || WireError::new(ErrorKind::Lost, "the keeper of files in disks was restarted meanwhile");
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(lost())) })
    }

    fn begin(&self, disk: PathBuf, job: Job, ctx: &mut Context<Self>) {
        ctx.spawn(job(&self.runtime).into_actor(self).map(move |(), actor, ctx| {
            guard_unit(ctx, |ctx| {
                if let Some(next) = actor.queue.leave(&disk) {
                    actor.begin(disk, next, ctx);
                }
            });
        }));
    }
}

impl Actor for Ext4Files {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Supervised for Ext4Files {
    /// Who waits is told by the drop of its job. One that is under way goes on, and its lock keeps the next one away.
    fn restarting(&mut self, _: &mut Self::Context) {
        self.queue = Queue::new(WAITING_MAX);
    }
}
