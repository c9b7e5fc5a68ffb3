//! The requests to a VM's actor. Each steps the machine and answers at once; whoever wants the end of it waits on the watch.

use super::actor::{STOP_GRACE, Vm};
use super::ports::Link;
use super::state::{At, Attempt, Denied, Event};
use super::worker::Work;
use crate::store::{Durability, StoreError};
use actix::{ActorFutureExt as _, Context, Handler, Message, ResponseActFuture, ResponseFuture, WrapFuture as _};
use messages::error::{ErrorKind, WireError};
use messages::guest::{GuestAnswer, GuestQuestion};
use messages::ids::{OperationId, VmName};
use messages::vm::{Lifetime, Readiness};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// A guest's answer to a question of ours takes no longer than this.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// The request was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// False where it was so already.
    pub changed: bool,
    /// The attempt that fulfils the request: what to wait for.
    pub attempt: Attempt,
}

/// What can be asked of every VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<Accepted, WireError>")]
pub enum Command {
    Start,
    /// With this much time for the guest.
    Stop(Option<Duration>),
    Kill,
    Restart(Option<Duration>),
    Delete {
        force: bool,
    },
    /// The client of an ephemeral VM left before the handover, of this operation where it came so far: deletes it. Others stay.
    Abandon(Option<OperationId>),
    /// It never became ready: kept, for its logs.
    Keep,
}

impl Handler<Command> for Vm {
    type Result = Result<Accepted, WireError>;

    fn handle(&mut self, command: Command, ctx: &mut Self::Context) -> Self::Result {
        let event = match command {
            Command::Start => Event::Start,
            Command::Stop(grace) => {
                self.set_grace(grace);
                Event::Stop
            }
            Command::Kill => Event::Kill,
            Command::Restart(grace) => {
                self.set_grace(grace);
                Event::Restart
            }
            Command::Delete { force } => Event::Delete { force },
            Command::Abandon(operation) => {
                if self.record.lifetime == Lifetime::Kept
                    || self.record.operation.is_some_and(|tied| Some(tied) != operation)
                {
                    return Ok(Accepted { changed: false, attempt: self.state.attempt });
                }
                Event::Delete { force: true }
            }
            Command::Keep => {
                self.record.lifetime = Lifetime::Kept;
                self.write(Durability::Fact);
                self.publish();
                return Ok(Accepted { changed: true, attempt: self.state.attempt });
            }
        };
        let before = self.state.attempt;
        let starts = matches!(event, Event::Restart | Event::Start);
        let changed = self.step(event, ctx).map_err(|denied| self.explain(denied))?;
        // A restart of a running VM is fulfilled by the attempt after this one; so is a start of one that is being made.
        let coming = starts && self.state.attempt == before && changed;
        Ok(Accepted { changed, attempt: self.state.attempt + u64::from(coming) })
    }
}

impl Vm {
    /// A second stop must not lengthen the first one's grace.
    fn set_grace(&mut self, grace: Option<Duration>) {
        if !matches!(self.state.at, At::Stopping { .. }) {
            self.stop_grace = grace.unwrap_or(STOP_GRACE);
        }
    }

    fn explain(&self, denied: Denied) -> WireError {
        let Denied { action, state } = denied;
        let name = &self.record.name;
        let error = WireError::new(ErrorKind::WrongState, format!("cannot {action} VM {name} while it is {state}"));
        match action {
            "delete" => error.hint(format!("`banger vm delete --force {name}` stops it first")),
            _ => error,
        }
    }

    fn agent(&self) -> Result<Arc<dyn Link>, WireError> {
        let name = &self.record.name;
        let state = self.state.published().as_str();
        self.link.clone().filter(|_| self.has_agent()).ok_or_else(|| {
            WireError::new(ErrorKind::WrongState, format!("VM {name} is {state}: there is no agent to ask"))
                .hint(format!("`banger vm start {name}` starts it"))
        })
    }
}

/// Asks the guest's agent something.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<GuestAnswer, WireError>")]
pub struct Ask(pub GuestQuestion);

impl Handler<Ask> for Vm {
    type Result = ResponseFuture<Result<GuestAnswer, WireError>>;

    fn handle(&mut self, Ask(question): Ask, _: &mut Self::Context) -> Self::Result {
        let asked = self.agent().map(|link| link.call(question, QUESTION_TIMEOUT));
        Box::pin(async move { asked?.await })
    }
}

/// An operation is about to be opened for a client.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), WireError>")]
pub struct BeginOperation {
    pub operation: OperationId,
    /// An ephemeral VM lives for this one.
    pub main: bool,
}

impl Handler<BeginOperation> for Vm {
    type Result = ResponseFuture<Result<(), WireError>>;

    fn handle(&mut self, BeginOperation { operation, main }: BeginOperation, _: &mut Self::Context) -> Self::Result {
        let tied = self.agent().and_then(|_| {
            if !main || self.record.lifetime == Lifetime::Kept {
                return Ok(None);
            }
            self.tie(operation).map(Some).ok_or_else(|| {
                let name = &self.record.name;
                WireError::new(ErrorKind::Conflict, format!("VM {name} runs the command of this request already"))
            })
        });
        let vm = self.record.id;
        Box::pin(async move {
            // Before the command is handed over: a daemon that finds no command takes the VM for one that nobody waits for.
            if let Some(written) = tied?
                && let Ok(Err(error)) = written.await
            {
                tracing::error!(%vm, error = %WireError::from(error), "cannot write which command the VM lives for");
            }
            Ok(())
        })
    }
}

/// Renames the VM. The registry has made sure that the name is free.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<(), WireError>")]
pub struct Rename(pub VmName);

impl Handler<Rename> for Vm {
    type Result = ResponseActFuture<Self, Result<(), WireError>>;

    fn handle(&mut self, Rename(name): Rename, _: &mut Self::Context) -> Self::Result {
        let before = std::mem::replace(&mut self.record.name, name);
        self.publish();
        // Through the worker, so that an older copy of the record cannot overtake it.
        let (answer, answered) = oneshot::channel();
        let record = self.record.clone();
        self.send_work(Work::Write { record, durability: Durability::Intent, answer: Some(answer) });
        let written = async move { answered.await.unwrap_or(Err(StoreError::Closed)) };
        Box::pin(written.into_actor(self).map(|written, vm, _| {
            if let Err(error) = written {
                // The registry gives the name to others, and no later write may ask for it.
                vm.record.name = before;
                vm.publish();
                return Err(error.into());
            }
            Ok(())
        }))
    }
}

/// The host saw that the guest's SSH answers.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), WireError>")]
pub struct SshAnswers(pub Attempt);

impl Handler<SshAnswers> for Vm {
    type Result = Result<(), WireError>;

    fn handle(&mut self, SshAnswers(attempt): SshAnswers, ctx: &mut Context<Self>) -> Self::Result {
        self.step_quietly(Event::Ready { attempt, level: Readiness::Ssh }, ctx);
        Ok(())
    }
}

/// Panics: for the tests of supervision.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Panic;

#[cfg(test)]
impl Handler<Panic> for Vm {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Self::Context) {
        panic!("asked to");
    }
}
