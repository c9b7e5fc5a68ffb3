//! What pulls of kernels and images share: staging directories, progress, cancelling, and the run of mmdebstrap.
//!
//! No actor lives here, and nothing here knows what a kernel or an image is.

pub mod cancel;
pub mod debian;
pub mod progress;
pub mod staging;

pub use cancel::Cancel;
pub use debian::{DebianError, HostTrap, Recipe};
pub use progress::Reporter;
pub use staging::{Staging, StagingError};
