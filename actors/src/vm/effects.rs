//! Turns the machine's effects into work for the worker, timers and tasks. Nothing here waits.

use super::actor::Vm;
use super::outcomes::{TimedOut, VmmGone};
use super::ports::{Link, LinkEvent, Vmm};
use super::published::AGENT_TIMEOUT;
use super::state::{Effect, Purpose, Timer};
use super::worker::Work;
use crate::store::{Durability, Phase};
use crate::supervise::told;
use actix::{AsyncContext as _, Context};
use messages::WireError;
use messages::error::ErrorKind;
use messages::guest::{GuestAnswer, GuestQuestion, StopKind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Frames of one guest that may wait: a flood fills this and then stalls at its own source.
const LINK_QUEUE: usize = 64;
/// Ctrl-Alt-Del gets so long: ours answers within a second, and SIGKILL comes after it.
const CTRL_ALT_DEL_GRACE: Duration = Duration::from_secs(5);
/// An agent dials again at least this often, also on a loaded host.
const REDIAL_PATIENCE: Duration = Duration::from_secs(5);
const REDIAL_INTERVAL: Duration = Duration::from_millis(50);
/// After so long a SIGKILL is sent again.
const KILL_AGAIN: Duration = Duration::from_secs(10);

impl Vm {
    pub(super) fn send_work(&self, work: Work) {
        if self.work.send(work).is_err() {
            tracing::error!(vm = %self.record.id, "the VM's worker is gone");
        }
    }

    pub(super) fn run_effect(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        let attempt = self.state.attempt;
        match effect {
            Effect::Attach => {
                let events = self.link_events(ctx);
                self.send_work(Work::Attach { attempt, record: self.record.clone(), events });
            }
            Effect::Prepare(purpose) => {
                self.record.phase = match purpose {
                    Purpose::Create | Purpose::CreateOnly | Purpose::CreateThenStart => Phase::Creating,
                    Purpose::Start => Phase::Running,
                };
                self.send_work(Work::Prepare { attempt, record: self.record.clone(), purpose });
            }
            Effect::Launch => match self.boot.clone() {
                Some(boot) => {
                    let events = self.link_events(ctx);
                    self.send_work(Work::Launch { attempt, record: self.record.clone(), boot: Box::new(boot), events });
                }
                None => tracing::error!(vm = %self.record.id, "a launch without its preparation"),
            },
            Effect::AskGuest(kind) => self.ask_guest(kind, ctx),
            Effect::CtrlAltDel => {
                self.how = Some("ctrl-alt-del");
                if let Some(vmm) = self.vmm.clone() {
                    let id = self.record.id;
                    self.send_work(Work::Begin(Box::pin(async move {
                        if let Err(error) = vmm.ctrl_alt_del().await {
                            tracing::warn!(vm = %id, error = %error, "ctrl-alt-del failed");
                        }
                    })));
                }
            }
            Effect::Kill => {
                self.how = Some("killed");
                self.send_work(Work::Kill(self.vmm.clone()));
            }
            Effect::Release => self.send_work(Work::Release { attempt, record: self.record.clone() }),
            Effect::Remove => self.send_work(Work::Remove { attempt, record: self.record.clone() }),
            Effect::Intend(phase) => {
                self.record.phase = phase;
                self.write(Durability::Intent);
            }
            Effect::Note(phase) => {
                self.record.phase = phase;
                self.write(Durability::Fact);
            }
            Effect::Arm(timer) => self.arm(timer, ctx),
        }
    }

    fn ask_guest(&mut self, kind: StopKind, ctx: &mut Context<Self>) {
        self.how = Some("halted");
        let attempt = self.state.attempt;
        let deadline = self.stop_grace;
        let millis = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let link = self.link.clone();
        let actor = ctx.address().downgrade();
        self.send_work(Work::Begin(Box::pin(async move {
            let question = GuestQuestion::Stop { kind, deadline_ms: millis };
            let refused = match link {
                Some(link) => ask_when_connected(link.as_ref(), question, deadline).await.err(),
                None => Some(WireError::new(ErrorKind::Guest, "there is no link to the agent")),
            };
            match (refused, actor.upgrade()) {
                // It went down faster than it answered: that is for the VMM's end or the grace period to tell.
                (None | Some(WireError { kind: ErrorKind::Lost, .. }), _) | (_, None) => {}
                // Without an agent the grace period would be for nothing.
                (Some(error), Some(actor)) => {
                    tracing::warn!(error = %error, "the guest cannot be asked to stop");
                    told(actor.send(TimedOut { attempt, timer: Timer::Guest }).await);
                }
            }
        })));
    }

    fn arm(&mut self, timer: Timer, ctx: &mut Context<Self>) {
        if let Some(before) = self.timer.take() {
            ctx.cancel_future(before);
        }
        let after = match timer {
            Timer::Boot => AGENT_TIMEOUT,
            Timer::Guest => self.stop_grace,
            Timer::CtrlAltDel => CTRL_ALT_DEL_GRACE,
            Timer::Kill => KILL_AGAIN,
            Timer::Restart => self.backoff,
        };
        let attempt = self.state.attempt;
        self.timer = Some(ctx.notify_later(TimedOut { attempt, timer }, after));
    }

    /// A queue for a new link, drained into the mailbox one frame at a time: a guest's flood gets no more turns than anybody. Nothing
    /// of it comes before [`Self::hear_guest`].
    pub(super) fn link_events(&mut self, ctx: &mut Context<Self>) -> mpsc::Sender<LinkEvent> {
        let (events, mut queue) = mpsc::channel(LINK_QUEUE);
        let (hear, heard) = oneshot::channel();
        self.hear = Some(hear);
        let actor = ctx.address().downgrade();
        let attempt = self.state.attempt;
        self.context.runtime.spawn(async move {
            if heard.await.is_err() {
                return;
            }
            while let Some(event) = queue.recv().await {
                let Some(actor) = actor.upgrade() else { break };
                if actor.send(super::guest::FromLink { attempt, event }).await.is_err() {
                    break;
                }
            }
        });
        events
    }

    /// Lets in what the guest says: it is known by now what runs, and there is a link to answer by.
    pub(super) fn hear_guest(&mut self) {
        if self.link.is_some()
            && let Some(hear) = self.hear.take()
        {
            // Nobody to hear it: the queue's task ends with the runtime only.
            hear.send(()).ok();
        }
    }

    pub(super) fn watch_exit(&self, vmm: &Arc<dyn Vmm>, ctx: &mut Context<Self>) {
        let exited = vmm.exited();
        let actor = ctx.address().downgrade();
        let attempt = self.state.attempt;
        self.context.runtime.spawn(async move {
            let exit = exited.await;
            if let Some(actor) = actor.upgrade() {
                told(actor.send(VmmGone { attempt, exit }).await);
            }
        });
    }
}

/// Asks as soon as there is a connection: after a restart of the daemon or of the agent it takes a moment to come back.
async fn ask_when_connected(
    link: &dyn Link,
    question: GuestQuestion,
    limit: Duration,
) -> Result<GuestAnswer, WireError> {
    let until = Instant::now() + REDIAL_PATIENCE.min(limit);
    loop {
        match link.call(question.clone(), limit).await {
            Err(error) if error.kind == ErrorKind::Unavailable && Instant::now() < until => {
                tokio::time::sleep(REDIAL_INTERVAL).await;
            }
            result => return result,
        }
    }
}
