//! What comes back: ends of steps, words of the guest, the VMM's death, clocks.

use super::{Answer, Asked, At, Effect, Phase, Purpose, Stage, State, Then, Timer};
use messages::WireError;
use messages::error::ErrorKind;
use messages::guest::StopKind;
use messages::vm::Readiness;

impl State {
    pub(super) fn on_attached(self, alive: bool, was_ready: bool, wish: Then) -> Answer {
        match self.at {
            At::Attaching { phase, asked } => match (phase, alive) {
                (Phase::Creating | Phase::Running, true) if asked == Asked::Restart => self.to(
                    At::Stopping { stage: Stage::Guest, then: Then::Start },
                    vec![Effect::Note(Phase::Running), Effect::AskGuest(StopKind::Reboot), Effect::Arm(Timer::Guest)],
                ),
                // What was up before is not ended because its agent is late: it may be busy, or of another version.
                (Phase::Creating | Phase::Running, true) if was_ready => {
                    self.to(At::Booting { again: true }, vec![Effect::Note(Phase::Running)])
                }
                (Phase::Creating | Phase::Running, true) => {
                    self.to(At::Booting { again: true }, vec![Effect::Note(Phase::Running), Effect::Arm(Timer::Boot)])
                }
                (Phase::Stopping, true) if asked == Asked::Kill => self.kill(Then::Rest),
                // An earlier daemon may not have come to asking it.
                (Phase::Stopping, true) => self.to(
                    At::Stopping { stage: Stage::Guest, then: Then::Rest },
                    vec![Effect::AskGuest(StopKind::Halt), Effect::Arm(Timer::Guest)],
                ),
                (Phase::Deleting, true) => self.kill(Then::Delete(None)),
                (Phase::Running, false) if asked == Asked::Restart => self.release(Then::Start),
                (Phase::Creating | Phase::Running, false) => self.release(wish),
                (Phase::Stopping, false) => self.release(Then::Rest),
                (Phase::Deleting, false) => self.release(Then::Delete(None)),
                // `on_attach` does not let these in.
                (Phase::Stopped | Phase::Failed, true) => self.kill(Then::Rest),
                (Phase::Stopped | Phase::Failed, false) => self.release(Then::Rest),
            },
            At::New
            | At::Preparing { .. }
            | At::Launching { .. }
            | At::Cancelling { .. }
            | At::Booting { .. }
            | At::Running { .. }
            | At::Stopping { .. }
            | At::Releasing { .. }
            | At::BackingOff
            | At::Stopped
            | At::Failed { .. }
            | At::Deleting { .. }
            | At::Gone { .. } => self.ignored(),
        }
    }

    pub(super) fn on_prepared(self, result: Result<(), WireError>) -> Answer {
        match self.at {
            At::Preparing { purpose } => match (purpose, result) {
                (Purpose::Create | Purpose::Start, Ok(())) => self.to(At::Launching { purpose }, vec![Effect::Launch]),
                (Purpose::CreateOnly, Ok(())) => self.to(At::Stopped, vec![Effect::Note(Phase::Stopped)]),
                // What is prepared has neither tap nor disk.
                (Purpose::CreateThenStart, Ok(())) => self.start(Purpose::Start),
                (Purpose::Create | Purpose::CreateOnly | Purpose::CreateThenStart, Err(error)) => {
                    self.release(Then::Delete(Some(error)))
                }
                (Purpose::Start, Err(error)) => self.release(Then::Fail(error)),
            },
            At::Cancelling { creating, then } => {
                let state = State { attempt: self.attempt, at: At::New };
                match (creating, result, then) {
                    // There is nothing that could rest or be started.
                    (true, Err(error), Then::Rest | Then::Fail(_) | Then::Start | Then::StartLater) => {
                        state.release(Then::Delete(Some(error)))
                    }
                    (_, _, then) => state.release(then),
                }
            }
            At::New
            | At::Attaching { .. }
            | At::Launching { .. }
            | At::Booting { .. }
            | At::Running { .. }
            | At::Stopping { .. }
            | At::Releasing { .. }
            | At::BackingOff
            | At::Stopped
            | At::Failed { .. }
            | At::Deleting { .. }
            | At::Gone { .. } => self.ignored(),
        }
    }

