//! Which operations run, and which have ended without the daemon having acknowledged it. Kept in a directory too, so that an
//! agent that was killed can tell after its restart what was lost with it.

use crate::outbox::Outbox;
use messages::frame;
use messages::guest::{AgentFrame, ExitStatus, OnDisconnect, TerminalSize};
use messages::ids::OperationId;
use messages::limits::LIST_MAX;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Ends that nobody acknowledged are kept up to this many; the daemon that opened so many and never came back has lost them.
pub const ENDED_MAX: usize = 16_384;
/// Between SIGHUP and SIGKILL for a command whose client vanished.
pub const HANGUP_GRACE: Duration = Duration::from_secs(2);
/// No record is longer.
const RECORD_MAX: usize = 256;

/// A running command, as far as others may touch it.
#[derive(Clone, Debug)]
pub struct Target {
    shared: Arc<TargetState>,
}

#[derive(Debug)]
struct TargetState {
    /// Its process id, which is also its group's and session's.
    leader: Pid,
    /// Set with the leader's exit: from then on its id may be somebody else's.
    gone: Mutex<bool>,
    terminal: Option<OwnedFd>,
}

impl Target {
    /// The command that leads session `pid`.
    #[must_use]
    pub fn new(pid: u32, terminal: Option<OwnedFd>) -> Self {
        let leader = Pid::from_raw(i32::try_from(pid).expect("process ids are positive ints"));
        Self { shared: Arc::new(TargetState { leader, gone: Mutex::new(false), terminal }) }
    }

    /// Signals the terminal's foreground group, or else the command's group. What is no signal is ignored.
    pub fn signal(&self, number: i32) {
        let state = &self.shared;
        let gone = state.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if *gone || !(1..=64).contains(&number) {
            return;
        }
        let foreground = state.terminal.as_ref().and_then(|terminal| nix::unistd::tcgetpgrp(terminal.as_fd()).ok());
        let group = foreground.filter(|group| group.as_raw() > 1).unwrap_or(state.leader);
        // nix's Signal has no real-time signals, which are as good as others.
        if let Err(error) = crate::sys::signal_group(group, number) {
            tracing::debug!(%error, number, "no process took the signal");
        }
    }

    /// Sets the terminal's size, if there is one.
    pub fn resize(&self, size: TerminalSize) {
        if let Some(terminal) = &self.shared.terminal
            && let Err(error) = crate::sys::set_window_size(terminal.as_fd(), size.rows, size.columns)
        {
            tracing::debug!(%error, "the terminal kept its size");
        }
    }

    /// The leader has been reaped.
    pub fn mark_gone(&self) {
        *self.shared.gone.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// SIGHUP now and SIGKILL after [`HANGUP_GRACE`], to the whole group.
    pub async fn hang_up(self) {
        // What was reaped long ago may have given its number to somebody else.
        if !*self.shared.gone.lock().unwrap_or_else(PoisonError::into_inner) {
            hang_up_group(self.shared.leader).await;
        }
    }
}

/// A group's number stays taken while it has members, and is not given out anew within two seconds of a leader's end.
async fn hang_up_group(leader: Pid) {
    for (signal, grace) in [(Signal::SIGHUP, HANGUP_GRACE), (Signal::SIGKILL, Duration::ZERO)] {
        if killpg(leader, signal).is_err() {
            return;
        }
        // What is stopped would not see the SIGHUP.
        if killpg(leader, Signal::SIGCONT).is_err() {
            return;
        }
        tokio::time::sleep(grace).await;
    }
}

#[derive(Debug, Serialize, Deserialize)]
enum Record {
    Running { pid: u32, started: u64, on_disconnect: Disconnect },
    Ended(ExitStatus),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Disconnect {
    Kill,
    KeepRunning,
}

/// The operations of this guest.
#[derive(Debug)]
pub struct Registry {
    state: Mutex<State>,
    outbox: Outbox,
}

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<OperationId, Option<Target>>,
    ended: BTreeMap<OperationId, ExitStatus>,
    /// Where records are kept; `None` until there is a place.
    records: Option<PathBuf>,
}

/// Says why an operation is not begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    #[error("operation {0} has been opened before")]
    OpenedBefore(OperationId),
    /// All that run are told to a daemon that comes anew, which takes no longer list.
    #[error("{LIST_MAX} commands run in the guest already")]
    TooMany,
}

impl Registry {
    /// A registry that tells `outbox` what happens.
    #[must_use]
    pub fn new(outbox: Outbox) -> Self {
        Self { state: Mutex::default(), outbox }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps records in `directory` from now on, and takes in those of an agent that ran before this one: what ran under it
    /// has ended in a way that nobody saw. Its processes are left or hung up as their clients wanted.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn adopt(&self, directory: &Path) -> io::Result<Vec<OperationId>> {
        fs::create_dir_all(directory)?;
        let mut lost = Vec::new();
        for entry in fs::read_dir(directory)?.flatten() {
            let Ok(operation) = entry.file_name().to_string_lossy().parse::<OperationId>() else { continue };
            let record = fs::read(entry.path()).ok().filter(|bytes| bytes.len() <= RECORD_MAX);
            let status = match record.and_then(|bytes| frame::decode::<Record>(&bytes).ok()) {
                Some(Record::Ended(status)) => status,
                Some(Record::Running { pid, started, on_disconnect }) => {
                    lost.push(operation);
                    if matches!(on_disconnect, Disconnect::Kill) && start_time(pid) == Some(started) {
                        tokio::spawn(Target::new(pid, None).hang_up());
                    }
                    ExitStatus::Unknown
                }
                // It was killed while it wrote this.
                None => ExitStatus::Unknown,
            };
            self.state().ended.insert(operation, status);
        }
        self.state().records = Some(directory.to_owned());
        for operation in &lost {
            self.ended(*operation, ExitStatus::Unknown);
        }
        Ok(lost)
    }

