//! Why the helper did not do it, as users are told.

use link::frames::ReadError;
use messages::WireError;
use messages::error::ErrorKind;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What to do about an absent helper.
const START_HINT: &str = "run `sudo banger daemon root start --owner USER`, or use `--net none`";
/// What to do about a helper of another version.
const RESTART_HINT: &str =
    "restart the helper: `sudo banger daemon root stop`, then `sudo banger daemon root start --owner USER`";

/// Why there is no connection, or no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelperError {
    #[error("the network helper does not run: nothing answers at `{}`", path.display())]
    Absent {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the network helper does not speak this daemon's protocol")]
    Greeting(#[source] ReadError),
    #[error("the network helper at `{}` did not say hello in time", .0.display())]
    Mute(PathBuf),
    #[error("the network helper did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the connection to the network helper broke {0} times over this operation")]
    Broken(u32),
    #[error("the network helper's client is restarting")]
    Restarting,
}

impl HelperError {
    pub(super) fn absent(path: &Path, source: io::Error) -> Self {
        Self::Absent { path: path.to_owned(), source }
    }
}

impl From<&HelperError> for WireError {
    fn from(error: &HelperError) -> Self {
        let of = |kind| Self::from_error(kind, error);
        match error {
            HelperError::Absent { .. } => of(ErrorKind::Host).hint(START_HINT),
            HelperError::Greeting(_) => of(ErrorKind::Protocol).hint(RESTART_HINT),
            HelperError::Mute(_) | HelperError::Silent(_) => of(ErrorKind::Timeout).hint(RESTART_HINT),
            HelperError::Broken(_) => of(ErrorKind::Lost).hint(RESTART_HINT),
            HelperError::Restarting => of(ErrorKind::Unavailable),
        }
    }
}
