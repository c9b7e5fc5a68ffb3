//! The life of one VM as a pure function: `(State, Event) -> (State, Result<Vec<Effect>, Denied>)`. No clock, no I/O.
//!
//! ```text
//! New ─▶ Preparing ─▶ Launching ─▶ Booting ─▶ Running ─▶ Stopping ─▶ Releasing ─▶ Stopped | Failed | Preparing | Deleting ─▶ Gone
//!            └────────────┴─▶ Cancelling ─────────────────▶┴──▶┘
//! Attaching ─▶ Booting | Stopping | Releasing        (a new actor for a VM that had one before: daemon restart, panic)
//! ```
//! Three answers: effects to run, in order; no effects, because it is so already; denied. A stop is never denied.
//! Every transition is spelled out: a new state or event does not compile until each pair has been thought of.

use messages::WireError;
use messages::guest::StopKind;
use messages::vm::{Readiness, VmState};

use crate::store::Phase;

/// Counts the starts of one actor. Outcomes carry the number of the start they belong to, so that late ones are ignored.
pub type Attempt = u64;

/// Where a VM is, and in which attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub attempt: Attempt,
    pub at: At,
}

/// What exists of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// Nothing, not even a row.
    New,
    /// A row in this phase; whether a VMM lives is being found out.
    Attaching { phase: Phase, asked: Asked },
    /// Row and disk are being made sure of, tap and image leased. No VMM.
    Preparing { purpose: Purpose },
    /// The VMM is being started.
    Launching { purpose: Purpose },
    /// A step of the start is under way, but the VM is not wanted any more. `creating`: where that step fails there is no row.
    Cancelling { creating: bool, then: Then },
    /// The VMM runs; nothing was heard of the agent. `again`: it outlived its daemon and may long be up.
    Booting { again: bool },
    /// The agent is ready to this level.
    Running { level: Readiness },
    /// The VMM is on its way out.
    Stopping { stage: Stage, then: Then },
    /// The VMM is gone; leases and sockets are being given back.
    Releasing { then: Then },
    /// Ended by itself; the next start waits for its back-off.
    BackingOff,
    /// Disk and row.
    Stopped,
    /// Disk and row; the last start or run ended so.
    Failed { error: WireError },
    /// Files and row are being removed. The error is that of a create being rolled back.
    Deleting { error: Option<WireError> },
    /// Nothing.
    Gone { error: Option<WireError> },
}

/// Why a start happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The first time: a failure rolls everything back.
    Create,
    /// Make the VM, leave it stopped.
    CreateOnly,
    /// [`Purpose::CreateOnly`], during which somebody asked for a start.
    CreateThenStart,
    /// A VM that exists.
    Start,
}

/// What else was asked for while it was being found out whether a VMM lives: a stop and a delete are phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Nothing,
    Restart,
    /// The stop must not wait for the guest.
    Kill,
}

/// How far a stop has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The guest was asked, or announced it itself.
    Guest,
    /// Ctrl-Alt-Del was sent.
    CtrlAltDel,
    /// SIGKILL was sent to the VMM.
    Killed,
}

/// What comes after the VMM is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    Rest,
    Fail(WireError),
    Start,
    /// Start, but not at once.
    StartLater,
    Delete(Option<WireError>),
}

/// The clocks of a VM. Arming one disarms the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timer {
    /// Booting must end.
    Boot,
    /// The guest must have stopped.
    Guest,
    /// Ctrl-Alt-Del must have worked.
    CtrlAltDel,
    /// SIGKILL must have worked.
    Kill,
    /// The back-off before a restart is over.
    Restart,
}

/// What happens to a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Create {
        start: bool,
    },
    Attach {
        phase: Phase,
    },
    Start,
    Stop,
    Kill,
    Restart,
    Delete {
        force: bool,
    },
    Attached {
        attempt: Attempt,
        alive: bool,
        /// Its agent had been heard of before.
        was_ready: bool,
        wish: Then,
    },
    Prepared {
        attempt: Attempt,
        result: Result<(), WireError>,
    },
    Launched {
        attempt: Attempt,
        result: Result<(), WireError>,
    },
    Ready {
        attempt: Attempt,
        level: Readiness,
    },
    BootFailed {
        attempt: Attempt,
        error: WireError,
    },
    GuestStopping {
        attempt: Attempt,
        kind: StopKind,
    },
    /// The VMM is gone; `wish` is what policy says of a VM that ends by itself.
    Exited {
        attempt: Attempt,
        wish: Then,
    },
    Timeout {
        attempt: Attempt,
        timer: Timer,
    },
    Released {
        attempt: Attempt,
    },
    Removed {
        attempt: Attempt,
        result: Result<(), WireError>,
    },
}

