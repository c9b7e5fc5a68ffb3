//! What waits to be said on the control stream. Holds nothing while no daemon is connected: whoever connects is told the whole
//! state first, so what was missed is in there.

use crate::exec::registry::ENDED_MAX;
use messages::guest::AgentFrame;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// More frames than this mean a daemon that does not read; it is cut off and told everything when it redials. All of that fits.
const OUTBOX_MAX: usize = ENDED_MAX + 4096;

/// Handed to everything that has news for the daemon. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// `None` while nobody is connected, or the daemon was too slow.
    queue: Mutex<Option<VecDeque<AgentFrame>>>,
    changed: Notify,
}

impl Outbox {
    fn with<T>(&self, act: impl FnOnce(&mut Option<VecDeque<AgentFrame>>) -> T) -> T {
        act(&mut self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A daemon is connected: from now on frames are kept for it.
    pub fn open(&self) {
        self.with(|queue| *queue = Some(VecDeque::new()));
    }

    /// It is gone.
    pub fn close(&self) {
        self.with(|queue| *queue = None);
        self.shared.changed.notify_one();
    }

    /// Whether a daemon is connected.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.with(|queue| queue.is_some())
    }

    /// Says something, if anybody listens.
    pub fn push(&self, frame: AgentFrame) {
        self.with(|queue| match queue {
            Some(frames) if frames.len() >= OUTBOX_MAX => *queue = None,
            Some(frames) => frames.push_back(frame),
            None => {}
        });
        self.shared.changed.notify_one();
    }

    /// The next frame to send; `None` when the outbox was closed. For one caller at a time; cancel-safe.
    pub async fn next(&self) -> Option<AgentFrame> {
        loop {
            match self.with(|queue| queue.as_mut().map(VecDeque::pop_front)) {
                Some(Some(frame)) => return Some(frame),
                Some(None) => self.shared.changed.notified().await,
                None => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use messages::guest::StopKind;

    #[tokio::test]
    async fn frames_are_kept_for_whoever_is_connected_only() {
        let outbox = Outbox::default();
        let frame = AgentFrame::Stopping { kind: StopKind::Halt };
        outbox.push(frame.clone());
        outbox.open();
        outbox.push(frame.clone());
        assert_eq!(outbox.next().await, Some(frame));
        outbox.close();
        assert_eq!(outbox.next().await, None);
    }

    #[tokio::test]
    async fn all_that_a_daemon_has_missed_fits() {
        let outbox = Outbox::default();
        outbox.open();
        for _ in 0..ENDED_MAX {
            outbox.push(AgentFrame::Stopping { kind: StopKind::Halt });
        }
        assert!(outbox.is_open());
    }

    #[tokio::test]
    async fn a_daemon_that_does_not_read_is_cut_off() {
        let outbox = Outbox::default();
        outbox.open();
        for _ in 0..=OUTBOX_MAX {
            outbox.push(AgentFrame::Stopping { kind: StopKind::Halt });
        }
        assert!(!outbox.is_open());
    }
}
