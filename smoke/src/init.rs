//! The first process of a run's namespaces: reaps orphans, and ends when the real work does. Then everything else in its
//! process namespace dies with it.

use crate::world::World;
use crate::{bench, run, sandbox};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

/// What to do inside, handed over as one argument.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Inside {
    pub(crate) slot: u8,
    pub(crate) base: PathBuf,
    /// Holds the programs to try.
    pub(crate) programs: PathBuf,
    pub(crate) task: Task,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    Run(run::Options),
    Bench(bench::Options),
    Sandbox(sandbox::Options),
}

/// Does it, and gives the exit code.
pub(crate) fn inside(argument: &str) -> Result<u8, Box<dyn Error>> {
    if std::process::id() == 1 {
        return first_process(argument);
    }
    let inside: Inside = serde_json::from_str(argument)?;
    match inside.task {
        Task::Run(options) => Ok(run::run(World::open(inside.slot, &inside.base, &inside.programs)?, &options)?),
        Task::Bench(options) => Ok(bench::run(World::open(inside.slot, &inside.base, &inside.programs)?, &options)?),
        Task::Sandbox(options) => Ok(sandbox::run(&options, inside.slot, &inside.base, &inside.programs)?),
    }
}

fn first_process(argument: &str) -> Result<u8, Box<dyn Error>> {
    let worker = Command::new(std::env::current_exe()?).args(["inside", argument]).spawn()?;
    let worker = Pid::from_raw(i32::try_from(worker.id())?);
    loop {
        match waitpid(None, Some(WaitPidFlag::empty())) {
            Ok(WaitStatus::Exited(pid, code)) if pid == worker => return Ok(u8::try_from(code).unwrap_or(1)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == worker => {
                return Ok(u8::try_from(128 + signal as i32).unwrap_or(1));
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
