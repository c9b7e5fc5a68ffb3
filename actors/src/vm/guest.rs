//! What a guest's agent says. All of it is hostile: a frame may change what is told about this VM, and nothing else.

use super::actor::Vm;
use super::outcomes::UNHEARD;
use super::ports::LinkEvent;
use super::state::{At, Attempt, Event};
use super::worker::Work;
use crate::store::{Durability, StoreError};
use actix::{Context, Handler, Message};
use messages::guest::{AgentFrame, DaemonFrame, RunningIdentity};
use messages::ids::OperationId;
use messages::vm::{Lifetime, Readiness};
use tokio::sync::oneshot;

/// How many operations of one guest are counted. Their handles live in the guest; this is only for people to see.
const OPERATIONS_MAX: usize = 4096;
/// The longest warning of a guest that is kept, in characters.
const WARNING_MAX: usize = 500;

#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct FromLink {
    pub(super) attempt: Attempt,
    pub(super) event: LinkEvent,
}

impl Handler<FromLink> for Vm {
    type Result = ();

    fn handle(&mut self, FromLink { attempt, event }: FromLink, ctx: &mut Self::Context) {
        if attempt != self.state.attempt {
            return;
        }
        match event {
            LinkEvent::Frame(frame) => self.on_frame(attempt, frame, ctx),
            // The agent redials for ever; whether the VM lives is for its VMM to say.
            LinkEvent::Down => tracing::debug!(vm = %self.record.id, "the control stream is down"),
            LinkEvent::Drained => self.conclude(ctx),
        }
    }
}

impl Vm {
    fn on_frame(&mut self, attempt: Attempt, frame: AgentFrame, ctx: &mut Context<Self>) {
        match frame {
            AgentFrame::Identify { running: None, uptime_us, restarts } => {
                tracing::debug!(vm = %self.record.id, uptime_us, restarts, "the agent asks for its boot spec");
                self.send_spec();
            }
            AgentFrame::Identify { running: Some(identity), restarts, .. } => {
                self.on_identity(attempt, identity, restarts, ctx);
            }
            AgentFrame::Ready { level, warning, uptime_us } => {
                // Once for each level: a guest that says it a thousand times a second must not fill the log.
                if !matches!(self.state.at, At::Running { level: before } if before >= level) {
                    tracing::info!(vm = %self.record.id, ?level, uptime_us, "the guest is ready");
                }
                self.on_ready(attempt, level, warning, ctx);
            }
            AgentFrame::OperationStarted { operation, .. } => {
                if self.operations.len() < OPERATIONS_MAX && self.operations.insert(operation) {
                    self.publish();
                }
            }
            AgentFrame::OperationEnded { operation, status } => {
                tracing::debug!(vm = %self.record.id, %operation, ?status, "an operation ended");
                self.on_operation_ended(operation, ctx);
            }
            AgentFrame::Stopping { kind } => self.step_quietly(Event::GuestStopping { attempt, kind }, ctx),
            // The link matches answers to its calls; one that comes here came too late.
            AgentFrame::Answer { call, .. } => tracing::debug!(vm = %self.record.id, call, "an answer to no question"),
            AgentFrame::BootFailed(error) => {
                let error = error
                    .context("the guest could not boot")
                    .hint(format!("`banger vm logs {}` shows its console", self.record.name));
                self.step_quietly(Event::BootFailed { attempt, error }, ctx);
            }
        }
    }

    fn on_identity(&mut self, attempt: Attempt, identity: RunningIdentity, restarts: u32, ctx: &mut Context<Self>) {
        if identity.vm != self.record.id || Some(identity.nonce) != self.record.nonce {
            tracing::warn!(vm = %self.record.id, says = %identity.vm, "the agent says that it is somebody else");
            self.send_spec();
            return;
        }
        if restarts > 0 {
            tracing::warn!(vm = %self.record.id, restarts, "the agent had to be restarted in this boot");
        }
        // Of all that it says, not of what is counted.
        let runs = |operation: OperationId| identity.operations.contains(&operation);
        let lost = |operation| self.is_main(operation) && !self.tied_here && !runs(operation);
        // The guest has ended it, or an earlier daemon died before it was opened: in either case nobody waits for it.
        let is_left_over = self.record.operation.is_some_and(lost);
        self.operations = identity.operations.into_iter().take(OPERATIONS_MAX).collect();
        if is_left_over {
            tracing::info!(vm = %self.record.id, "the command that it was made for does not run any more");
            self.step_quietly(Event::Delete { force: true }, ctx);
            return;
        }
        if let Some(link) = &self.link {
            link.send(DaemonFrame::Welcome);
        }
        match identity.readiness {
            Some(level) => self.on_ready(attempt, level, identity.warning, ctx),
            None => self.publish(),
        }
    }

    fn on_ready(&mut self, attempt: Attempt, level: Readiness, warning: Option<String>, ctx: &mut Context<Self>) {
        let before = self.warning.clone();
        self.warning.take_if(|warning| warning == UNHEARD);
        if let Some(warning) = warning {
            self.warning = Some(warning.chars().filter(|c| !c.is_control()).take(WARNING_MAX).collect());
        }
        if let (Some(link), Some(nonce)) = (&self.link, self.record.nonce) {
            link.pin(nonce);
        }
        // An agent knows nothing of an SSH handshake; the host finds that out itself.
        self.step_quietly(Event::Ready { attempt, level: level.min(Readiness::System) }, ctx);
        if self.warning != before {
            self.publish();
        }
    }

    fn on_operation_ended(&mut self, operation: OperationId, ctx: &mut Context<Self>) {
        if self.operations.remove(&operation) {
            self.publish();
        }
        if self.is_main(operation) {
            // Not acknowledged: should the daemon end before the delete is written, the agent tells the next one.
            self.step_quietly(Event::Delete { force: true }, ctx);
        } else if let Some(link) = &self.link {
            link.send(DaemonFrame::Acknowledge { operation });
        }
    }

    /// Whether this is what an ephemeral VM lives for.
    fn is_main(&self, operation: OperationId) -> bool {
        self.record.lifetime == Lifetime::Ephemeral && self.record.operation == Some(operation)
    }

    /// Ties an ephemeral VM to the operation that it lives for, and tells when that is written. `None` where it has one already.
    pub(super) fn tie(&mut self, operation: OperationId) -> Option<oneshot::Receiver<Result<(), StoreError>>> {
        if self.record.operation.is_some_and(|before| before != operation) {
            return None;
        }
        self.tied_here = true;
        self.record.operation = Some(operation);
        let (answer, written) = oneshot::channel();
        let record = self.record.clone();
        self.send_work(Work::Write { record, durability: Durability::Fact, answer: Some(answer) });
        Some(written)
    }

    /// Whether a guest can be asked anything now.
    pub(super) const fn has_agent(&self) -> bool {
        match self.state.at {
            At::Running { .. } => true,
            At::New
            | At::Attaching { .. }
            | At::Preparing { .. }
            | At::Launching { .. }
            | At::Cancelling { .. }
            | At::Booting { .. }
            | At::Stopping { .. }
            | At::Releasing { .. }
            | At::BackingOff
            | At::Stopped
            | At::Failed { .. }
            | At::Deleting { .. }
            | At::Gone { .. } => false,
        }
    }
}
