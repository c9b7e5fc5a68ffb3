//! What comes back to the actor: ends of work, the VMM's death, clocks. And what policy makes of a VM that ends by itself.

use super::actor::Vm;
use super::ports::{Boot, Link, Vmm, VmmExit};
use super::published::AGENT_TIMEOUT;
use super::state::{At, Attempt, Event, Then, Timer};
use super::worker::Work;
use crate::store::Phase;
use actix::{AsyncContext as _, Context, Handler, Message};
use messages::WireError;
use messages::error::ErrorKind;
use messages::vm::{Lifetime, RestartPolicy};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the words that a guest said before its VMM ended may take through our own queues. They are on this host already, so
/// only a flood takes longer.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Between two attempts to find out what a VM runs on that outlived its daemon.
const GATHER_AGAIN: Duration = Duration::from_secs(3);

/// A VM that is left alone, since it was up when the daemon before was; so is its warning until the agent speaks.
pub(super) const UNHEARD: &str =
    "its agent has not been heard of since the daemon's start: `banger vm restart` ends what runs and starts it anew";

/// What runs of a VM. A link that could not be listened for is a VM without exec, not a dead one.
type Alive = (Arc<dyn Vmm>, Option<Arc<dyn Link>>);

/// What became of a piece of work.
pub(super) enum Outcome {
    Attached {
        alive: Option<Alive>,
        error: Option<WireError>,
    },
    Prepared(Result<Box<Boot>, WireError>),
    /// What a VM was booted with that outlived its daemon; a link where one had been missing.
    Gathered {
        boot: Result<Box<Boot>, WireError>,
        link: Option<Result<Arc<dyn Link>, WireError>>,
    },
    Launched(Result<Alive, WireError>),
    Released,
    Removed(Result<(), WireError>),
}

#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Done {
    pub(super) attempt: Attempt,
    pub(super) outcome: Outcome,
}

impl Handler<Done> for Vm {
    type Result = ();

    fn handle(&mut self, Done { attempt, outcome }: Done, ctx: &mut Self::Context) {
        if attempt != self.state.attempt {
            return;
        }
        let event = match outcome {
            Outcome::Attached { alive, error } => {
                if let Some(error) = &error {
                    tracing::warn!(vm = %self.record.id, error = %error, "attached without a link");
                }
                let lives = alive.is_some();
                let wish = if lives {
                    Then::Rest
                } else if matches!(self.state.at, At::Attaching { phase: Phase::Creating, .. }) {
                    self.wish_of_unfinished()
                } else {
                    let error = error
                        .unwrap_or_else(|| WireError::new(ErrorKind::Guest, "its VMM ended while the daemon was away"));
                    match (self.record.lifetime, self.record.operation) {
                        // Its client is gone without ever having had it.
                        (Lifetime::Ephemeral, None) => Then::Delete(None),
                        (Lifetime::Ephemeral, Some(_)) | (Lifetime::Kept, _) => self.wish(error, false),
                    }
                };
                if let Some((vmm, link)) = alive {
                    self.watch_exit(&vmm, ctx);
                    self.vmm = Some(vmm);
                    self.link = link;
                }
                Event::Attached { attempt, alive: lives, was_ready: self.record.was_ready, wish }
            }
            Outcome::Gathered { boot, link } => return self.gathered(boot, link, ctx),
            Outcome::Prepared(result) => {
                let result = result.map(|boot| {
                    self.record.tap = boot.tap.as_ref().map_or(self.record.tap, |tap| Some(tap.number));
                    self.boot = Some(*boot);
                });
                Event::Prepared { attempt, result }
            }
            Outcome::Launched(result) => {
                let result = result.map(|(vmm, link)| {
                    self.watch_exit(&vmm, ctx);
                    self.vmm = Some(vmm);
                    self.link = link;
                });
                Event::Launched { attempt, result }
            }
            Outcome::Released => Event::Released { attempt },
            Outcome::Removed(result) => Event::Removed { attempt, result },
        };
        let attached = matches!(event, Event::Attached { alive: true, .. });
        self.step_quietly(event, ctx);
        self.hear_guest();
        if attached && self.record.lifetime == Lifetime::Ephemeral && self.record.operation.is_none() {
            // Its client died with the daemon before it was handed over.
            self.step_quietly(Event::Delete { force: true }, ctx);
        } else if attached {
            self.gather(ctx);
            ctx.notify_later(Unheard { attempt }, AGENT_TIMEOUT);
        }
    }
}

