//! What runs behind the API: QEMU, the agent as a host process, or nothing at all.

pub mod accelerator;
pub mod command_line;
pub mod kernel_args;
pub mod process;
pub mod qemu;
pub mod qmp;

use crate::emu::resources::Resources;
use std::fs::File;
use std::path::PathBuf;
use tokio::net::UnixStream;

/// Says why a machine did not start or did not obey. The text reaches the API's caller.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("Cannot start microvm without kernel configuration.")]
    NoKernel,
    #[error("cannot run `{program}`: {source}{hint}")]
    Spawn { program: String, source: std::io::Error, hint: &'static str },
    #[error("cannot set up the machine: {0}")]
    Setup(#[source] std::io::Error),
    #[error("QEMU: {0}")]
    Qemu(String),
    #[error("QEMU did not come up within {0} s")]
    Slow(u64),
    #[error("the agent ended at once ({0})")]
    AgentEnded(String),
    #[error("the machine has ended")]
    Gone,
    #[error(transparent)]
    Qmp(#[from] qmp::QmpError),
    #[error("{0} is not supported by this kind of machine")]
    Unsupported(&'static str),
}

/// Which machine `--machine` chose, and what it needs to know.
#[derive(Clone, Debug)]
pub enum Kind {
    Microvm {
        /// Of `--no-seccomp`.
        sandbox: bool,
        accelerator: accelerator::Choice,
    },
    Process {
        agent: PathBuf,
        /// The scratch directory, and the place of the link's socket, are named after the API's socket.
        beside: PathBuf,
    },
    Scripted,
}

/// A machine that runs or is paused.
#[derive(Debug)]
pub enum Machine {
    Qemu(Box<qemu::Qemu>),
    Process(process::Process),
    Scripted,
}

/// A machine that was just started.
#[derive(Debug)]
pub struct Started {
    pub machine: Machine,
    /// The host's end of the guest's port, where a vsock device was configured.
    pub link: Option<UnixStream>,
    /// The host's end of the console, where its output passes through this process.
    pub console: Option<UnixStream>,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest reset or switched itself off.
    Guest,
    /// Anything else, in words.
    Failed(String),
}

impl Kind {
    /// Starts a machine; `incoming` is the memory of a snapshot.
    ///
    /// # Errors
    /// [`MachineError`]; nothing is left behind then.
    pub async fn start(
        &self,
        resources: &Resources,
        tsc: crate::emu::tsc::Reading,
        incoming: Option<File>,
    ) -> Result<Started, MachineError> {
        match self {
            Self::Microvm { sandbox, accelerator } => {
                qemu::start(
                    resources,
                    tsc,
                    incoming,
                    qemu::Manner { sandbox: *sandbox, accelerator: accelerator.decide().await },
                )
                .await
            }
            Self::Process { .. } | Self::Scripted if incoming.is_some() => Err(MachineError::Unsupported("a snapshot")),
            Self::Process { agent, beside } => process::start(agent, beside, resources.vsock.is_some()).await,
            Self::Scripted if resources.boot_source.is_none() => Err(MachineError::NoKernel),
            Self::Scripted => Ok(Started { machine: Machine::Scripted, link: None, console: None }),
        }
    }
}

impl Machine {
    /// Waits for the end. Safe to drop and to call again.
    pub async fn ended(&mut self) -> End {
        match self {
            Self::Qemu(qemu) => qemu.ended().await,
            Self::Process(process) => process.ended().await,
            Self::Scripted => std::future::pending().await,
        }
    }

    /// Stops the vCPUs.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn pause(&mut self) -> Result<(), MachineError> {
        match self {
            Self::Qemu(qemu) => qemu.pause().await,
            Self::Process(process) => process.signal(nix::sys::signal::Signal::SIGSTOP),
            Self::Scripted => Ok(()),
        }
    }

    /// Lets the vCPUs go on.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn resume(&mut self) -> Result<(), MachineError> {
        match self {
            Self::Qemu(qemu) => qemu.resume().await,
            Self::Process(process) => process.signal(nix::sys::signal::Signal::SIGCONT),
            Self::Scripted => Ok(()),
        }
    }

    /// Asks the guest to go down.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn ctrl_alt_del(&mut self) -> Result<(), MachineError> {
        match self {
            Self::Qemu(qemu) => qemu.power_down().await,
            Self::Process(process) => process.signal(nix::sys::signal::Signal::SIGTERM),
            Self::Scripted => Ok(()),
        }
    }

    /// Writes the machine's memory and devices to `file`. It must be paused, and stays so.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn save(&mut self, file: File) -> Result<(), MachineError> {
        match self {
            Self::Qemu(qemu) => qemu.save(file).await,
            Self::Process(_) | Self::Scripted => Err(MachineError::Unsupported("a snapshot")),
        }
    }

    /// Ends it for good and waits for that.
    pub async fn kill(&mut self) {
        match self {
            Self::Qemu(qemu) => qemu.kill().await,
            Self::Process(process) => process.kill().await,
            Self::Scripted => {}
        }
    }
}
