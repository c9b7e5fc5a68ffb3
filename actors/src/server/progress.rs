//! Progress lines of a VM on its way up, drawn from its watch. Best effort: a client that does not read misses some.

use crate::vm::Watch;
use messages::reply::{Progress, Stage};
use messages::vm::{Readiness, VmState};
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

/// Follows a VM until dropped.
#[derive(Debug)]
pub(super) struct Follow(AbortHandle);

impl Drop for Follow {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Reports the steps of a start as they are seen.
pub(super) fn follow(mut watch: Watch, sender: mpsc::Sender<Progress>) -> Follow {
    let task = tokio::spawn(async move {
        let mut since = Instant::now();
        let mut reached = 0_u8;
        loop {
            let (level, pid) = {
                let published = watch.borrow_and_update();
                let level = match published.view.state {
                    VmState::Starting if published.view.vmm_pid.is_some() => 1,
                    VmState::Running => match published.view.readiness {
                        Some(Readiness::Agent) | None => 2,
                        Some(Readiness::System | Readiness::Ssh) => 3,
                    },
                    VmState::Starting | VmState::Stopped | VmState::Stopping | VmState::Failed | VmState::Deleting => 0,
                };
                (level, published.view.vmm_pid)
            };
            for step in reached + 1..=level {
                let (stage, detail) = match step {
                    1 => (Stage::Vmm, pid.map_or_else(String::new, |pid| format!("pid {pid}"))),
                    2 => (Stage::Agent, "exec works".to_owned()),
                    _ => (Stage::System, "the image's init has settled".to_owned()),
                };
                say(&sender, stage, detail, since, true);
                since = Instant::now();
            }
            reached = reached.max(level);
            if reached >= 3 || watch.changed().await.is_err() {
                return;
            }
        }
    });
    Follow(task.abort_handle())
}
