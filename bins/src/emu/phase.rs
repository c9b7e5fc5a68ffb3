//! What is allowed when: a pure state machine. No clock, no I/O.
//!
//! ```text
//!   Fresh ──boot resource──▶ Configured ──InstanceStart──▶ Running ◀──▶ Paused
//!     └──snapshot load──────────────────────────────────────▲────────────▲
//!     └──InstanceStart───────────────────────────────────────┘
//! ```

use crate::emu::fault::Fault;

/// Where a VMM process is in its one life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing that a snapshot would bring itself has been configured.
    Fresh,
    /// Some boot resource has been configured: a snapshot can no longer be loaded.
    Configured,
    Running,
    Paused,
}

impl Phase {
    /// As `GET /` has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh | Self::Configured => "Not started",
            Self::Running => "Running",
            Self::Paused => "Paused",
        }
    }

    /// Whether there is a machine.
    #[must_use]
    pub const fn is_started(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// Everything that the API can be asked to do. Its name is also the step's name in a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Info,
    Version,
    GetMachineConfig,
    VmConfig,
    MachineConfig,
    BootSource,
    Drives,
    PatchDrives,
    Network,
    PatchNetwork,
    Vsock,
    Entropy,
    Serial,
    Logger,
    Metrics,
    InstanceStart,
    CtrlAltDel,
    FlushMetrics,
    Pause,
    Resume,
    SnapshotCreate,
    /// `resume_vm` is part of what happens next.
    SnapshotLoad {
        resume: bool,
    },
}

impl Operation {
    /// Every operation; `SnapshotLoad` once.
    pub const ALL: [Self; 22] = [
        Self::Info,
        Self::Version,
        Self::GetMachineConfig,
        Self::VmConfig,
        Self::MachineConfig,
        Self::BootSource,
        Self::Drives,
        Self::PatchDrives,
        Self::Network,
        Self::PatchNetwork,
        Self::Vsock,
        Self::Entropy,
        Self::Serial,
        Self::Logger,
        Self::Metrics,
        Self::InstanceStart,
        Self::CtrlAltDel,
        Self::FlushMetrics,
        Self::Pause,
        Self::Resume,
        Self::SnapshotCreate,
        Self::SnapshotLoad { resume: false },
    ];

    /// The name that scripts and logs use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Version => "version",
            Self::GetMachineConfig => "get_machine_config",
            Self::VmConfig => "vm_config",
            Self::MachineConfig => "machine_config",
            Self::BootSource => "boot_source",
            Self::Drives => "drives",
            Self::PatchDrives => "patch_drives",
            Self::Network => "network",
            Self::PatchNetwork => "patch_network",
            Self::Vsock => "vsock",
            Self::Entropy => "entropy",
            Self::Serial => "serial",
            Self::Logger => "logger",
            Self::Metrics => "metrics",
            Self::InstanceStart => "instance_start",
            Self::CtrlAltDel => "ctrl_alt_del",
            Self::FlushMetrics => "flush_metrics",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::SnapshotCreate => "snapshot_create",
            Self::SnapshotLoad { .. } => "snapshot_load",
        }
    }
}

/// Whether there is anything to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Do,
    /// It already is so: answered as done.
    AlreadySo,
}

/// An operation that is allowed: what to do, and the phase once it has been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub work: Work,
    pub next: Phase,
}

/// Why an operation is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    BeforeStart,
    AfterStart,
    /// A snapshot can only be loaded before anything else.
    LoadAfterConfiguration,
    /// A snapshot can only be taken of a paused machine.
    SnapshotOfRunning,
}

impl From<Denied> for Fault {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::BeforeStart => Self::PreBoot,
            Denied::AfterStart => Self::PostBoot,
            Denied::LoadAfterConfiguration => Self::LoadSnapshot(
                "Loading a microVM snapshot not allowed after configuring boot-specific resources.".to_owned(),
            ),
            Denied::SnapshotOfRunning => {
                Self::CreateSnapshot("the microVM must be paused before a snapshot is taken of it".to_owned())
            }
        }
    }
}

