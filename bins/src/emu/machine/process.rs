//! The machine for tests: the agent as a host process, on the same link, in a scratch directory.

use super::{End, Machine, MachineError, Started};
use crate::emu::sys;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};

/// How long the agent may take to connect.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// A running agent.
#[derive(Debug)]
pub struct Process {
    child: Child,
    ended: Option<End>,
}

/// The path of the API's socket with something appended: short, and in a directory that somebody else cleans up.
fn beside(socket: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(suffix);
    path.into()
}

/// Starts the agent and, where there is a vsock device, waits until it has connected to the link.
///
/// Its scratch directory, `<api socket>.root`, plays the part of the disk and so outlives the process.
///
/// # Errors
/// [`MachineError`]; no process and no socket are left then.
pub async fn start(agent: &Path, socket: &Path, with_link: bool) -> Result<Started, MachineError> {
    let root = beside(socket, ".root");
    std::fs::create_dir_all(&root).map_err(MachineError::Setup)?;
    let path = beside(socket, ".l");
    let listener = crate::emu::vsock::SocketFile::bind(&path).map_err(MachineError::Setup)?;
    let mut command = Command::new(agent);
    command.arg("--process").arg("--link").arg(&path).arg("--root").arg(&root);
    command.stdin(Stdio::null()).kill_on_drop(true);
    sys::bind_to_parent(&mut command, &[]);
    let spawned = command.spawn().map_err(|source| MachineError::Spawn {
        program: agent.display().to_string(),
        source,
        hint: "",
    });
    let mut child = spawned?;
    let link = if with_link { Some(connected(listener.listener(), &mut child).await?) } else { None };
    Ok(Started { machine: Machine::Process(Process { child, ended: None }), link, console: None })
}

async fn connected(listener: &UnixListener, child: &mut Child) -> Result<UnixStream, MachineError> {
    tokio::select! {
        accepted = listener.accept() => Ok(accepted.map_err(MachineError::Setup)?.0),
        status = child.wait() => {
            Err(MachineError::AgentEnded(status.map_or_else(|error| error.to_string(), |status| status.to_string())))
        }
        () = tokio::time::sleep(START_DEADLINE) => Err(MachineError::AgentEnded("it never connected".to_owned())),
    }
}

impl Process {
    /// Waits for its exit.
    pub async fn ended(&mut self) -> End {
        if let Some(end) = &self.ended {
            return end.clone();
        }
        let end = match self.child.wait().await {
            Ok(status) if status.success() => End::Guest,
            Ok(status) => End::Failed(format!("the agent ended ({status})")),
            Err(error) => End::Failed(format!("the agent's end cannot be waited for: {error}")),
        };
        self.ended = Some(end.clone());
        end
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), MachineError> {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or(MachineError::Gone)?;
        kill(Pid::from_raw(pid), signal).map_err(|error| MachineError::Setup(error.into()))
    }

    pub(super) async fn kill(&mut self) {
        if self.ended.is_none() && self.child.kill().await.is_err() {
            tracing::warn!("the agent ended while it was being killed");
        }
    }
}