impl Vm {
    /// What policy says of a VM that ended without being told to.
    fn wish(&mut self, error: WireError, clean: bool) -> Then {
        if !self.record.was_ready {
            return Then::Fail(error);
        }
        match (self.record.lifetime, self.record.restart) {
            (Lifetime::Ephemeral, RestartPolicy::No | RestartPolicy::Always) => Then::Delete(None),
            (Lifetime::Kept, RestartPolicy::Always) => match self.restarts.next(Instant::now()) {
                Some(backoff) => {
                    self.backoff = backoff;
                    Then::StartLater
                }
                None => Then::Fail(error.context("it was started again too often")),
            },
            (Lifetime::Kept, RestartPolicy::No) if clean => Then::Rest,
            (Lifetime::Kept, RestartPolicy::No) => Then::Fail(error),
        }
    }

    /// What becomes of a VM whose create was never seen to end, and that does not live.
    fn wish_of_unfinished(&self) -> Then {
        match self.record.lifetime {
            Lifetime::Kept if self.context.host_restarted => Then::Fail(
                WireError::new(ErrorKind::Host, "the host went down while the VM was being made, or soon after")
                    .hint(format!("`banger vm start {}` starts it", self.record.name)),
            ),
            // It has never run: its creator was told nothing, or that it is lost.
            Lifetime::Kept | Lifetime::Ephemeral => Then::Delete(None),
        }
    }

    /// A VM that runs, but whose address and image are not known: the helper is away, say. It is asked again until it is back.
    fn gather_later(&self, ctx: &mut Context<Self>) {
        ctx.notify_later(GatherAgain { attempt: self.state.attempt }, GATHER_AGAIN);
    }

    fn gather(&mut self, ctx: &mut Context<Self>) {
        let runs = matches!(self.state.at, At::Booting { .. } | At::Running { .. });
        if runs && (self.boot.is_none() || self.link.is_none()) {
            let (attempt, record) = (self.state.attempt, self.record.clone());
            let listen = self.link.is_none().then(|| self.link_events(ctx));
            self.send_work(Work::Gather { attempt, record, listen });
        }
    }

    fn gathered(
        &mut self,
        boot: Result<Box<Boot>, WireError>,
        link: Option<Result<Arc<dyn Link>, WireError>>,
        ctx: &mut Context<Self>,
    ) {
        let mut missing = None;
        match link {
            Some(Ok(link)) => {
                self.link = Some(link);
                self.hear_guest();
            }
            Some(Err(error)) => missing = Some(error),
            None => {}
        }
        match boot {
            Ok(boot) => {
                self.boot = Some(*boot);
                self.publish();
                if std::mem::take(&mut self.asked_early) {
                    self.send_spec();
                }
            }
            Err(error) => missing = Some(error),
        }
        if let Some(error) = missing {
            tracing::debug!(vm = %self.record.id, error = %error, "still attached with less than all");
            self.gather_later(ctx);
        }
    }

