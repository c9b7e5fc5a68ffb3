//! One switch that ends a pull: whoever holds it may throw it, the pull looks at it and its child process is killed.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// Shared between a pull and those who may stop it. Clones are the same switch.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    thrown: bool,
    /// The same, for tasks.
    token: CancellationToken,
    /// The process group of a child that has not been waited for: its id cannot have been reused.
    group: Option<Pid>,
}

impl Cancel {
    /// A switch that nobody has thrown.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the pull: its child's process group is killed, the pull sees the end of the stream and cleans up.
    pub fn cancel(&self) {
        let mut state = self.lock();
        state.thrown = true;
        state.token.cancel();
        if let Some(group) = state.group {
            signal(group, Signal::SIGKILL);
        }
    }

    /// True once thrown.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.lock().thrown
    }

    /// For tasks, which wait for it instead of looking at it.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.lock().token.clone()
    }

    /// Takes charge of a child's process group until [`Self::release`].
    pub(super) fn guard(&self, group: Pid) {
        let mut state = self.lock();
        state.group = Some(group);
        if state.thrown {
            signal(group, Signal::SIGKILL);
        }
    }

    /// Must be called before the child is waited for.
    pub(super) fn release(&self) {
        self.lock().group = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is two plain fields: a panic elsewhere cannot have left it half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn signal(group: Pid, signal: Signal) {
    if let Err(error) = killpg(group, signal) {
        tracing::debug!(%group, %error, "the process group is gone already");
    }
}
