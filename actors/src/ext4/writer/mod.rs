//! Writes ext4 file systems that are only ever mounted read-only, around contents that lie in their file already.
//!
//! Whoever has contents writes them into the file, from block [`DATA_START`] on, wherever they like; then a [`Builder`] is told
//! of every file and where its contents are, and writes everything else behind them, in one go. Nothing is moved or read. There
//! is no journal and no copy of the superblock, and blocks that nobody mentions are free.
//!
//! ```text
//! block  0           superblock (from byte 1024 on)
//!        1..         group descriptors, as many as there are; the rest of the area for them is free
//!        DATA_START  contents, by others
//!        data_end    directories, long symbolic links, extent trees, attributes
//!                    block bitmaps of all groups, inode bitmaps of all groups, inode tables of all groups
//! ```
//!
//! No root, no mount; `e2fsck -fn` judges the results in the tests. Bounds: 32-bit block numbers, and contents and metadata of
//! a little more than 1 TiB (64 blocks of descriptors).

mod acl;
pub(super) mod attributes;
mod builder;
mod checksum;
mod directory;
mod error;
mod extents;
mod finish;
mod hash;
mod inode;
mod le;
mod sink;
mod space;
mod superblock;
#[cfg(test)]
mod tests;
mod tree;

pub use builder::{Builder, Handle, Meta, Options, Special};
pub use error::WriterError;
pub use extents::Run;

/// Of a block, in bytes.
pub const BLOCK: u64 = 4096;
const BLOCK_BYTES: usize = 4096;
/// Blocks that are kept for group descriptors: for 8192 groups of 128 MiB.
const DESCRIPTOR_BLOCKS: u32 = 64;
/// The first block that contents may have.
pub const DATA_START: u32 = 1 + DESCRIPTOR_BLOCKS;
