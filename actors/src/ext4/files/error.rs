//! What can go wrong with files inside of a disk.

use super::FileKind;
use crate::ext4::Ext4Error;
use messages::{ErrorKind, WireError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a file in a disk could not be looked at or changed. The disk is as it was.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("`{path}` cannot be used as a path in a disk: {why}")]
    Path { path: String, why: &'static str },
    #[error("`{path}` is not there")]
    NotFound { path: String },
    #[error("`{path}` is a symbolic link, which is not followed")]
    Symlink { path: String },
    #[error("`{path}` is a {kind}, not a {wanted}")]
    Kind { path: String, kind: FileKind, wanted: &'static str },
    #[error("`{path}` cannot have the mode {mode:o}: only the bits 7777 can be set")]
    Mode { path: String, mode: u16 },
    #[error("`{path}` has {size} bytes, and at most {limit} can be read at once")]
    TooLarge { path: String, size: u64, limit: u64 },
    #[error("{asked} {what} at once are too many: at most {limit} can be asked for")]
    TooMuch { what: &'static str, asked: u64, limit: u64 },
    #[error("`{}` is in use", disk.display())]
    InUse { disk: PathBuf },
    #[error("{waiting} jobs wait for disks already")]
    Busy { waiting: usize },
    #[error("`{}` cannot be used as a disk", disk.display())]
    Disk {
        disk: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to work on a copy of `{}`", disk.display())]
    Copy {
        disk: PathBuf,
        #[source]
        source: Ext4Error,
    },
    #[error("the file system in `{}` is full: {said}", disk.display())]
    Full { disk: PathBuf, said: String },
    #[error("the file system in `{}` is damaged: {said}", disk.display())]
    Damaged { disk: PathBuf, said: String },
    #[error("`{path}` is not what was written: {found}")]
    NotVerified { path: String, found: String },
    #[error("{0} is not installed")]
    NotInstalled(&'static str),
    #[error("{program} failed: {said}")]
    Tool { program: &'static str, said: String },
    #[error("{program} failed to run")]
    Run {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{program} took longer than {} s", limit.as_secs())]
    Deadline { program: &'static str, limit: Duration },
    #[error("{program} answered with more than {limit} bytes")]
    TooTalkative { program: &'static str, limit: usize },
    #[error("debugfs said what cannot be understood: `{line}`")]
    Output { line: String },
}

impl FilesError {
    pub(super) fn disk(disk: &Path, source: io::Error) -> Self {
        Self::Disk { disk: disk.to_owned(), source }
    }

    /// Of something that was tried on or beside `disk`.
    pub(super) fn copy(disk: &Path, source: Ext4Error) -> Self {
        Self::Copy { disk: disk.to_owned(), source }
    }
}

impl From<&FilesError> for WireError {
    fn from(error: &FilesError) -> Self {
        let kind = match error {
            FilesError::Path { .. }
            | FilesError::Symlink { .. }
            | FilesError::Kind { .. }
            | FilesError::Mode { .. }
            | FilesError::TooLarge { .. }
            | FilesError::TooMuch { .. } => ErrorKind::Usage,
            FilesError::NotFound { .. } => ErrorKind::NotFound,
            FilesError::InUse { .. } => ErrorKind::Conflict,
            FilesError::Busy { .. } | FilesError::Full { .. } => ErrorKind::Resources,
            FilesError::Copy { source, .. } => {
                return Self::from(source).context(error.to_string());
            }
            FilesError::Disk { .. }
            | FilesError::Damaged { .. }
            | FilesError::NotInstalled(_)
            | FilesError::Tool { .. }
            | FilesError::Run { .. }
            | FilesError::Output { .. }
            | FilesError::TooTalkative { .. } => ErrorKind::Host,
            FilesError::Deadline { .. } => ErrorKind::Timeout,
            FilesError::NotVerified { .. } => ErrorKind::Internal,
        };
        let wire = Self::from_error(kind, error);
        match error {
            FilesError::InUse { .. } => wire.hint("stop the VM first: `banger vm stop`"),
            FilesError::Busy { .. } => wire.hint("try again when they are done"),
            FilesError::Symlink { .. } => wire.hint("name the file that it points to"),
            FilesError::NotInstalled(_) => wire.hint("install it: `sudo apt install e2fsprogs util-linux`"),
            FilesError::Damaged { .. } => wire.hint("start the VM and look, or repair it: `e2fsck -f DISK`"),
            _ => wire,
        }
    }
}
