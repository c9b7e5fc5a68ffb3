//! Waiting for a guest to be as ready as a client wants it. `ssh` is found out here, by a handshake of the daemon's own, and
//! only while somebody waits for it.

use super::context::{ServerContext, ask};
use crate::registry::Handle;
use crate::vm::SshAnswers;
use crate::vm::published::{default_patience, until_ready};
use messages::error::{ErrorKind, WireError};
use messages::vm::{Readiness, SshPublicKey};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Between two attempts: an sshd that has just been started needs a moment.
const AGAIN: Duration = Duration::from_millis(300);
/// For a VM's actor to publish what it was told.
const PUBLISH: Duration = Duration::from_secs(10);

/// Waits until the VM, in this attempt or a later one, has reached a level, or until the client is gone.
pub(super) async fn ready(
    context: &ServerContext,
    handle: &mut Handle,
    attempt: u64,
    level: Readiness,
    patience: Option<Duration>,
    gone: &CancellationToken,
) -> Result<(), WireError> {
    let patience = patience.unwrap_or_else(|| default_patience(level));
    if level < Readiness::Ssh {
        return until_ready(&mut handle.watch, attempt, level, patience).await.map(drop);
    }
    let deadline = Instant::now() + patience;
    let view = until_ready(&mut handle.watch, attempt, Readiness::System, patience).await?;
    if view.readiness >= Some(level) {
        return Ok(());
    }
    let host = view.ssh_host_key.ok_or_else(|| {
        WireError::new(ErrorKind::WrongState, format!("VM {} was started by a banger without SSH", view.name))
            .hint(format!("`banger vm restart {}` gives it a host key", view.name))
    })?;
    let attempt = handle.watch.borrow().attempt;
    let mut last = None;
    let mut watch = handle.watch.clone();
    let waited = tokio::select! {
        // Another client's handshake, the VM's end, or no patience left.
        waited = until_ready(&mut watch, attempt, level, deadline.saturating_duration_since(Instant::now())) => waited,
        answer = handshake(context, handle, host, &mut last) => match answer {
            Ok(()) => {
                ask(&handle.vm, SshAnswers(attempt)).await?;
                let mut watch = handle.watch.clone();
                until_ready(&mut watch, attempt, level, PUBLISH).await
            }
            Err(error) => Err(error),
        },
        () = gone.cancelled() => Err(WireError::new(ErrorKind::Cancelled, "the client left")),
    };
    waited.map(drop).map_err(|mut error| {
        if error.kind == ErrorKind::Timeout {
            error.chain.extend(last.into_iter().flat_map(|last: WireError| last.chain));
        }
        error
    })
}

/// Tries until the guest's SSH answers. `last` keeps why it did not, for whoever loses patience.
async fn handshake(
    context: &ServerContext,
    handle: &Handle,
    host: SshPublicKey,
    last: &mut Option<WireError>,
) -> Result<(), WireError> {
    loop {
        match context.ports.ssh_answers(handle.id, host).await {
            Err(error) if error.kind == ErrorKind::Unavailable => {
                tracing::debug!(vm = %handle.id, error = %error, "SSH does not answer yet");
                *last = Some(error);
                tokio::time::sleep(AGAIN).await;
            }
            result => return result,
        }
    }
}
