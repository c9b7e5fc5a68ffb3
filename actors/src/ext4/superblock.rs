//! What an ext4 file system says of itself in its superblock. Pure: bytes in, facts out; for files that somebody else made.
//!
//! Offsets and flags: Documentation/filesystems/ext4/super.rst of the kernel.

use uuid::Uuid;

/// Where it begins, in bytes.
pub const OFFSET: u64 = 1024;
/// How long it is, in bytes.
pub const LENGTH: usize = 1024;
/// `s_magic`
const MAGIC: u16 = 0xEF53;
/// `s_state`: unmounted cleanly.
const STATE_VALID: u16 = 1;
/// `s_state`: the kernel has seen errors in it.
const STATE_ERRORS: u16 = 2;
/// `s_feature_incompat`: the journal holds what the file system does not.
const NEEDS_RECOVERY: u32 = 0x4;
/// `s_feature_incompat`: it is the journal of another file system.
const JOURNAL_DEVICE: u32 = 0x8;
/// `s_feature_incompat`: block counts have 64 bits.
const BITS_64: u32 = 0x80;
/// Blocks larger than a page of x86 cannot be mounted (4096 bytes; `s_log_block_size` counts from 1024).
const LOG_BLOCK_SIZE_MAX: u32 = 2;

/// A file system that can be mounted read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    pub uuid: Uuid,
    /// Bytes of the file system; its file is at least as long.
    pub size_bytes: u64,
}

/// Why it cannot be an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    #[error("it is no ext4 file system")]
    NotExt4,
    #[error("its journal was not written back: it was copied while it was mounted, or never unmounted")]
    Unclean,
    #[error("the kernel has noted errors in it")]
    Errors,
    #[error("its blocks are larger than 4096 bytes")]
    BlockSize,
    #[error("it is cut off: the file has {file} bytes, the file system {size}")]
    Truncated { file: u64, size: u64 },
}

impl Superblock {
    /// Reads the [`LENGTH`] bytes at [`OFFSET`] of a file of `file` bytes.
    ///
    /// # Errors
    /// When it is no ext4 file system, or one that must not be mounted as it is.
    pub fn parse(bytes: &[u8; LENGTH], file: u64) -> Result<Self, SuperblockError> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (incompatible, log_block_size) = (u32_at(0x60), u32_at(0x18));
        if u16_at(0x38) != MAGIC || incompatible & JOURNAL_DEVICE != 0 {
            return Err(SuperblockError::NotExt4);
        }
        if log_block_size > LOG_BLOCK_SIZE_MAX {
            return Err(SuperblockError::BlockSize);
        }
        let high = if incompatible & BITS_64 == 0 { 0 } else { u64::from(u32_at(0x150)) };
        let size_bytes = (u128::from(high << 32 | u64::from(u32_at(0x4)))) << (10 + log_block_size);
        let size_bytes = u64::try_from(size_bytes).unwrap_or(u64::MAX);
        if size_bytes > file {
            return Err(SuperblockError::Truncated { file, size: size_bytes });
        }
        let state = u16_at(0x3A);
        if incompatible & NEEDS_RECOVERY != 0 || state & STATE_VALID == 0 {
            return Err(SuperblockError::Unclean);
        }
        if state & STATE_ERRORS != 0 {
            return Err(SuperblockError::Errors);
        }
        let uuid: [u8; 16] = bytes[0x68..0x78].try_into().expect("16 bytes");
        Ok(Self { uuid: Uuid::from_bytes(uuid), size_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::{Label, Meta, Tree, build};
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    type Change = fn(&mut [u8; LENGTH]);
    type Expected = fn(&SuperblockError) -> bool;

    /// Of a file system of ours: the writer and this reader agree through e2fsck, which judges the one in its own tests.
    fn real() -> ([u8; LENGTH], u64, Uuid) {
        let directory = tempfile::tempdir().unwrap();
        let mut tree = Tree::create(directory.path()).unwrap();
        tree.file(b"f", Meta::root(0o644), &mut &b"x"[..]).unwrap();
        let path = directory.path().join("fs");
        let built = build(&tree, &path, Label("test")).unwrap();
        let mut bytes = [0; LENGTH];
        File::open(&path).unwrap().read_exact_at(&mut bytes, OFFSET).unwrap();
        (bytes, built.size_bytes, built.uuid)
    }

    #[test]
    fn a_real_one_is_read() {
        let (bytes, size, uuid) = real();
        assert_eq!(Superblock::parse(&bytes, size), Ok(Superblock { uuid, size_bytes: size }));
    }

    #[test]
    fn what_must_not_be_mounted_is_refused() {
        let (whole, size, _) = real();
        let changes: [(Change, Expected); 6] = [
            (|bytes| bytes[0x38] ^= 1, |error| *error == SuperblockError::NotExt4),
            (|bytes| bytes[0x60] |= 0x4, |error| *error == SuperblockError::Unclean),
            (|bytes| bytes[0x3A] = 0, |error| *error == SuperblockError::Unclean),
            (|bytes| bytes[0x3A] = 3, |error| *error == SuperblockError::Errors),
            (|bytes| bytes[0x18] = 200, |error| *error == SuperblockError::BlockSize),
            (|bytes| bytes[0x153] = 0xff, |error| matches!(error, SuperblockError::Truncated { .. })),
        ];
        for (number, (change, is_it)) in changes.iter().enumerate() {
            let mut bytes = whole;
            change(&mut bytes);
            let error = Superblock::parse(&bytes, size).err();
            // The high half of the count only counts where the file system says that it has one.
            let skipped = number == 5 && u32::from_le_bytes(whole[0x60..0x64].try_into().unwrap()) & BITS_64 == 0;
            assert!(skipped || error.as_ref().is_some_and(is_it), "{number}: {error:?}");
        }
        assert!(matches!(Superblock::parse(&whole, size - 1), Err(SuperblockError::Truncated { .. })));
        assert_eq!(Superblock::parse(&[0; LENGTH], size), Err(SuperblockError::NotExt4));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), LENGTH), file: u64) {
            let mut bytes: [u8; LENGTH] = bytes.try_into().unwrap();
            bytes[0x38..0x3A].copy_from_slice(&MAGIC.to_le_bytes());
            drop(Superblock::parse(&bytes, file));
        }
    }
}