    /// Takes the id of an operation that is about to start.
    ///
    /// # Errors
    /// [`BeginError`]: an id is used once, and there may be only so many.
    pub fn begin(&self, operation: OperationId) -> Result<(), BeginError> {
        let mut state = self.state();
        if state.running.contains_key(&operation) || state.ended.contains_key(&operation) {
            return Err(BeginError::OpenedBefore(operation));
        }
        if state.running.len() >= LIST_MAX {
            return Err(BeginError::TooMany);
        }
        state.running.insert(operation, None);
        Ok(())
    }

    /// The operation runs.
    pub fn started(&self, operation: OperationId, pid: u32, target: Target, on_disconnect: OnDisconnect) {
        let mut state = self.state();
        state.running.insert(operation, Some(target));
        let on_disconnect = match on_disconnect {
            OnDisconnect::Kill => Disconnect::Kill,
            OnDisconnect::KeepRunning => Disconnect::KeepRunning,
        };
        state.record(operation, &Record::Running { pid, started: start_time(pid).unwrap_or(0), on_disconnect });
        drop(state);
        self.outbox.push(AgentFrame::OperationStarted { operation, pid });
    }

    /// The operation is over, or never started.
    pub fn ended(&self, operation: OperationId, status: ExitStatus) {
        let mut state = self.state();
        state.running.remove(&operation);
        state.ended.insert(operation, status);
        state.record(operation, &Record::Ended(status));
        if state.ended.len() > ENDED_MAX
            && let Some((oldest, _)) = state.ended.pop_first()
        {
            state.forget(oldest);
        }
        drop(state);
        self.outbox.push(AgentFrame::OperationEnded { operation, status });
    }

    /// The daemon has it on record.
    pub fn acknowledged(&self, operation: OperationId) {
        let mut state = self.state();
        if state.ended.remove(&operation).is_some() {
            state.forget(operation);
        }
    }

    /// Signals an operation. False where none of that id runs.
    #[must_use]
    pub fn signal(&self, operation: OperationId, signal: i32) -> bool {
        let target = self.state().running.get(&operation).cloned().flatten();
        target.as_ref().inspect(|target| target.signal(signal)).is_some()
    }

    /// Those that run.
    #[must_use]
    pub fn running(&self) -> Vec<OperationId> {
        self.state().running.keys().copied().collect()
    }

    /// Those that ended and were not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> Vec<(OperationId, ExitStatus)> {
        self.state().ended.iter().map(|(operation, status)| (*operation, *status)).collect()
    }

    /// What runs, to signal or hang up.
    pub fn targets(&self) -> Vec<Target> {
        self.state().running.values().flatten().cloned().collect()
    }
}

impl State {
    fn record(&self, operation: OperationId, record: &Record) {
        let Some(directory) = &self.records else { return };
        let bytes = frame::encode(record, RECORD_MAX).expect("records are a few bytes");
        if let Err(error) = fs::write(directory.join(operation.to_string()), &bytes[frame::HEADER_LEN..]) {
            tracing::warn!(%error, %operation, "an operation is not on record: a restart of the agent will forget it");
        }
    }

    fn forget(&self, operation: OperationId) {
        if let Some(directory) = &self.records
            && let Err(error) = fs::remove_file(directory.join(operation.to_string()))
        {
            tracing::debug!(%error, %operation, "a record was gone already");
        }
    }
}

/// When a process began, in clock ticks since boot (field 22 of /proc/PID/stat): tells it from a later one of the same id.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name (field 2) may hold anything, so fields are counted from its closing parenthesis.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> OperationId {
        OperationId([byte; 8])
    }

    #[tokio::test]
    async fn ends_are_kept_until_acknowledged_and_ids_are_used_once() {
        let registry = Registry::new(Outbox::default());
        registry.begin(id(1)).unwrap();
        assert!(registry.begin(id(1)).is_err());
        registry.ended(id(1), ExitStatus::Code(3));
        assert!(registry.begin(id(1)).is_err());
        assert_eq!(registry.unacknowledged(), [(id(1), ExitStatus::Code(3))]);
        registry.acknowledged(id(1));
        assert!(registry.unacknowledged().is_empty() && registry.running().is_empty());
    }

    #[tokio::test]
    async fn a_later_agent_reports_what_was_lost_as_unknown() {
        let directory = tempfile::tempdir().unwrap();
        let first = Registry::new(Outbox::default());
        first.adopt(directory.path()).unwrap();
        first.begin(id(1)).unwrap();
        first.started(id(1), u32::MAX >> 1, Target::new(u32::MAX >> 1, None), OnDisconnect::Kill);
        first.begin(id(2)).unwrap();
        first.ended(id(2), ExitStatus::Signal(9));
        fs::write(directory.path().join(id(3).to_string()), [0xff, 0xff]).unwrap();
        drop(first);

        let second = Registry::new(Outbox::default());
        assert_eq!(second.adopt(directory.path()).unwrap(), [id(1)]);
        let expected = [(id(1), ExitStatus::Unknown), (id(2), ExitStatus::Signal(9)), (id(3), ExitStatus::Unknown)];
        assert_eq!(second.unacknowledged(), expected);
        second.acknowledged(id(1));
        assert!(!directory.path().join(id(1).to_string()).exists());
    }

    #[test]
    fn start_times_are_read_and_missing_processes_have_none() {
        assert!(start_time(std::process::id()).unwrap() > 0);
        assert_eq!(start_time(u32::MAX >> 1), None);
    }
}
