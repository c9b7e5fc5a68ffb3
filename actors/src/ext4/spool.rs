//! File contents on their way from an archive into a file system: appended once, read once, in the same order.
//!
//! The ext4 writer wants every size before the first byte, an archive tells them one by one: so the contents wait in one
//! nameless file, which vanishes with its last descriptor whatever happens to us.

use super::Ext4Error;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const CHUNK: usize = 256 << 10;
/// How often, in bytes, the free space is looked at.
const CHECK_EVERY: u64 = 64 << 20;
/// Free space that is left alone, in bytes; of a small disk a twentieth.
const ROOM_LEFT: u64 = 1 << 30;

/// The waiting contents.
#[derive(Debug)]
pub struct Spool {
    file: File,
    directory: PathBuf,
    length: u64,
    buffer: Vec<u8>,
    hashes: Hashes,
    /// When the file system is looked at again.
    checked: u64,
}

/// Whether contents are hashed on their way: not where a digest of the whole archive says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hashes {
    Kept,
    Left,
}

/// False once a file's file system is so full that what comes from elsewhere must not fill it further.
#[must_use]
pub fn has_room(file: &File) -> bool {
    let Ok(stat) = nix::sys::statvfs::fstatvfs(file) else { return true };
    let (free, whole) = (stat.blocks_available() * stat.fragment_size(), stat.blocks() * stat.fragment_size());
    free >= ROOM_LEFT.min(whole / 20)
}

/// Where a file's contents wait.
#[derive(Debug, Clone, Copy)]
pub struct Spooled {
    /// Which of a tree's spools: its own place among them.
    pub spool: u16,
    pub offset: u64,
    pub length: u64,
    /// Zeros where hashes were left.
    pub sha256: [u8; 32],
}

impl Spool {
    /// Opens one on the file system of `directory`.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(directory: &Path) -> Result<Self, Ext4Error> {
        Self::with(directory, Hashes::Kept)
    }

    /// The same, with or without hashes.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn with(directory: &Path, hashes: Hashes) -> Result<Self, Ext4Error> {
        let file = tempfile::tempfile_in(directory).map_err(|source| Ext4Error::spool(directory, source))?;
        Ok(Self { file, directory: directory.to_owned(), length: 0, buffer: vec![0; CHUNK], hashes, checked: 0 })
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
            if self.hashes == Hashes::Kept {
                hash.update(bytes);
            }
            // Zeros are a hole: what only claims to be large takes no space.
            if bytes.iter().any(|byte| *byte != 0) {
                let kept = self.file.write_all_at(bytes, self.length);
                kept.map_err(|source| Ext4Error::spool(&self.directory, source))?;
            }
            self.length += count as u64;
            if self.length - self.checked >= CHECK_EVERY {
                self.checked = self.length;
                self.leave_room()?;
            }
        }
        let sha256 = match self.hashes {
            Hashes::Kept => hash.finalize().into(),
            Hashes::Left => [0; 32],
        };
        Ok(Spooled { spool: 0, offset, length: self.length - offset, sha256 })
    }

    /// A few kilobytes can unpack to anything: the disk that the VMs write to is never filled by it.
    fn leave_room(&self) -> Result<(), Ext4Error> {
        if has_room(&self.file) { Ok(()) } else { Err(Ext4Error::NoSpace { path: self.directory.clone() }) }
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
        let count = match self.file.read_at(&mut buffer[..most], self.offset)? {
            // The file ends where its last hole begins.
            0 => {
                buffer[..most].fill(0);
                most
            }
            count => count,
        };
        self.offset += count as u64;
        self.remaining -= count as u64;
        Ok(count)
    }
}