/// What the actor is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Find out whether a VMM lives. Answered by `Attached`.
    Attach,
    /// Leases, one durable commit, disk. Answered by `Prepared`.
    Prepare(Purpose),
    /// Answered by `Launched`.
    Launch,
    AskGuest(StopKind),
    CtrlAltDel,
    Kill,
    /// Leases and sockets. Answered by `Released`.
    Release,
    /// Files and row. Answered by `Removed`.
    Remove,
    /// An intent, durable before the next effect.
    Intend(Phase),
    /// A fact that reconcile would find out again.
    Note(Phase),
    Arm(Timer),
}

/// A request that the present state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {action} the VM while it is {state}")]
pub struct Denied {
    pub action: &'static str,
    pub state: &'static str,
}

type Answer = (State, Result<Vec<Effect>, Denied>);

impl State {
    /// A VM of which nothing exists.
    pub const NEW: Self = Self { attempt: 0, at: At::New };

    /// What is told about it.
    #[must_use]
    pub const fn published(&self) -> VmState {
        match self.at {
            At::New | At::Preparing { .. } | At::Launching { .. } | At::Booting { .. } | At::BackingOff => {
                VmState::Starting
            }
            At::Attaching { phase, .. } => match phase {
                Phase::Creating | Phase::Running => VmState::Starting,
                Phase::Stopping => VmState::Stopping,
                Phase::Stopped => VmState::Stopped,
                Phase::Failed => VmState::Failed,
                Phase::Deleting => VmState::Deleting,
            },
            At::Running { .. } => VmState::Running,
            At::Cancelling { ref then, .. } | At::Stopping { ref then, .. } | At::Releasing { ref then } => {
                match then {
                    Then::Rest | Then::Fail(_) | Then::Start | Then::StartLater => VmState::Stopping,
                    Then::Delete(_) => VmState::Deleting,
                }
            }
            At::Stopped => VmState::Stopped,
            At::Failed { .. } => VmState::Failed,
            At::Deleting { .. } | At::Gone { .. } => VmState::Deleting,
        }
    }

    fn denied(self, action: &'static str) -> Answer {
        let state = self.published().as_str();
        (self, Err(Denied { action, state }))
    }

    fn ignored(self) -> Answer {
        (self, Ok(Vec::new()))
    }

    fn to(self, at: At, effects: Vec<Effect>) -> Answer {
        (Self { attempt: self.attempt, at }, Ok(effects))
    }

    fn start(self, purpose: Purpose) -> Answer {
        (Self { attempt: self.attempt + 1, at: At::Preparing { purpose } }, Ok(vec![Effect::Prepare(purpose)]))
    }

    fn kill(self, then: Then) -> Answer {
        let phase = match then {
            Then::Delete(_) => Phase::Deleting,
            Then::Start | Then::StartLater => Phase::Running,
            Then::Rest | Then::Fail(_) => Phase::Stopping,
        };
        self.to(
            At::Stopping { stage: Stage::Killed, then },
            vec![Effect::Intend(phase), Effect::Kill, Effect::Arm(Timer::Kill)],
        )
    }

    fn release(self, then: Then) -> Answer {
        self.to(At::Releasing { then }, vec![Effect::Release])
    }

    /// The whole machine.
    pub fn on(self, event: Event) -> Answer {
        match event {
            Event::Create { start } => self.on_create(start),
            Event::Attach { phase } => self.on_attach(phase),
            Event::Start => self.on_start(),
            Event::Stop => self.on_stop(),
            Event::Kill => self.on_kill(),
            Event::Restart => self.on_restart(),
            Event::Delete { force } => self.on_delete(force),
            Event::Attached { attempt, .. }
            | Event::Prepared { attempt, .. }
            | Event::Launched { attempt, .. }
            | Event::Ready { attempt, .. }
            | Event::BootFailed { attempt, .. }
            | Event::GuestStopping { attempt, .. }
            | Event::Exited { attempt, .. }
            | Event::Timeout { attempt, .. }
            | Event::Released { attempt }
            | Event::Removed { attempt, .. }
                if attempt != self.attempt =>
            {
                self.ignored()
            }
            Event::Attached { alive, was_ready, wish, .. } => self.on_attached(alive, was_ready, wish),
            Event::Prepared { result, .. } => self.on_prepared(result),
            Event::Launched { result, .. } => self.on_launched(result),
            Event::Ready { level, .. } => self.on_ready(level),
            Event::BootFailed { error, .. } => self.on_boot_failed(error),
            Event::GuestStopping { kind, .. } => self.on_guest_stopping(kind),
            Event::Exited { wish, .. } => self.on_exited(wish),
            Event::Timeout { timer, .. } => self.on_timeout(timer),
            Event::Released { .. } => self.on_released(),
            Event::Removed { result, .. } => self.on_removed(result),
        }
    }
}

mod outcomes;
mod requests;

#[cfg(test)]
mod tests;
