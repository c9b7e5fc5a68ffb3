//! File contents on their way from an archive into a file system: appended once, read once, in the same order.
//!
//! The ext4 writer wants every size before the first byte, an archive tells them one by one: so the contents wait in one
//! nameless file, which vanishes with its last descriptor whatever happens to us.

use super::Ext4Error;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const CHUNK: usize = 256 << 10;

/// The waiting contents.
#[derive(Debug)]
pub struct Spool {
    file: File,
    directory: PathBuf,
    length: u64,
    buffer: Vec<u8>,
}

/// Where a file's contents wait.
#[derive(Debug, Clone, Copy)]
pub struct Spooled {
    pub offset: u64,
    pub length: u64,
    pub sha256: [u8; 32],
}

impl Spool {
    /// Opens one on the file system of `directory`.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(directory: &Path) -> Result<Self, Ext4Error> {
        let file = tempfile::tempfile_in(directory).map_err(|source| Ext4Error::spool(directory, source))?;
        Ok(Self { file, directory: directory.to_owned(), length: 0, buffer: vec![0; CHUNK] })
    }

    /// Appends all of `reader`.
    ///
    /// # Errors
    /// When it cannot be read or kept.
    pub fn append(&mut self, reader: &mut dyn Read) -> Result<Spooled, Ext4Error> {
        let offset = self.length;
        let mut hash = Sha256::new();
        loop {
            let count = match reader.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Ext4Error::Archive(error)),
            };
            let bytes = &self.buffer[..count];
            hash.update(bytes);
            self.file.write_all(bytes).map_err(|source| Ext4Error::spool(&self.directory, source))?;
            self.length += count as u64;
        }
        Ok(Spooled { offset, length: self.length - offset, sha256: hash.finalize().into() })
    }

    /// Bytes kept so far.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn failed(&self, source: io::Error) -> Ext4Error {
        Ext4Error::spool(&self.directory, source)
    }

    /// Reads one file's contents back.
    #[must_use]
    pub fn reader(&self, spooled: &Spooled) -> SpoolReader<'_> {
        SpoolReader { file: &self.file, offset: spooled.offset, remaining: spooled.length }
    }
}

/// Reads one file's contents.
#[derive(Debug)]
pub struct SpoolReader<'a> {
    file: &'a File,
    offset: u64,
    remaining: u64,
}

impl Read for SpoolReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += count as u64;
        self.remaining -= count as u64;
        Ok(count)
    }
}
