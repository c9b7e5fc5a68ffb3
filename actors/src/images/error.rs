//! What can go wrong with images.

use super::commit::CommitError;
use crate::artifacts::{DebianError, NpmError, ShelfError, StagingError};
use crate::bundle::BundleError;
use crate::catalog::CatalogError;
use crate::download::DownloadError;
use crate::ext4::{Ext4Error, SuperblockError};
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
    #[error("image `{name}` is being made or changed just now")]
    Busy { name: ImageName },
    #[error("the file of image `{name}`, `{}`, is not the one that was registered: {problem}", path.display())]
    Changed { name: ImageName, path: PathBuf, problem: String },
    #[error("`{}` cannot be an image", path.display())]
    Unfit {
        path: PathBuf,
        #[source]
        source: Unfit,
    },
    #[error("the settings of image `{name}` cannot be used: {why}")]
    Config { name: ImageName, why: String },
    #[error("image `{name}` is in banger's storage already")]
    Promoted { name: ImageName },
    #[error(transparent)]
    Committed(#[from] CommitError),
    #[error("failed to set up the connection to the guest")]
    Stream(#[source] io::Error),
    #[error("cancelled: nobody waits for it any more")]
    Cancelled,
    #[error("failed to read back `{}`", path.display())]
    ReadBack {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Why a file cannot be an image.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("its path is not absolute")]
    Relative,
    #[error(transparent)]
    File(#[from] io::Error),
    #[error(transparent)]
    FileSystem(#[from] SuperblockError),
    #[error("it changed while it was read")]
    Changing,
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
            ImageError::Busy { .. } => Self::from_error(ErrorKind::Conflict, error).hint("wait for that to end"),
            ImageError::Changed { name, .. } => Self::from_error(ErrorKind::Conflict, error).hint(format!(
                "put the old file back, or `banger image delete {name}` and register the new one under another name"
            )),
            ImageError::Unfit { path, source } => {
                let wire = Self::from_error(ErrorKind::Usage, error);
                match source {
                    Unfit::FileSystem(SuperblockError::Unclean | SuperblockError::Damaged) => {
                        wire.hint(format!("unmount it, and let `e2fsck -f {}` repair it", path.display()))
                    }
                    _ => wire,
                }
            }
            ImageError::Config { .. } => Self::from_error(ErrorKind::Usage, error),
            ImageError::Promoted { .. } => Self::from_error(ErrorKind::Conflict, error),
            ImageError::Committed(cause) => Self::from(cause),
            ImageError::Cancelled => Self::from_error(ErrorKind::Cancelled, error),
            ImageError::Stream(_) | ImageError::ReadBack { .. } => Self::from_error(ErrorKind::Host, error),
        }
    }
}