    pub(super) fn on_launched(self, result: Result<(), WireError>) -> Answer {
        match self.at {
            At::Launching { purpose } => match (purpose, result) {
                (Purpose::Create | Purpose::CreateOnly | Purpose::CreateThenStart | Purpose::Start, Ok(())) => {
                    self.to(At::Booting { again: false }, vec![Effect::Note(Phase::Running), Effect::Arm(Timer::Boot)])
                }
                (Purpose::Create | Purpose::CreateOnly | Purpose::CreateThenStart, Err(error)) => {
                    self.release(Then::Delete(Some(error)))
                }
                (Purpose::Start, Err(error)) => self.release(Then::Fail(error)),
            },
            At::Cancelling { then, .. } => {
                let state = State { attempt: self.attempt, at: At::Booting { again: false } };
                match result {
                    Ok(()) => state.kill(then),
                    Err(_) => state.release(then),
                }
            }
            At::New
            | At::Attaching { .. }
            | At::Preparing { .. }
            | At::Booting { .. }
            | At::Running { .. }
            | At::Stopping { .. }
            | At::Releasing { .. }
            | At::BackingOff
            | At::Stopped
            | At::Failed { .. }
            | At::Deleting { .. }
            | At::Gone { .. } => self.ignored(),
        }
    }

    pub(super) fn on_ready(self, level: Readiness) -> Answer {
        match self.at {
            At::Booting { .. } => self.to(At::Running { level }, vec![]),
            At::Running { level: before } => self.to(At::Running { level: before.max(level) }, vec![]),
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
            | At::Gone { .. } => self.ignored(),
        }
    }

    pub(super) fn on_boot_failed(self, error: WireError) -> Answer {
        match self.at {
            // A hostile guest may say this at any time: after it was ready it is no reason to kill it.
            At::Booting { .. } => self.kill(Then::Fail(error)),
            At::New
            | At::Attaching { .. }
            | At::Preparing { .. }
            | At::Launching { .. }
            | At::Cancelling { .. }
            | At::Running { .. }
            | At::Stopping { .. }
            | At::Releasing { .. }
            | At::BackingOff
            | At::Stopped
            | At::Failed { .. }
            | At::Deleting { .. }
            | At::Gone { .. } => self.ignored(),
        }
    }

