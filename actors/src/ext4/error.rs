//! What can go wrong when a file system is made.

use super::writer::WriterError;
use messages::{ErrorKind, WireError};
use std::io;
use std::path::{Path, PathBuf};

/// Why no file system came of it.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    #[error("failed to read the archive")]
    Archive(#[source] io::Error),
    #[error("`{path}` in the archive is no path below the root")]
    BadPath { path: String },
    #[error("`{path}` in the archive lies below something that is no directory")]
    ParentNotDirectory { path: String },
    #[error("`{path}` in the archive is a hard link to `{target}`, which is not there")]
    DanglingLink { path: String, target: String },
    #[error("`{path}` in the archive is of a kind that ext4 cannot hold: {kind}")]
    Kind { path: String, kind: String },
    #[error("`{path}` in the archive has an extended attribute `{name}` that cannot be stored")]
    Attribute { path: String, name: String },
    #[error("the archive holds more than {limit} {what}")]
    TooMuch { what: &'static str, limit: u64 },
    #[error("`{path}` in the archive is larger than {} MiB", limit >> 20)]
    TooLarge { path: String, limit: u64 },
    #[error("it was stopped")]
    Cancelled,
    #[error("failed to keep the archive's contents in `{}`", path.display())]
    Spool {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to lay out the file system")]
    Layout(#[source] WriterError),
    #[error("failed to write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no space left for `{}`", path.display())]
    NoSpace { path: PathBuf },
    #[error("a disk of {asked} bytes is {problem}: use {least} to {most} MiB", least = super::disk::SIZE_MIN >> 20, most = super::disk::SIZE_MAX >> 20)]
    DiskSize { asked: u64, problem: &'static str },
    #[error("mke2fs is not installed")]
    NoMke2fs,
    #[error("{program} failed: {said}")]
    Tool { program: &'static str, said: String },
}

impl Ext4Error {
    /// A failure to write `path`; a full disk is told apart.
    #[must_use]
    pub fn write(path: &Path, source: io::Error) -> Self {
        if is_full(&source) {
            Self::NoSpace { path: path.to_owned() }
        } else {
            Self::Write { path: path.to_owned(), source }
        }
    }

    /// A failure to spool into `path`; a full disk is told apart.
    #[must_use]
    pub fn spool(path: &Path, source: io::Error) -> Self {
        if is_full(&source) {
            Self::NoSpace { path: path.to_owned() }
        } else {
            Self::Spool { path: path.to_owned(), source }
        }
    }
}

/// True where there is no room on the disk, or none for this user.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<&Ext4Error> for WireError {
    fn from(error: &Ext4Error) -> Self {
        let kind = match error {
            Ext4Error::Archive(_) => ErrorKind::Download,
            Ext4Error::NoSpace { .. } => ErrorKind::Resources,
            Ext4Error::Cancelled => ErrorKind::Cancelled,
            Ext4Error::DiskSize { .. } => ErrorKind::Usage,
            Ext4Error::BadPath { .. }
            | Ext4Error::ParentNotDirectory { .. }
            | Ext4Error::DanglingLink { .. }
            | Ext4Error::Kind { .. }
            | Ext4Error::Attribute { .. }
            | Ext4Error::TooMuch { .. }
            | Ext4Error::TooLarge { .. } => ErrorKind::Usage,
            Ext4Error::Spool { .. } | Ext4Error::Write { .. } | Ext4Error::NoMke2fs | Ext4Error::Tool { .. } => {
                ErrorKind::Host
            }
            // What somebody's archive asks for, and ext4 does not have.
            Ext4Error::Layout(
                WriterError::Links { .. }
                | WriterError::Target { .. }
                | WriterError::Device { .. }
                | WriterError::Attribute { .. }
                | WriterError::NoRoom { .. }
                | WriterError::DirectorySize { .. }
                | WriterError::TooMuch { .. },
            ) => ErrorKind::Usage,
            Ext4Error::Layout(_) => ErrorKind::Internal,
        };
        let wire = Self::from_error(kind, error);
        match error {
            Ext4Error::NoSpace { .. } => wire.hint("delete what is not needed: `banger vm list`, `banger image list`"),
            Ext4Error::NoMke2fs => wire.hint("install it: `sudo apt install e2fsprogs`"),
            _ => wire,
        }
    }
}
