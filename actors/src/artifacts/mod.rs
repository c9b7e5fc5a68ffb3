//! What pulls of kernels and images share: staging directories, progress, cancelling, and the run of mmdebstrap.
//!
//! No actor lives here, and nothing here knows what a kernel or an image is.

pub mod cancel;
pub mod debian;
pub mod progress;
pub mod shelf;
pub mod staging;

pub use cancel::Cancel;
pub use debian::{DebianError, HostTrap, Recipe};
pub use progress::Reporter;
pub use shelf::{Shelf, ShelfError};
pub use staging::{Staging, StagingError};

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, now.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
