//! The machine that an agent lives in: a guest, or for tests a directory of a host. Does what the agent was asked to do to it.

pub mod ending;
pub mod guest;
pub mod process;

use crate::agent::Agent;
use guest::GuestMachine;
use messages::error::WireError;
use messages::guest::{BootSpec, StopKind};
use process::ProcessMachine;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Either kind of machine.
#[derive(Debug)]
pub enum Machine {
    Process(ProcessMachine),
    Guest(Box<GuestMachine>),
}

impl Machine {
    /// Whether it is a guest, with a network and a root of its own.
    #[must_use]
    pub fn is_guest(&self) -> bool {
        matches!(self, Self::Guest(_))
    }

    /// Boots as the spec says, and reports each readiness level to `agent`.
    ///
    /// # Errors
    /// What failed; the agent waits on for a stop.
    pub async fn boot(&self, agent: &Arc<Agent>, spec: BootSpec) -> Result<(), WireError> {
        match self {
            Self::Process(machine) => {
                machine.boot(agent, spec);
                Ok(())
            }
            Self::Guest(machine) => Ok(machine.boot(agent, spec).await?),
        }
    }

    /// Takes over another identity while running: after a fork or a resume.
    ///
    /// # Errors
    /// What failed.
    pub async fn identify_anew(&self, spec: BootSpec) -> Result<(), WireError> {
        match self {
            Self::Process(_) => Ok(()),
            Self::Guest(machine) => Ok(machine.identify_anew(spec).await?),
        }
    }

    /// Sets the wall clock.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_clock(&self, unix_ns: u64) -> io::Result<()> {
        match self {
            // The host's own clock is right.
            Self::Process(_) => Ok(()),
            Self::Guest(_) => crate::identity::set_clock(unix_ns),
        }
    }

    /// Ends the machine, within `deadline`.
    pub async fn stop(&self, agent: &Arc<Agent>, kind: StopKind, deadline: Duration) {
        match self {
            Self::Process(machine) => machine.stop(agent, kind).await,
            Self::Guest(machine) => machine.stop(agent, kind, deadline).await,
        }
    }
}
