//! Progress lines of a VM on its way up, drawn from its watch. Best effort: a client that does not read misses some.

use crate::vm::Watch;
use messages::reply::{Progress, Stage};
use messages::vm::{Readiness, VmState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Sends one line.
pub(super) fn say(
    sender: &mpsc::Sender<Progress>,
    stage: Stage,
    detail: impl Into<String>,
    since: Instant,
    finished: bool,
) {
    let elapsed_us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
    let line = Progress { stage, detail: detail.into(), done: None, total: None, elapsed_us, finished };
    // Full: the client is behind, and later lines tell more.
    if let Err(mpsc::error::TrySendError::Full(line)) = sender.try_send(line) {
        tracing::trace!(stage = line.stage.as_str(), "a progress line was dropped");
    }
}

/// Follows a VM until dropped, and says then what was not said yet: the reply may be on its way before the follower has its turn.
#[derive(Debug)]
pub(super) struct Follow {
    task: AbortHandle,
    report: Arc<Mutex<Report>>,
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.task.abort();
        look(&self.report);
    }
}

/// What has been said of a VM. Its lock is held for as long as a look takes, by the follower or by whoever drops it.
#[derive(Debug)]
struct Report {
    watch: Watch,
    sender: mpsc::Sender<Progress>,
    since: Instant,
    reached: u8,
}

/// The last step that is reported.
const LAST: u8 = 3;

impl Report {
    /// Says what is new. Whether there may be more.
    fn look(&mut self) -> bool {
        let (level, pid) = {
            let published = self.watch.borrow();
            let level = match published.view.state {
                VmState::Starting if published.view.vmm_pid.is_some() => 1,
                VmState::Running => match published.view.readiness {
                    Some(Readiness::Agent) | None => 2,
                    Some(Readiness::System | Readiness::Ssh) => LAST,
                },
                VmState::Starting | VmState::Stopped | VmState::Stopping | VmState::Failed | VmState::Deleting => 0,
            };
            (level, published.view.vmm_pid)
        };
        for step in self.reached + 1..=level {
            let (stage, detail) = match step {
                1 => (Stage::Vmm, pid.map_or_else(String::new, |pid| format!("pid {pid}"))),
                2 => (Stage::Agent, "exec works".to_owned()),
                _ => (Stage::System, "the image's init has settled".to_owned()),
            };
            say(&self.sender, stage, detail, self.since, true);
            self.since = Instant::now();
        }
        self.reached = self.reached.max(level);
        self.reached < LAST
    }
}

fn look(report: &Mutex<Report>) -> bool {
    report.lock().unwrap_or_else(PoisonError::into_inner).look()
}

/// Reports the steps of a start as they are seen.
pub(super) fn follow(mut watch: Watch, sender: mpsc::Sender<Progress>) -> Follow {
    let report = Report { watch: watch.clone(), sender, since: Instant::now(), reached: 0 };
    let report = Arc::new(Mutex::new(report));
    let followed = Arc::clone(&report);
    let task = tokio::spawn(async move {
        watch.mark_unchanged();
        while look(&followed) && watch.changed().await.is_ok() {}
    });
    Follow { task: task.abort_handle(), report }
}
