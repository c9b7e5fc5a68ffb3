//! What users and the registry ask of a VM, in every state.

use super::{Answer, Asked, At, Effect, Phase, Purpose, Stage, State, Then, Timer};
use messages::guest::StopKind;

impl State {
    pub(super) fn on_create(self, start: bool) -> Answer {
        match self.at {
            At::New => self.start(if start { Purpose::Create } else { Purpose::CreateOnly }),
            At::Attaching { .. }
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
            | At::Gone { .. } => self.denied("create"),
        }
    }

    pub(super) fn on_attach(self, phase: Phase) -> Answer {
        match self.at {
            At::New => match phase {
                Phase::Creating | Phase::Running | Phase::Stopping | Phase::Deleting => {
                    self.to(At::Attaching { phase, asked: Asked::Nothing }, vec![Effect::Attach])
                }
                // At rest, the registry has checked that nothing lives.
                Phase::Stopped | Phase::Failed => self.denied("attach to"),
            },
            At::Attaching { .. }
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
            | At::Gone { .. } => self.denied("attach to"),
        }
    }

    pub(super) fn on_start(self) -> Answer {
        match self.at {
            At::Stopped | At::Failed { .. } => self.start(Purpose::Start),
            // Somebody wants it now: the back-off is for a VM that nobody looks at.
            At::BackingOff => self.start(Purpose::Start),
            At::Preparing { purpose: Purpose::Create | Purpose::CreateThenStart | Purpose::Start }
            | At::Launching { .. }
            | At::Booting { .. }
            | At::Running { .. } => self.ignored(),
            At::Preparing { purpose: Purpose::CreateOnly } => {
                self.to(At::Preparing { purpose: Purpose::CreateThenStart }, vec![])
            }
            At::Attaching { phase: Phase::Creating | Phase::Running, .. } => self.ignored(),
            At::Cancelling { then: Then::Start | Then::StartLater, .. }
            | At::Stopping { then: Then::Start | Then::StartLater, .. }
            | At::Releasing { then: Then::Start | Then::StartLater } => self.ignored(),
            At::New
            | At::Attaching { phase: Phase::Stopping | Phase::Stopped | Phase::Failed | Phase::Deleting, .. }
            | At::Cancelling { then: Then::Rest | Then::Fail(_) | Then::Delete(_), .. }
            | At::Stopping { then: Then::Rest | Then::Fail(_) | Then::Delete(_), .. }
            | At::Releasing { then: Then::Rest | Then::Fail(_) | Then::Delete(_) }
            | At::Deleting { .. }
            | At::Gone { .. } => self.denied("start"),
        }
    }

    /// Never denied. A second one does not restart the grace timer.
    pub(super) fn on_stop(self) -> Answer {
        match self.at {
            At::Running { .. } | At::Booting { again: true } => self.to(
                At::Stopping { stage: Stage::Guest, then: Then::Rest },
                vec![Effect::Intend(Phase::Stopping), Effect::AskGuest(StopKind::Halt), Effect::Arm(Timer::Guest)],
            ),
            // Nothing is mounted that could be lost, and nobody is there to be asked.
            At::Booting { again: false } => self.kill(Then::Rest),
            At::Attaching { phase: Phase::Running | Phase::Creating, .. } => self.to(
                At::Attaching { phase: Phase::Stopping, asked: Asked::Nothing },
                vec![Effect::Intend(Phase::Stopping)],
            ),
            At::Preparing { purpose: Purpose::CreateThenStart } => {
                self.to(At::Preparing { purpose: Purpose::CreateOnly }, vec![])
            }
            At::Preparing { purpose: Purpose::Create } => {
                self.to(At::Cancelling { creating: true, then: Then::Rest }, vec![])
            }
            At::Preparing { purpose: Purpose::Start } | At::Launching { .. } => {
                self.to(At::Cancelling { creating: false, then: Then::Rest }, vec![])
            }
            At::Cancelling { creating, then } => {
                // There is no row to write to while it is being made.
                let effects = if creating { vec![] } else { then.stop_instead() };
                (
                    State { attempt: self.attempt, at: At::Cancelling { creating, then: then.without_start() } },
                    Ok(effects),
                )
            }
            At::Stopping { stage, then } => {
                let effects = then.stop_instead();
                (State { attempt: self.attempt, at: At::Stopping { stage, then: then.without_start() } }, Ok(effects))
            }
            At::Releasing { then } => {
                let effects = then.stop_instead();
                (State { attempt: self.attempt, at: At::Releasing { then: then.without_start() } }, Ok(effects))
            }
            At::BackingOff => self.to(At::Stopped, vec![Effect::Intend(Phase::Stopped)]),
            At::New
            | At::Attaching { phase: Phase::Stopping | Phase::Stopped | Phase::Failed | Phase::Deleting, .. }
            | At::Preparing { purpose: Purpose::CreateOnly }
            | At::Stopped
            | At::Failed { .. }
            | At::Deleting { .. }
            | At::Gone { .. } => self.ignored(),
        }
    }

