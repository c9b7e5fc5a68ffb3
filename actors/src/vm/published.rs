//! What a VM actor publishes of itself, and how callers wait for it: on a watch, level-triggered, each with a deadline of
//! its own. No waiter is known to the actor, so none can keep it busy.

use super::state::Attempt;
use messages::error::{ErrorKind, WireError};
use messages::vm::{Readiness, VmState, VmView};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a guest may take from power-on to its agent's readiness. Generous: emulated, on a busy host, it takes 15 s.
pub const AGENT_TIMEOUT: Duration = Duration::from_secs(120);
/// How long its init may take to settle.
pub const SYSTEM_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a caller waits for a level unless it says otherwise.
#[must_use]
pub const fn default_patience(level: Readiness) -> Duration {
    match level {
        // The VM's own boot timer should speak first: it knows why.
        Readiness::Agent => Duration::from_secs(AGENT_TIMEOUT.as_secs() + 10),
        Readiness::System | Readiness::Ssh => SYSTEM_TIMEOUT,
    }
}

/// One VM as its actor last saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub attempt: Attempt,
    pub view: Arc<VmView>,
    /// Why the last start or run failed, or why the create was rolled back.
    pub error: Option<WireError>,
    /// Nothing of it is left.
    pub gone: bool,
    /// How the last stop was done: `halted`, `ctrl-alt-del`, `killed`.
    pub how: Option<&'static str>,
}

/// A VM's published state, for waiting.
pub type Watch = watch::Receiver<Published>;

fn closed() -> WireError {
    WireError::new(ErrorKind::Lost, "the VM's actor was restarted").hint("`banger vm show` tells what became of the VM")
}

async fn until<T>(
    watch: &mut Watch,
    patience: Duration,
    mut done: impl FnMut(&Published) -> Option<Result<T, WireError>>,
    late: impl FnOnce(&Published) -> WireError,
) -> Result<T, WireError> {
    let deadline = Instant::now() + patience;
    loop {
        let answer = done(&watch.borrow_and_update());
        if let Some(answer) = answer {
            return answer;
        }
        match tokio::time::timeout_at(deadline, watch.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(closed()),
            Err(_) => return Err(late(&watch.borrow())),
        }
    }
}

/// Waits until the VM, in this attempt or a later one, has reached a level.
///
/// # Errors
/// Why it failed, that it was stopped or deleted, or that it took too long.
pub async fn until_ready(
    watch: &mut Watch,
    attempt: Attempt,
    level: Readiness,
    patience: Duration,
) -> Result<Arc<VmView>, WireError> {
    let ended = |published: &Published, what: &str| {
        let name = &published.view.name;
        published.error.clone().map_or_else(
            || WireError::new(ErrorKind::WrongState, format!("VM {name} was {what} before it was ready")),
            |error| error.context(format!("VM {name} did not become ready")),
        )
    };
    until(
        watch,
        patience,
        |published| {
            if published.gone {
                return Some(Err(ended(published, "deleted")));
            }
            match published.view.state {
                // Still the run before the one that is waited for.
                VmState::Running | VmState::Starting if published.attempt < attempt => None,
                VmState::Running if published.view.readiness >= Some(level) => Some(Ok(Arc::clone(&published.view))),
                VmState::Running | VmState::Starting | VmState::Stopping | VmState::Deleting => None,
                VmState::Stopped => Some(Err(ended(published, "stopped"))),
                VmState::Failed => Some(Err(ended(published, "ended"))),
            }
        },
        |published| {
            let word = match level {
                Readiness::Agent => "agent",
                Readiness::System => "system",
                Readiness::Ssh => "ssh",
            };
            WireError::new(
                ErrorKind::Timeout,
                format!("VM {} did not reach `{word}` within {} s", published.view.name, patience.as_secs()),
            )
            .hint(format!("`banger vm logs {}` shows its console", published.view.name))
        },
    )
    .await
}

/// Waits until the VMM of this attempt runs, or, where none was asked for, until the VM is made.
///
/// # Errors
/// Why the create or start failed, or that it took too long.
pub async fn until_made(watch: &mut Watch, attempt: Attempt, patience: Duration) -> Result<Arc<VmView>, WireError> {
    until(
        watch,
        patience,
        |published| {
            let view = || Some(Ok(Arc::clone(&published.view)));
            let failed = || {
                published.error.clone().unwrap_or_else(|| {
                    WireError::new(ErrorKind::WrongState, format!("VM {} was deleted", published.view.name))
                })
            };
            if published.gone {
                return Some(Err(failed()));
            }
            match published.view.state {
                // On its way to `Failed`, which will say so.
                VmState::Stopping if published.error.is_some() => None,
                VmState::Running | VmState::Stopping | VmState::Stopped if published.attempt >= attempt => view(),
                VmState::Starting if published.attempt >= attempt && published.view.vmm_pid.is_some() => view(),
                VmState::Failed if published.attempt >= attempt => Some(Err(failed())),
                VmState::Starting
                | VmState::Running
                | VmState::Stopping
                | VmState::Stopped
                | VmState::Failed
                | VmState::Deleting => None,
            }
        },
        |published| WireError::new(ErrorKind::Timeout, format!("VM {} is still starting", published.view.name)),
    )
    .await
}

/// Waits until nothing of the VM runs. A restart that began meanwhile counts: the old run is over.
///
/// # Errors
/// That it took too long.
pub async fn until_down(watch: &mut Watch, attempt: Attempt, patience: Duration) -> Result<Published, WireError> {
    until(
        watch,
        patience,
        |published| {
            let rests = match published.view.state {
                VmState::Stopped | VmState::Failed => true,
                VmState::Starting | VmState::Running | VmState::Stopping | VmState::Deleting => published.gone,
            };
            (rests || published.attempt > attempt).then(|| Ok(published.clone()))
        },
        |published| {
            WireError::new(
                ErrorKind::Timeout,
                format!("VM {} is still {}", published.view.name, published.view.state.as_str()),
            )
        },
    )
    .await
}

/// Waits until nothing of the VM is left.
///
/// # Errors
/// Why it could not be removed, or that it took too long.
pub async fn until_gone(watch: &mut Watch, patience: Duration) -> Result<(), WireError> {
    until(
        watch,
        patience,
        |published| {
            if published.gone {
                return Some(Ok(()));
            }
            match published.view.state {
                // A delete ends here only if it failed.
                VmState::Failed => Some(Err(published.error.clone().unwrap_or_else(|| {
                    WireError::new(ErrorKind::Host, format!("VM {} could not be removed", published.view.name))
                }))),
                VmState::Stopped | VmState::Starting | VmState::Running | VmState::Stopping | VmState::Deleting => None,
            }
        },
        |published| WireError::new(ErrorKind::Timeout, format!("VM {} is still being deleted", published.view.name)),
    )
    .await
}
