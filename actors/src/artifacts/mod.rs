//! What pulls of kernels and images share: staging directories, progress, cancelling, the run of mmdebstrap, and
//! single files from npm.
//!
//! Nothing but `library` knows what a kernel or an image is, and no actor lives here.

pub mod cancel;
pub mod debian;
pub mod flight;
pub mod library;
pub mod npm;
pub mod progress;
pub(crate) mod removal;
pub mod shelf;
pub mod staging;
pub mod users;

pub use cancel::Cancel;
pub use debian::{DebianError, HostTrap, Recipe};
pub use library::ArtifactLibrary;
pub use npm::{NpmError, NpmFile};
pub use progress::Reporter;
pub use shelf::{Shelf, ShelfError};
pub use staging::{Staging, StagingError};

use futures::future::BoxFuture;
use messages::{ErrorKind, WireError};
use nix::fcntl::OFlag;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Runs what may block on a thread for that; a panic there is an error here.
pub(crate) fn blocking<T: Send + 'static>(
    runtime: &tokio::runtime::Handle,
    work: impl FnOnce() -> Result<T, WireError> + Send + 'static,
) -> BoxFuture<'static, Result<T, WireError>> {
    let job = runtime.spawn_blocking(work);
    Box::pin(async move {
        let broken = |error| WireError::from_error(ErrorKind::Internal, &error);
        job.await.map_err(broken).flatten()
    })
}

/// Opens a user's file, which must be a regular one. Never waits, as opening a pipe would.
///
/// # Errors
/// When there is none, or it may not be read.
pub fn open_file(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

/// Milliseconds since the Unix epoch, now.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
