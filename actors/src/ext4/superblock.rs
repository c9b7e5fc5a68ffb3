//! What an ext4 file says of itself, in its superblock: for files that somebody else made. Reads; writes nothing.
//!
//! Layout: kernel documentation, "ext4 Data Structures and Algorithms", "The Super Block".

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use uuid::Uuid;

/// Where it begins in the file, and its length, in bytes.
const OFFSET: u64 = 1024;
const LENGTH: usize = 1024;
/// `s_magic`
const MAGIC: u16 = 0xef53;
/// `s_feature_incompat`: the journal has to be replayed; it is the journal of another file system; counts have 64 bits.
const RECOVER: u32 = 0x4;
const JOURNAL_DEVICE: u32 = 0x8;
const WIDE: u32 = 0x80;
/// `s_state`: unmounted cleanly; errors were found.
const VALID: u16 = 0x1;
const ERRORS: u16 = 0x2;
/// The largest shift of 1 KiB that makes a block at all: 64 KiB.
const BLOCK_SHIFT_MAX: u32 = 6;
/// Blocks larger than a page of x86 cannot be mounted, in bytes.
const BLOCK_MAX: u32 = 4096;

/// An ext4 file system, as its superblock describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub uuid: Uuid,
    /// Of the file system; its file is at least as long.
    pub size_bytes: u64,
    /// Of a block, in bytes.
    pub block_bytes: u32,
    /// It was not unmounted cleanly, or is mounted now.
    pub unclean: bool,
    /// The kernel has found it damaged.
    pub damaged: bool,
}

/// Why a file is no file system that can be used.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    #[error("it is no ext4 file system")]
    NotExt4,
    #[error("it is cut off: the file has {file} bytes, the file system {size}")]
    Truncated { file: u64, size: u64 },
    #[error("its journal was not written back: it was copied while it was mounted, or never unmounted")]
    Unclean,
    #[error("the kernel has noted errors in it")]
    Damaged,
    #[error("its blocks are larger than {BLOCK_MAX} bytes")]
    BlockSize,
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
        let file = file.metadata().map_err(SuperblockError::Read)?.len();
        if file < superblock.size_bytes {
            return Err(SuperblockError::Truncated { file, size: superblock.size_bytes });
        }
        Ok(superblock)
    }

    /// Passes one that can be mounted read-only as it is: nobody could replay its journal.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn mountable(self) -> Result<Self, SuperblockError> {
        match self {
            Self { unclean: true, .. } => Err(SuperblockError::Unclean),
            Self { damaged: true, .. } => Err(SuperblockError::Damaged),
            Self { block_bytes, .. } if block_bytes > BLOCK_MAX => Err(SuperblockError::BlockSize),
            whole => Ok(whole),
        }
    }

    fn parse(bytes: &[u8; LENGTH]) -> Option<Self> {
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (shift, incompatible, state) = (word(0x18), word(0x60), short(0x3a));
        if short(0x38) != MAGIC || shift > BLOCK_SHIFT_MAX || incompatible & JOURNAL_DEVICE != 0 {
            return None;
        }
        let high = if incompatible & WIDE == 0 { 0 } else { word(0x150) };
        let blocks = u64::from(high) << 32 | u64::from(word(0x4));
        let block_bytes = 1024_u32 << shift;
        Some(Self {
            uuid: Uuid::from_slice(&bytes[0x68..0x78]).ok()?,
            size_bytes: blocks.checked_mul(block_bytes.into())?,
            block_bytes,
            unclean: incompatible & RECOVER != 0 || state & VALID == 0,
            damaged: state & ERRORS != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::disk::create_disk;
    use crate::ext4::{Label, Meta, Tree, build};

    type Change = fn(&mut [u8; LENGTH]);

    /// Of a file system of ours: e2fsck judges the writer in its own tests.
    fn real() -> ([u8; LENGTH], Superblock) {
        let directory = tempfile::tempdir().unwrap();
        let mut tree = Tree::create(directory.path()).unwrap();
        tree.file(b"f", Meta::root(0o644), &mut &b"x"[..]).unwrap();
        let path = directory.path().join("fs");
        let built = build(tree, &path, Label("test")).unwrap();
        let file = File::open(&path).unwrap();
        let superblock = Superblock::read(&file).unwrap();
        assert_eq!((superblock.uuid, superblock.size_bytes), (built.uuid, built.size_bytes));
        assert!(superblock.mountable().is_ok());
        let mut bytes = [0; LENGTH];
        file.read_exact_at(&mut bytes, OFFSET).unwrap();
        (bytes, superblock)
    }

    #[test]
    fn what_mke2fs_wrote_is_what_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let uuid = create_disk(&directory.path().join("templates"), &path, 64 << 20).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let superblock = Superblock::read(&file).unwrap().mountable().unwrap();
        assert_eq!((superblock.uuid, superblock.size_bytes, superblock.block_bytes), (uuid, 64 << 20, 4096));
        file.set_len(32 << 20).unwrap();
        assert!(matches!(Superblock::read(&file), Err(SuperblockError::Truncated { .. })));
        file.set_len(1500).unwrap();
        assert!(matches!(Superblock::read(&file), Err(SuperblockError::NotExt4)));
    }

    #[test]
    fn what_must_not_be_mounted_is_refused() {
        let (whole, superblock) = real();
        assert_eq!(Superblock::parse(&whole), Some(superblock));
        let refused = |change: Change| {
            let mut bytes = whole;
            change(&mut bytes);
            Superblock::parse(&bytes).map(Superblock::mountable)
        };
        assert!(refused(|bytes| bytes[0x38] ^= 1).is_none());
        assert!(refused(|bytes| bytes[0x18] = 200).is_none());
        assert!(matches!(refused(|bytes| bytes[0x60] |= 4), Some(Err(SuperblockError::Unclean))));
        assert!(matches!(refused(|bytes| bytes[0x3a] = 0), Some(Err(SuperblockError::Unclean))));
        assert!(matches!(refused(|bytes| bytes[0x3a] = 3), Some(Err(SuperblockError::Damaged))));
        assert!(matches!(refused(|bytes| bytes[0x18] = 4), Some(Err(SuperblockError::BlockSize))));
        assert!(Superblock::parse(&[0; LENGTH]).is_none());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), LENGTH)) {
            let mut bytes: [u8; LENGTH] = bytes.try_into().unwrap();
            bytes[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
            drop(Superblock::parse(&bytes).map(Superblock::mountable));
        }
    }
}