    /// A step for an event that nobody waits on; the machine denies none of these.
    pub(super) fn step_quietly(&mut self, event: Event, ctx: &mut Context<Self>) {
        if let Err(denied) = self.step(event, ctx) {
            tracing::error!(vm = %self.record.id, error = %denied, "an outcome was denied");
        }
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct GatherAgain {
    attempt: Attempt,
}

impl Handler<GatherAgain> for Vm {
    type Result = ();

    fn handle(&mut self, GatherAgain { attempt }: GatherAgain, ctx: &mut Self::Context) {
        if attempt == self.state.attempt {
            self.gather(ctx);
        }
    }
}

/// A VM that outlived its daemon has had time to say something.
#[derive(Message)]
#[rtype(result = "()")]
struct Unheard {
    attempt: Attempt,
}

impl Handler<Unheard> for Vm {
    type Result = ();

    fn handle(&mut self, Unheard { attempt }: Unheard, _: &mut Self::Context) {
        if attempt == self.state.attempt && matches!(self.state.at, At::Booting { again: true }) {
            tracing::warn!(vm = %self.record.id, "nothing was heard of the VM's agent since the daemon's start");
            self.warning = Some(UNHEARD.to_owned());
            self.publish();
        }
    }
}

#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct TimedOut {
    pub(super) attempt: Attempt,
    pub(super) timer: Timer,
}

impl Handler<TimedOut> for Vm {
    type Result = ();

    fn handle(&mut self, TimedOut { attempt, timer }: TimedOut, ctx: &mut Self::Context) {
        self.step_quietly(Event::Timeout { attempt, timer }, ctx);
    }
}

#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct VmmGone {
    pub(super) attempt: Attempt,
    pub(super) exit: VmmExit,
}

impl Handler<VmmGone> for Vm {
    type Result = ();

    fn handle(&mut self, VmmGone { attempt, exit }: VmmGone, ctx: &mut Self::Context) {
        if attempt != self.state.attempt {
            return;
        }
        let open = matches!(self.state.at, At::Booting { .. } | At::Running { .. });
        self.exit = Some(exit);
        match self.link.clone().filter(|_| open) {
            // A reboot and an end look alike from here; the guest says which it is, but by a way of its own, which on a busy
            // host is the longer one.
            Some(link) => {
                link.drain();
                ctx.notify_later(LastWordsOver { attempt }, LAST_WORDS);
            }
            None => self.conclude(ctx),
        }
    }
}

/// Whatever the guest still had to say has taken too long.
#[derive(Message)]
#[rtype(result = "()")]
struct LastWordsOver {
    attempt: Attempt,
}

impl Handler<LastWordsOver> for Vm {
    type Result = ();

    fn handle(&mut self, LastWordsOver { attempt }: LastWordsOver, ctx: &mut Self::Context) {
        if attempt == self.state.attempt && self.exit.is_some() {
            tracing::warn!(vm = %self.record.id, "the VMM ended, and its guest's last words do not come to an end");
            self.conclude(ctx);
        }
    }
}

impl Vm {
    /// Tells the machine of the VMM's end, once: after all that the guest said before it.
    pub(super) fn conclude(&mut self, ctx: &mut Context<Self>) {
        let Some(exit) = self.exit.take() else { return };
        let told_to_end = matches!(self.state.at, At::Stopping { then: Then::Rest, .. });
        if told_to_end && self.record.lifetime == Lifetime::Ephemeral && self.record.operation.is_some() {
            // With it ended the command that it was made for, which nobody hears of any more.
            self.step_quietly(Event::Delete { force: true }, ctx);
        }
        let wish = match self.state.at {
            At::Booting { .. } | At::Running { .. } => {
                let error = WireError::new(ErrorKind::Guest, format!("the VMM ended: {}", exit.reason))
                    .hint(format!("`banger vm logs {}` shows its console", self.record.name));
                self.wish(error, exit.clean)
            }
            At::New
            | At::Attaching { .. }
            | At::Preparing { .. }
            | At::Launching { .. }
            | At::Cancelling { .. }
            | At::Stopping { .. }
            | At::Releasing { .. }
            | At::BackingOff
            | At::Stopped
            | At::Failed { .. }
            | At::Deleting { .. }
            | At::Gone { .. } => Then::Rest,
        };
        self.step_quietly(Event::Exited { attempt: self.state.attempt, wish }, ctx);
    }
}