impl Phase {
    /// What `operation` means in this phase.
    ///
    /// # Errors
    /// The reason why it is not allowed.
    pub const fn decide(self, operation: Operation) -> Result<Decision, Denied> {
        let stay = Ok(Decision { work: Work::Do, next: self });
        match operation {
            Operation::Info | Operation::Version | Operation::GetMachineConfig | Operation::VmConfig => stay,
            Operation::Logger | Operation::Metrics | Operation::Serial => match self {
                Self::Fresh | Self::Configured => stay,
                Self::Running | Self::Paused => Err(Denied::AfterStart),
            },
            Operation::MachineConfig
            | Operation::BootSource
            | Operation::Drives
            | Operation::Network
            | Operation::Vsock
            | Operation::Entropy => match self {
                Self::Fresh | Self::Configured => Ok(Decision { work: Work::Do, next: Self::Configured }),
                Self::Running | Self::Paused => Err(Denied::AfterStart),
            },
            Operation::InstanceStart => match self {
                Self::Fresh | Self::Configured => Ok(Decision { work: Work::Do, next: Self::Running }),
                Self::Running | Self::Paused => Err(Denied::AfterStart),
            },
            Operation::CtrlAltDel | Operation::FlushMetrics | Operation::PatchDrives | Operation::PatchNetwork => {
                match self {
                    Self::Fresh | Self::Configured => Err(Denied::BeforeStart),
                    Self::Running | Self::Paused => stay,
                }
            }
            Operation::Pause => match self {
                Self::Fresh | Self::Configured => Err(Denied::BeforeStart),
                Self::Running => Ok(Decision { work: Work::Do, next: Self::Paused }),
                Self::Paused => Ok(Decision { work: Work::AlreadySo, next: Self::Paused }),
            },
            Operation::Resume => match self {
                Self::Fresh | Self::Configured => Err(Denied::BeforeStart),
                Self::Running => Ok(Decision { work: Work::AlreadySo, next: Self::Running }),
                Self::Paused => Ok(Decision { work: Work::Do, next: Self::Running }),
            },
            Operation::SnapshotCreate => match self {
                Self::Fresh | Self::Configured => Err(Denied::BeforeStart),
                Self::Running => Err(Denied::SnapshotOfRunning),
                Self::Paused => stay,
            },
            Operation::SnapshotLoad { resume } => match self {
                Self::Fresh => Ok(Decision { work: Work::Do, next: if resume { Self::Running } else { Self::Paused } }),
                Self::Configured => Err(Denied::LoadAfterConfiguration),
                Self::Running | Self::Paused => Err(Denied::AfterStart),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const PHASES: [Phase; 4] = [Phase::Fresh, Phase::Configured, Phase::Running, Phase::Paused];

    fn next(phase: Phase, operation: Operation) -> Phase {
        phase.decide(operation).unwrap().next
    }

    #[test]
    fn every_operation_has_a_name_of_its_own() {
        let names: HashSet<_> = Operation::ALL.iter().map(|operation| operation.as_str()).collect();
        assert_eq!(names.len(), Operation::ALL.len());
    }

    #[test]
    fn a_machine_starts_once_pauses_and_resumes() {
        let running = next(next(Phase::Fresh, Operation::BootSource), Operation::InstanceStart);
        assert_eq!(running, Phase::Running);
        assert_eq!(running.decide(Operation::InstanceStart), Err(Denied::AfterStart));
        let paused = next(running, Operation::Pause);
        assert_eq!(paused.decide(Operation::Pause).unwrap().work, Work::AlreadySo);
        assert_eq!(next(paused, Operation::Resume), Phase::Running);
    }

    #[test]
    fn what_configures_is_refused_once_started_and_what_drives_before() {
        let configuring = [
            Operation::MachineConfig,
            Operation::BootSource,
            Operation::Drives,
            Operation::Network,
            Operation::Vsock,
            Operation::Entropy,
            Operation::Serial,
            Operation::Logger,
            Operation::Metrics,
            Operation::SnapshotLoad { resume: true },
        ];
        let driving = [
            Operation::CtrlAltDel,
            Operation::FlushMetrics,
            Operation::Pause,
            Operation::Resume,
            Operation::SnapshotCreate,
            Operation::PatchDrives,
            Operation::PatchNetwork,
        ];
        for phase in PHASES {
            for operation in configuring {
                assert_eq!(phase.decide(operation) == Err(Denied::AfterStart), phase.is_started(), "{operation:?}");
            }
            for operation in driving {
                assert_eq!(phase.decide(operation) == Err(Denied::BeforeStart), !phase.is_started(), "{operation:?}");
            }
        }
    }

    #[test]
    fn a_snapshot_is_loaded_into_a_fresh_process_and_taken_of_a_paused_machine() {
        let load = Operation::SnapshotLoad { resume: false };
        assert_eq!(next(next(Phase::Fresh, Operation::Logger), load), Phase::Paused);
        assert_eq!(next(Phase::Fresh, Operation::SnapshotLoad { resume: true }), Phase::Running);
        assert_eq!(Phase::Configured.decide(load), Err(Denied::LoadAfterConfiguration));
        assert_eq!(Phase::Running.decide(Operation::SnapshotCreate), Err(Denied::SnapshotOfRunning));
        assert_eq!(next(Phase::Paused, Operation::SnapshotCreate), Phase::Paused);
    }

    #[test]
    fn reading_changes_nothing() {
        for phase in PHASES {
            for operation in [Operation::Info, Operation::Version, Operation::GetMachineConfig, Operation::VmConfig] {
                assert_eq!(next(phase, operation), phase);
            }
        }
    }
}
