//! What can go wrong with images.

use crate::artifacts::{DebianError, NpmError, ShelfError, StagingError};
use crate::bundle::BundleError;
use crate::catalog::CatalogError;
use crate::download::DownloadError;
use crate::ext4::Ext4Error;
use crate::oci::OciError;
use messages::ids::ImageName;
use messages::{ErrorKind, WireError};
use std::io;
use std::path::PathBuf;

/// Why an image could not be pulled, found, used or deleted.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("failed to build the image's system")]
    Debian(#[from] DebianError),
    #[error("failed to get a file of the image's")]
    Npm(#[from] NpmError),
    #[error("failed to build the image's file system")]
    Ext4(#[from] Ext4Error),
    #[error(transparent)]
    Staging(#[from] StagingError),
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error(transparent)]
    Oci(#[from] OciError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error("an image called `{name}` is here, and is another one")]
    Taken { name: ImageName },
    #[error("failed to read back `{}`", path.display())]
    ReadBack {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl From<&ImageError> for WireError {
    fn from(error: &ImageError) -> Self {
        match error {
            ImageError::Catalog(cause) => Self::from(cause),
            ImageError::Shelf(cause) => Self::from(cause),
            ImageError::Debian(cause) => Self::from(cause).context(error.to_string()),
            ImageError::Npm(cause) => Self::from(cause).context(error.to_string()),
            ImageError::Ext4(cause) => Self::from(cause).context(error.to_string()),
            ImageError::Staging(cause) => Self::from(cause),
            ImageError::Oci(cause) => Self::from(cause),
            ImageError::Bundle(cause) => Self::from(cause),
            ImageError::Download(cause) => Self::from(cause),
            ImageError::Taken { name } => Self::from_error(ErrorKind::Conflict, error)
                .hint(format!("choose another name with `--name`, or remove it with `banger image delete {name}`")),
            ImageError::ReadBack { .. } => Self::from_error(ErrorKind::Host, error),
        }
    }
}