    pub(super) fn on_guest_stopping(self, kind: StopKind) -> Answer {
        match self.at {
            At::Booting { .. } | At::Running { .. } => {
                let (then, intent) = match kind {
                    StopKind::Halt => (Then::Rest, vec![Effect::Intend(Phase::Stopping)]),
                    StopKind::Reboot => (Then::Start, vec![]),
                };
                let effects = intent.into_iter().chain([Effect::Arm(Timer::Guest)]).collect();
                self.to(At::Stopping { stage: Stage::Guest, then }, effects)
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
            | At::Gone { .. } => self.ignored(),
        }
    }

    pub(super) fn on_exited(self, wish: Then) -> Answer {
        match self.at {
            At::Booting { .. } | At::Running { .. } => self.release(wish),
            At::Stopping { then, .. } => {
                State { attempt: self.attempt, at: At::Booting { again: false } }.release(then)
            }
            At::New
            | At::Attaching { .. }
            | At::Preparing { .. }
            | At::Launching { .. }
            | At::Cancelling { .. }
            | At::Releasing { .. }
            | At::BackingOff
            | At::Stopped
            | At::Failed { .. }
            | At::Deleting { .. }
            | At::Gone { .. } => self.ignored(),
        }
    }

    pub(super) fn on_timeout(self, timer: Timer) -> Answer {
        match (self.at.clone(), timer) {
            (At::Booting { .. }, Timer::Boot) => {
                self.kill(Then::Fail(WireError::new(ErrorKind::Timeout, "the guest's agent did not answer in time")))
            }
            (At::Stopping { stage: Stage::Guest, then }, Timer::Guest) => self.to(
                At::Stopping { stage: Stage::CtrlAltDel, then },
                vec![Effect::CtrlAltDel, Effect::Arm(Timer::CtrlAltDel)],
            ),
            (At::Stopping { stage: Stage::CtrlAltDel, then }, Timer::CtrlAltDel) => {
                self.to(At::Stopping { stage: Stage::Killed, then }, vec![Effect::Kill, Effect::Arm(Timer::Kill)])
            }
            // In uninterruptible sleep, most likely: it dies when its disk comes back.
            (At::Stopping { stage: Stage::Killed, then }, Timer::Kill) => {
                self.to(At::Stopping { stage: Stage::Killed, then }, vec![Effect::Kill, Effect::Arm(Timer::Kill)])
            }
            (At::BackingOff, Timer::Restart) => self.start(Purpose::Start),
            (At::Booting { .. }, Timer::Guest | Timer::CtrlAltDel | Timer::Kill | Timer::Restart)
            | (
                At::Stopping { stage: Stage::Guest, .. },
                Timer::Boot | Timer::CtrlAltDel | Timer::Kill | Timer::Restart,
            )
            | (
                At::Stopping { stage: Stage::CtrlAltDel, .. },
                Timer::Boot | Timer::Guest | Timer::Kill | Timer::Restart,
            )
            | (
                At::Stopping { stage: Stage::Killed, .. },
                Timer::Boot | Timer::Guest | Timer::CtrlAltDel | Timer::Restart,
            )
            | (At::BackingOff, Timer::Boot | Timer::Guest | Timer::CtrlAltDel | Timer::Kill)
            | (
                At::New
                | At::Attaching { .. }
                | At::Preparing { .. }
                | At::Launching { .. }
                | At::Cancelling { .. }
                | At::Running { .. }
                | At::Releasing { .. }
                | At::Stopped
                | At::Failed { .. }
                | At::Deleting { .. }
                | At::Gone { .. },
                Timer::Boot | Timer::Guest | Timer::CtrlAltDel | Timer::Kill | Timer::Restart,
            ) => self.ignored(),
        }
    }

    pub(super) fn on_released(self) -> Answer {
        match self.at {
            At::Releasing { then } => {
                let state = State { attempt: self.attempt, at: At::Stopped };
                match then {
                    Then::Rest => state.to(At::Stopped, vec![Effect::Note(Phase::Stopped)]),
                    Then::Fail(error) => state.to(At::Failed { error }, vec![Effect::Note(Phase::Failed)]),
                    Then::Start => state.start(Purpose::Start),
                    Then::StartLater => state.to(At::BackingOff, vec![Effect::Arm(Timer::Restart)]),
                    Then::Delete(error) => {
                        state.to(At::Deleting { error }, vec![Effect::Intend(Phase::Deleting), Effect::Remove])
                    }
                }
            }
            At::New
            | At::Attaching { .. }
            | At::Preparing { .. }
            | At::Launching { .. }
            | At::Cancelling { .. }
            | At::Booting { .. }
            | At::Running { .. }
            | At::Stopping { .. }
            | At::BackingOff
            | At::Stopped
            | At::Failed { .. }
            | At::Deleting { .. }
            | At::Gone { .. } => self.ignored(),
        }
    }

    pub(super) fn on_removed(self, result: Result<(), WireError>) -> Answer {
        match self.at {
            At::Deleting { error } => {
                let state = State { attempt: self.attempt, at: At::Stopped };
                match result {
                    Ok(()) => state.to(At::Gone { error }, vec![]),
                    // The row still says "deleting": the next daemon tries again, and so can the user.
                    Err(error) => state.to(At::Failed { error }, vec![]),
                }
            }
            At::New
            | At::Attaching { .. }
            | At::Preparing { .. }
            | At::Launching { .. }
            | At::Cancelling { .. }
            | At::Booting { .. }
            | At::Running { .. }
            | At::Stopping { .. }
            | At::Releasing { .. }
            | At::BackingOff
            | At::Stopped
            | At::Failed { .. }
            | At::Gone { .. } => self.ignored(),
        }
    }
}
