//! What can go wrong between an address and the file that it stands for.

use crate::oci::OciError;
use messages::{ErrorKind, WireError};
use std::io;
use std::path::PathBuf;

/// Why there is no such file.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("`{text}` is no address of a file: {why}")]
    Address { text: String, why: &'static str },
    #[error("`{location}` is plain HTTP, which nobody vouches for")]
    Insecure { location: String, authority: String },
    #[error("failed to read `{}`", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{location}` is not what the catalog pins: its digest is sha256:{found}, not sha256:{pinned}")]
    Digest { location: String, found: String, pinned: String },
    #[error("failed to fetch `{location}`")]
    Fetch {
        location: String,
        #[source]
        source: Box<OciError>,
    },
}

impl From<&DownloadError> for WireError {
    fn from(error: &DownloadError) -> Self {
        match error {
            DownloadError::Address { .. } => Self::from_error(ErrorKind::Usage, error),
            DownloadError::Insecure { authority, .. } => Self::from_error(ErrorKind::Usage, error)
                .hint(format!("use https, or add \"{authority}\" to `insecure_registries` in the config")),
            DownloadError::File { .. } | DownloadError::Digest { .. } => Self::from_error(ErrorKind::Download, error),
            // Its digest is how the cache calls it: users know it by its address, and every other pull's word for it is the same.
            DownloadError::Fetch { location, source } if matches!(**source, OciError::Digest { .. }) => {
                Self::new(ErrorKind::Download, format!("what came from `{location}` is not what the catalog pins"))
                    .hint("its digest is another one: the file, or the catalog's `sha256`, is wrong")
            }
            DownloadError::Fetch { source, .. } => Self::from(&**source).context(error.to_string()),
        }
    }
}
