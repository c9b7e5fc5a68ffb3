//! Tells whoever waits for a pull what it is doing. Never blocks: a slow reader misses steps, not the end.

use messages::reply::{Progress, Stage};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;

type Sink = Arc<dyn Fn(Progress) + Send + Sync>;

/// Reports the steps of one stage. Clones report to the same place with the same clock.
#[derive(Clone)]
pub struct Reporter {
    stage: Stage,
    started: Instant,
    sink: Sink,
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl Reporter {
    /// Reports to a function.
    pub fn new(stage: Stage, sink: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self { stage, started: Instant::now(), sink: Arc::new(sink) }
    }

    /// Reports to nobody.
    #[must_use]
    pub fn silent(stage: Stage) -> Self {
        Self::new(stage, |_| {})
    }

    /// Reports to a channel; what does not fit is dropped.
    #[must_use]
    pub fn channel(stage: Stage, sender: mpsc::Sender<Progress>) -> Self {
        Self::new(stage, move |progress| {
            // Full: the reader is slow and will see the next step. Closed: nobody listens.
            drop(sender.try_send(progress));
        })
    }

    /// A step without figures.
    pub fn step(&self, detail: impl Into<String>) {
        self.send(detail.into(), None, None, false);
    }

    /// A step with figures, in bytes.
    pub fn amount(&self, detail: impl Into<String>, done: u64, total: Option<u64>) {
        self.send(detail.into(), Some(done), total, false);
    }

    /// The end of the stage.
    pub fn finished(&self, detail: impl Into<String>) {
        self.send(detail.into(), None, None, true);
    }

    fn send(&self, detail: String, done: Option<u64>, total: Option<u64>, finished: bool) {
        let elapsed_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        (self.sink)(Progress { stage: self.stage, detail, done, total, elapsed_us, finished });
    }
}
