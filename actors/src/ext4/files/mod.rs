//! Files inside of ext4 file systems that nobody has mounted: a stopped VM's disk, an image that is not published yet. Looks,
//! lists, reads; makes directories, writes files, sets owners. No root and no mount: debugfs does the work (docs/adr/0015).
//!
//! The actor keeps one line of jobs for each disk; a job runs on a thread that may block. Changes are made on a copy, which
//! replaces the disk when debugfs reports what it was told to make and e2fsck finds nothing: all of them, or none.
//!
//! ```text
//! message ─▶ Ext4Files ─ one at a time for each disk ─▶ Claim (lock) ─▶ copy ─▶ e2fsck -p ─▶ stat ─▶ plan ─▶ debugfs -w
//!                                                                                                             │
//!                                                        disk ◀─ rename ◀─ fsync ◀─ stat, compare ◀─ e2fsck -fp
//! ```
//!
//! It must not be asked for a disk that a VM runs on: QEMU's locks are seen, Firecracker takes none.

mod actor;
mod claim;
mod error;
mod handlers;
mod operate;
mod parse;
mod path;
mod plan;
mod queue;
mod script;
#[cfg(test)]
mod tests;
mod tool;

pub use actor::Ext4Files;
pub use error::FilesError;
pub use handlers::{ChangeFiles, ListDirectory, ReadFile, StatFile};
pub use parse::{DirectoryEntry, FileKind, FileStat};
pub use path::Ext4Path;
pub use plan::{Change, Owner};
