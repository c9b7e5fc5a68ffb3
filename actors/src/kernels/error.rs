//! What can go wrong with kernels.

use super::vmlinux::VmlinuxError;
use crate::artifacts::{DebianError, ShelfError, StagingError};
use crate::catalog::CatalogError;
use crate::ext4::Ext4Error;
use messages::{ErrorKind, WireError};
use std::io;
use std::path::{Path, PathBuf};

/// Why a kernel could not be pulled, found, used or deleted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("failed to fetch the kernel package")]
    Debian(#[from] DebianError),
    #[error("failed to unpack the kernel")]
    Vmlinux(#[from] VmlinuxError),
    #[error("failed to build the kernel's modules")]
    Ext4(#[from] Ext4Error),
    #[error(transparent)]
    Staging(#[from] StagingError),
    #[error("the package holds no `{0}`")]
    Incomplete(&'static str),
    #[error("module `{name}` cannot be read: {why}")]
    Module { name: String, why: String },
    #[error("the kernel has no module `{0}`, and it is not built in")]
    MissingModule(&'static str),
    #[error("modules depend on each other in a circle: {}", .0.join(" → "))]
    Circle(Vec<String>),
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error("failed to {action} `{}`", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl KernelError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

impl From<&KernelError> for WireError {
    fn from(error: &KernelError) -> Self {
        match error {
            KernelError::Catalog(cause) => Self::from(cause),
            KernelError::Debian(cause) => Self::from(cause).context(error.to_string()),
            KernelError::Ext4(cause) => Self::from(cause).context(error.to_string()),
            KernelError::Vmlinux(_)
            | KernelError::Incomplete(_)
            | KernelError::Module { .. }
            | KernelError::Circle(_) => Self::from_error(ErrorKind::Download, error),
            KernelError::MissingModule(_) => {
                Self::from_error(ErrorKind::Download, error).hint("choose another kernel: `banger kernel catalog`")
            }
            KernelError::Shelf(cause) => Self::from(cause),
            KernelError::Staging(cause) => Self::from(cause),
            KernelError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Self::from_error(ErrorKind::Resources, error)
            }
            KernelError::Io { .. } => Self::from_error(ErrorKind::Host, error),
        }
    }
}