    pub(super) fn on_kill(self) -> Answer {
        match self.at {
            At::Booting { .. } | At::Running { .. } => self.kill(Then::Rest),
            At::Stopping { stage: Stage::Guest | Stage::CtrlAltDel, then } => {
                State { attempt: self.attempt, at: At::Booting { again: false } }.kill(then.without_start())
            }
            At::Attaching { phase: Phase::Creating | Phase::Running | Phase::Stopping, .. } => self.to(
                At::Attaching { phase: Phase::Stopping, asked: Asked::Kill },
                vec![Effect::Intend(Phase::Stopping)],
            ),
            At::Attaching { phase: Phase::Stopped | Phase::Failed | Phase::Deleting, .. }
            | At::New
            | At::Preparing { .. }
            | At::Launching { .. }
            | At::Cancelling { .. }
            | At::Stopping { stage: Stage::Killed, .. }
            | At::Releasing { .. }
            | At::BackingOff
            | At::Stopped
            | At::Failed { .. }
            | At::Deleting { .. }
            | At::Gone { .. } => self.on_stop(),
        }
    }

    pub(super) fn on_restart(self) -> Answer {
        match self.at {
            At::Running { .. } | At::Booting { again: true } => self.to(
                At::Stopping { stage: Stage::Guest, then: Then::Start },
                // The intent stays "running": a daemon that dies now finds a VM that should be up.
                vec![Effect::AskGuest(StopKind::Reboot), Effect::Arm(Timer::Guest)],
            ),
            At::Booting { again: false } => self.to(
                At::Stopping { stage: Stage::Killed, then: Then::Start },
                vec![Effect::Kill, Effect::Arm(Timer::Kill)],
            ),
            At::Stopping { stage, then: Then::Rest | Then::Fail(_) } => {
                self.to(At::Stopping { stage, then: Then::Start }, vec![Effect::Intend(Phase::Running)])
            }
            At::Releasing { then: Then::Rest | Then::Fail(_) } => self.to(At::Releasing { then: Then::Start }, vec![]),
            At::Cancelling { creating, then: Then::Rest | Then::Fail(_) } => {
                self.to(At::Cancelling { creating, then: Then::Start }, vec![])
            }
            At::Attaching { phase: phase @ (Phase::Creating | Phase::Running), asked: Asked::Nothing } => {
                self.to(At::Attaching { phase, asked: Asked::Restart }, vec![])
            }
            At::New
            | At::Attaching { .. }
            | At::Preparing { .. }
            | At::Launching { .. }
            | At::Cancelling { then: Then::Start | Then::StartLater | Then::Delete(_), .. }
            | At::Stopping { then: Then::Start | Then::StartLater | Then::Delete(_), .. }
            | At::Releasing { then: Then::Start | Then::StartLater | Then::Delete(_) }
            | At::BackingOff
            | At::Stopped
            | At::Failed { .. }
            | At::Deleting { .. }
            | At::Gone { .. } => match self.on_start() {
                (state, Err(denied)) => (state, Err(super::Denied { action: "restart", ..denied })),
                (state, Ok(effects)) => (state, Ok(effects)),
            },
        }
    }

    /// Without force only a VM at rest; with force from anywhere.
    pub(super) fn on_delete(self, force: bool) -> Answer {
        match self.at {
            At::Stopped | At::Failed { .. } => {
                self.to(At::Deleting { error: None }, vec![Effect::Intend(Phase::Deleting), Effect::Remove])
            }
            At::Deleting { .. } | At::Gone { .. } => self.ignored(),
            At::Cancelling { then: Then::Delete(_), .. }
            | At::Stopping { stage: Stage::Killed, then: Then::Delete(_) }
            | At::Releasing { then: Then::Delete(_) }
            | At::Attaching { phase: Phase::Deleting, .. } => self.ignored(),
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
                if !force =>
            {
                self.denied("delete")
            }
            At::New => self.to(At::Gone { error: None }, vec![]),
            At::Attaching { .. } => {
                let at = At::Attaching { phase: Phase::Deleting, asked: Asked::Nothing };
                self.to(at, vec![Effect::Intend(Phase::Deleting)])
            }
            At::Preparing { .. } | At::Launching { .. } => {
                self.to(At::Cancelling { creating: false, then: Then::Delete(None) }, vec![])
            }
            At::Cancelling { then: Then::Rest | Then::Fail(_) | Then::Start | Then::StartLater, .. } => {
                self.to(At::Cancelling { creating: false, then: Then::Delete(None) }, vec![])
            }
            At::Booting { .. } | At::Running { .. } => self.kill(Then::Delete(None)),
            At::Stopping { stage: Stage::Guest | Stage::CtrlAltDel, .. } => self.kill(Then::Delete(None)),
            At::Stopping {
                stage: Stage::Killed,
                then: Then::Rest | Then::Fail(_) | Then::Start | Then::StartLater,
            } => self.to(
                At::Stopping { stage: Stage::Killed, then: Then::Delete(None) },
                vec![Effect::Intend(Phase::Deleting)],
            ),
            At::Releasing { then: Then::Rest | Then::Fail(_) | Then::Start | Then::StartLater } => {
                self.to(At::Releasing { then: Then::Delete(None) }, vec![Effect::Intend(Phase::Deleting)])
            }
            At::BackingOff => {
                self.to(At::Deleting { error: None }, vec![Effect::Intend(Phase::Deleting), Effect::Remove])
            }
        }
    }
}

impl Then {
    /// What a stop has to write where it takes back a start: the row may still say that the VM is to run.
    fn stop_instead(&self) -> Vec<Effect> {
        match self {
            Self::Start | Self::StartLater => vec![Effect::Intend(Phase::Stopping)],
            Self::Rest | Self::Fail(_) | Self::Delete(_) => vec![],
        }
    }

    /// A stop takes back a restart; nothing takes back a delete.
    fn without_start(self) -> Self {
        match self {
            Self::Start | Self::StartLater => Self::Rest,
            Self::Rest | Self::Fail(_) | Self::Delete(_) => self,
        }
    }
}
