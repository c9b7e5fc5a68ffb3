//! What can go wrong with a bundle.

use super::manifest::{FORMAT, Kind};
use crate::ext4::error::is_full;
use crate::ext4::superblock::SuperblockError;
use messages::{ErrorKind, WireError};
use std::io;
use std::path::{Path, PathBuf};

/// Why nothing came of a bundle. `of` is its path or address.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("failed to read `{}`", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{of}` is no bundle: {why}")]
    NotOne { of: String, why: String },
    #[error("`{of}` is a bundle of format {found}, and this banger knows {FORMAT}")]
    Format { of: String, found: u32 },
    #[error("`{of}` is a bundle of {}, not of {}", found.noun(), wanted.noun())]
    OtherKind { of: String, found: Kind, wanted: Kind },
    #[error("the bundle `{of}` is damaged: {why}")]
    Damaged { of: String, why: String },
    #[error("the bundle `{of}` is damaged or cut off")]
    Archive {
        of: String,
        #[source]
        source: io::Error,
    },
    #[error("the file system in `{of}` cannot be used")]
    Rootfs {
        of: String,
        #[source]
        source: SuperblockError,
    },
    #[error("failed to write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no space left for `{}`", path.display())]
    NoSpace { path: PathBuf },
    #[error("it was stopped")]
    Cancelled,
}

impl BundleError {
    /// A failure to write `path`; a full disk is told apart.
    #[must_use]
    pub fn write(path: &Path, source: io::Error) -> Self {
        if is_full(&source) {
            Self::NoSpace { path: path.to_owned() }
        } else {
            Self::Write { path: path.to_owned(), source }
        }
    }
}

impl From<&BundleError> for WireError {
    fn from(error: &BundleError) -> Self {
        let kind = match error {
            BundleError::Open { .. } => ErrorKind::Usage,
            BundleError::NotOne { .. }
            | BundleError::Format { .. }
            | BundleError::OtherKind { .. }
            | BundleError::Damaged { .. }
            | BundleError::Archive { .. }
            | BundleError::Rootfs { .. } => ErrorKind::Download,
            BundleError::NoSpace { .. } => ErrorKind::Resources,
            BundleError::Write { .. } => ErrorKind::Host,
            BundleError::Cancelled => ErrorKind::Cancelled,
        };
        let wire = Self::from_error(kind, error);
        match error {
            BundleError::NotOne { .. } => wire.hint("`banger image export NAME FILE` makes one"),
            BundleError::Rootfs { source: SuperblockError::Unclean, .. } => {
                wire.hint("replay its journal where it was made: `e2fsck -p rootfs.ext4`")
            }
            BundleError::NoSpace { .. } => wire.hint("delete what is not needed: `banger image list`"),
            _ => wire,
        }
    }
}
