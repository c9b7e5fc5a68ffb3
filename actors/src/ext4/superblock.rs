//! What an ext4 file says of itself, in its superblock. Reads; writes nothing.
//!
//! Layout: kernel documentation, "ext4 Data Structures and Algorithms", "The Super Block".

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use uuid::Uuid;

/// Where it begins in the file, and its length.
const OFFSET: u64 = 1024;
const LENGTH: usize = 1024;
const MAGIC: u16 = 0xef53;
/// `s_feature_incompat`: the journal has to be replayed; the journal of another file system; block numbers of 64 bits.
const RECOVER: u32 = 0x4;
const JOURNAL_DEVICE: u32 = 0x8;
const WIDE: u32 = 0x80;
/// `s_state`: errors were found.
const ERRORS: u16 = 0x2;
/// The largest shift of 1 KiB that makes a block: 64 KiB.
const BLOCK_SHIFT_MAX: u32 = 6;

/// An ext4 file system, as its superblock describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub uuid: Uuid,
    /// Of the file system; its file is at least as long.
    pub size_bytes: u64,
    /// Its journal holds what is not in its place yet.
    pub needs_recovery: bool,
    /// The kernel has found it damaged.
    pub has_errors: bool,
}

/// Why a file is no ext4 file system.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    #[error("there is no ext4 file system in it")]
    NotExt4,
    #[error("its ext4 file system has {size_bytes} bytes, and the file only {length}")]
    Short { size_bytes: u64, length: u64 },
    #[error("it cannot be read")]
    Read(#[source] io::Error),
}

impl Superblock {
    /// Reads a file's.
    ///
    /// # Errors
    /// When it is no ext4 file system or not all of one.
    pub fn read(file: &File) -> Result<Self, SuperblockError> {
        let mut bytes = [0; LENGTH];
        match file.read_exact_at(&mut bytes, OFFSET) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(SuperblockError::NotExt4),
            read => read.map_err(SuperblockError::Read)?,
        }
        let superblock = Self::parse(&bytes).ok_or(SuperblockError::NotExt4)?;
        let length = file.metadata().map_err(SuperblockError::Read)?.len();
        if length < superblock.size_bytes {
            return Err(SuperblockError::Short { size_bytes: superblock.size_bytes, length });
        }
        Ok(superblock)
    }

    fn parse(bytes: &[u8; LENGTH]) -> Option<Self> {
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (shift, incompatible) = (word(0x18), word(0x60));
        if short(0x38) != MAGIC || shift > BLOCK_SHIFT_MAX || incompatible & JOURNAL_DEVICE != 0 {
            return None;
        }
        let high = if incompatible & WIDE == 0 { 0 } else { word(0x150) };
        let blocks = u64::from(high) << 32 | u64::from(word(0x4));
        Some(Self {
            uuid: Uuid::from_slice(&bytes[0x68..0x78]).ok()?,
            size_bytes: blocks.checked_mul(1024 << shift)?,
            needs_recovery: incompatible & RECOVER != 0,
            has_errors: short(0x3a) & ERRORS != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::disk::create_disk;

    #[test]
    fn what_mke2fs_wrote_is_what_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let uuid = create_disk(&directory.path().join("templates"), &path, 64 << 20).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let superblock = Superblock::read(&file).unwrap();
        assert_eq!(superblock, Superblock { uuid, size_bytes: 64 << 20, needs_recovery: false, has_errors: false });
        file.set_len(32 << 20).unwrap();
        assert!(matches!(Superblock::read(&file), Err(SuperblockError::Short { .. })));
        file.set_len(1500).unwrap();
        assert!(matches!(Superblock::read(&file), Err(SuperblockError::NotExt4)));
    }

    #[test]
    fn nonsense_is_no_file_system() {
        assert_eq!(Superblock::parse(&[0; LENGTH]), None);
        let mut bytes = [0xff; LENGTH];
        bytes[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
        assert_eq!(Superblock::parse(&bytes), None);
    }
}
