//! The listening socket, and the tasks behind it.

use super::connection;
use super::context::ServerContext;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// Connections at the same time; one more waits in the backlog.
const CONNECTIONS: usize = 512;
/// How long requests under way get when the daemon is asked to end.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// When this host has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Says why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    #[error("failed to make the directory `{}`", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to listen on `{}`", path.display())]
    Bind {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The socket; removed when dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Binds. The caller holds the daemon's lock, so whatever is at `path` is of a dead daemon.
    ///
    /// # Errors
    /// [`ListenerError`].
    pub fn bind(path: &Path) -> Result<Self, ListenerError> {
        let bind = |source| ListenerError::Bind { path: path.to_path_buf(), source };
        if let Some(dir) = path.parent() {
            private_dir(dir).map_err(|source| ListenerError::Directory { path: dir.to_path_buf(), source })?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(bind(error)),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(bind)?;
        // Nobody else gets into the directory; this is for the day that its mode is changed.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(bind)?;
        Ok(Self { listener, path: path.to_path_buf() })
    }

    /// Serves until the context's shutdown, then gives requests under way [`SHUTDOWN_GRACE`].
    pub async fn serve(self, context: Arc<ServerContext>) {
        let tracker = TaskTracker::new();
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = context.shutdown.cancelled() => break,
                accepted = async {
                    let permit = Arc::clone(&permits).acquire_owned().await;
                    (self.listener.accept().await, permit)
                } => accepted,
            };
            match accepted {
                (Ok((stream, _)), Ok(permit)) => {
                    let context = Arc::clone(&context);
                    tracker.spawn(async move {
                        connection::serve(stream, context).await;
                        drop(permit);
                    });
                }
                (Err(error), _) => {
                    tracing::warn!(error = %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                (Ok(_), Err(_)) => break,
            }
        }
        // Whoever connects from now on starts a new daemon, or is told that none is there.
        drop(self);
        tracker.close();
        if tokio::time::timeout(SHUTDOWN_GRACE, tracker.wait()).await.is_err() {
            tracing::warn!(left = tracker.len(), "requests were cut off");
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(error = %error, "the socket was gone already");
        }
    }
}

/// Makes a directory that only its owner gets into.
fn private_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
