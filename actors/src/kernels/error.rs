//! What can go wrong with kernels.

use super::requirements::Unfit;
use super::vmlinux::VmlinuxError;
use crate::artifacts::{DebianError, ShelfError, StagingError};
use crate::bundle::BundleError;
use crate::catalog::CatalogError;
use crate::download::DownloadError;
use crate::ext4::Ext4Error;
use messages::ids::KernelName;
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
    #[error("its modules have more than {limit} {what}")]
    TooMuch { what: &'static str, limit: u64 },
    #[error("module `{name}` cannot be read: {why}")]
    Module { name: String, why: String },
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error("the kernel does not say its version")]
    NoVersion,
    #[error("{what} is of kernel {of}, and the kernel is {version}")]
    OtherKernel { what: String, of: String, version: String },
    #[error("{from} is no kernel configuration: it has no line that begins with `CONFIG_`")]
    NoConfig { from: &'static str },
    #[error("`{}` holds no modules of kernel {version}", path.display())]
    NoModules { path: PathBuf, version: String },
    #[error("a kernel called `{name}` is here, or on its way")]
    Taken { name: KernelName },
    #[error("no kernel can be made of `{}`", path.display())]
    Files {
        path: PathBuf,
        #[source]
        source: Box<KernelError>,
    },
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error("it was stopped")]
    Cancelled,
    #[error("a module needs more than {limit} others, `{name}` among them")]
    Needs { name: String, limit: usize },
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
    /// The failure of an import: it is of these files, not of a download.
    pub(super) fn of_files(self, path: &Path) -> Self {
        Self::Files { path: path.to_owned(), source: Box::new(self) }
    }

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
            KernelError::Vmlinux(VmlinuxError::Cancelled) => Self::from_error(ErrorKind::Cancelled, error),
            KernelError::Vmlinux(_)
            | KernelError::Incomplete(_)
            | KernelError::Module { .. }
            | KernelError::TooMuch { .. }
            | KernelError::NoVersion
            | KernelError::OtherKernel { .. }
            | KernelError::Needs { .. }
            | KernelError::Circle(_) => Self::from_error(ErrorKind::Download, error),
            KernelError::Unfit(_) => Self::from_error(ErrorKind::Download, error)
                .hint("docs/kernel-catalog.md lists what a kernel needs; `banger kernel catalog` lists others"),
            KernelError::NoConfig { .. } => Self::from_error(ErrorKind::Usage, error),
            KernelError::NoModules { version, .. } => Self::from_error(ErrorKind::Usage, error)
                .hint(format!("give `lib/modules/{version}`, or the directory that holds it")),
            KernelError::Taken { name } => Self::from_error(ErrorKind::Conflict, error)
                .hint(format!("choose another name, or remove it with `banger kernel delete {name}`")),
            KernelError::Files { source, .. } => {
                let wire = Self::from(&**source).context(error.to_string());
                // What a user gave was not downloaded; that the disk is full stays what it is.
                let unreadable = matches!(&**source, KernelError::Io { action: "read", .. });
                let theirs = wire.kind == ErrorKind::Download || unreadable;
                Self { kind: if theirs { ErrorKind::Usage } else { wire.kind }, ..wire }
            }
            KernelError::Bundle(cause) => Self::from(cause),
            KernelError::Download(cause) => Self::from(cause),
            KernelError::Cancelled => Self::from_error(ErrorKind::Cancelled, error),
            KernelError::Shelf(cause) => Self::from(cause),
            KernelError::Staging(cause) => Self::from(cause),
            KernelError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Self::from_error(ErrorKind::Resources, error)
            }
            KernelError::Io { .. } => Self::from_error(ErrorKind::Host, error),
        }
    }
}
