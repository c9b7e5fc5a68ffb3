//! Writes a file of known length from front to back, and leaves blocks of zeros out.

use super::BundleError;
use crate::ext4::is_zero;
use crate::ext4::spool::has_room;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// What file systems allocate.
const BLOCK: usize = 4096;
/// How often, in bytes, the free space is looked at.
const CHECK_EVERY: u64 = 64 << 20;

/// A file being written.
#[derive(Debug)]
pub(super) struct SparseFile {
    file: File,
    path: PathBuf,
    at: u64,
    /// When the file system is looked at again.
    checked: u64,
}

impl SparseFile {
    /// Makes the file, one long hole at first.
    pub(super) fn create(path: &Path, length: u64) -> Result<Self, BundleError> {
        let failed = |source| BundleError::write(path, source);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path).map_err(failed)?;
        file.set_len(length).map_err(failed)?;
        Ok(Self { file, path: path.to_owned(), at: 0, checked: 0 })
    }

    /// Appends bytes. Whole blocks at a time leave the most out.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), BundleError> {
        let mut written = 0;
        for run in bytes.chunks(BLOCK).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let length: usize = run.iter().map(|block| block.len()).sum();
            if !is_zero(run[0]) {
                let wrote = self.file.write_all_at(&bytes[written..written + length], self.at + written as u64);
                wrote.map_err(|source| BundleError::write(&self.path, source))?;
            }
            written += length;
        }
        self.at += bytes.len() as u64;
        if self.at - self.checked >= CHECK_EVERY {
            self.checked = self.at;
            // A few kilobytes can unpack to anything: the disk that the VMs write to is never filled by it.
            if !has_room(&self.file) {
                return Err(BundleError::NoSpace { path: self.path.clone() });
            }
        }
        Ok(())
    }

    /// The file, as far as it has been written.
    pub(super) const fn file(&self) -> &File {
        &self.file
    }
}
