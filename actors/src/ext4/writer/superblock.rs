//! Superblock and group descriptors: what the file system says of itself. Written last, once everything that they count is there.
//!
//! Format: kernel documentation, filesystems/ext4, "Super Block" and "Block Group Descriptors"; fs/ext4/ext4.h.

use crate::ext4::writer::le::{low16, put16, put32};
use crate::ext4::writer::space::{Geometry, INODES_PER_BLOCK, PER_GROUP};
use crate::ext4::writer::{BLOCK_BYTES, checksum, inode};

/// Where the superblock begins, and its length, in bytes.
const OFFSET: usize = 1024;
const SIZE: usize = 1024;
/// Of a group's descriptor, in bytes: without the feature `64bit`.
const DESCRIPTOR: usize = 32;
/// All times in it, in seconds since 1970: fixed, so that equal trees give equal files.
pub(in crate::ext4) const EPOCH: u32 = 1_700_000_000;
/// `s_magic`
const MAGIC: u16 = 0xef53;
/// `s_feature_compat`: `ext_attr`, `dir_index`, and `sparse_super2`, which names the groups that have copies of the superblock:
/// none, so that contents may run through all groups.
const COMPATIBLE: u32 = 0x8 | 0x20 | 0x200;
/// `s_feature_incompat`: `filetype`, `extents`, `flex_bg`
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x200;
/// `s_feature_ro_compat`: `large_file`, `dir_nlink`, `extra_isize`, `metadata_csum`. No `huge_file`: no file has 2 TiB of blocks.
const READ_ONLY_COMPATIBLE: u32 = 0x2 | 0x20 | 0x40 | 0x400;
/// `bg_flags`: no inode of the group is used, and its bitmap was not written; the inode table holds zeros where it is not used.
const INODE_UNINIT: u16 = 0x1;
const INODE_ZEROED: u16 = 0x4;

/// What descriptors and superblock count.
#[derive(Debug, Clone, Copy)]
pub(in crate::ext4) struct Group {
    pub(in crate::ext4) free_blocks: u32,
    pub(in crate::ext4) directories: u32,
    /// Of its two bitmaps, lower half.
    pub(in crate::ext4) block_bitmap_sum: u32,
    pub(in crate::ext4) inode_bitmap_sum: u32,
}

/// The descriptors of all groups, in whole blocks.
pub(in crate::ext4) fn descriptors(geometry: &Geometry, groups: &[Group], file_system_seed: u32) -> Vec<u8> {
    let mut bytes = vec![0; (groups.len() * DESCRIPTOR).next_multiple_of(BLOCK_BYTES)];
    for ((number, group), place) in (0..).zip(groups).zip(bytes.chunks_exact_mut(DESCRIPTOR)) {
        let unused = geometry.inodes_per_group - geometry.inodes_in(number);
        let empty = unused == geometry.inodes_per_group;
        put32(place, 0x0, geometry.bitmaps + number);
        put32(place, 0x4, geometry.bitmaps + geometry.groups + number);
        put32(place, 0x8, geometry.tables + number * geometry.table_blocks());
        put16(place, 0xc, low16(group.free_blocks));
        put16(place, 0xe, low16(unused));
        put16(place, 0x10, low16(group.directories));
        put16(place, 0x12, INODE_ZEROED | if empty { INODE_UNINIT } else { 0 });
        put16(place, 0x18, low16(group.block_bitmap_sum));
        put16(place, 0x1a, low16(group.inode_bitmap_sum));
        // Used inodes are the first ones: all unused are at the table's end.
        put16(place, 0x1c, low16(unused));
        // Over the group's number and the descriptor with a checksum of 0; only half of it is kept.
        let sum = checksum::crc(checksum::crc(file_system_seed, &number.to_le_bytes()), place);
        put16(place, 0x1e, low16(sum));
    }
    bytes
}

/// The first block, with the superblock in it.
pub(in crate::ext4) fn first_block(
    geometry: &Geometry,
    groups: &[Group],
    uuid: &[u8; 16],
    label: &[u8],
) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[OFFSET..OFFSET + SIZE].copy_from_slice(&superblock(geometry, groups, uuid, label));
    block
}

fn superblock(geometry: &Geometry, groups: &[Group], uuid: &[u8; 16], label: &[u8]) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    let inodes = geometry.groups * geometry.inodes_per_group;
    let mut words = |values: &[(usize, u32)]| values.iter().for_each(|(at, value)| put32(&mut bytes, *at, *value));
    words(&[
        (0x0, inodes),
        (0x4, geometry.blocks),
        (0xc, groups.iter().map(|group| group.free_blocks).sum()),
        (0x10, inodes - geometry.inodes),
        // Block and cluster size: 1024 << 2.
        (0x18, 2),
        (0x1c, 2),
        (0x20, PER_GROUP),
        (0x24, PER_GROUP),
        (0x28, geometry.inodes_per_group),
        // Written, checked and made: then.
        (0x30, EPOCH),
        (0x40, EPOCH),
        (0x108, EPOCH),
        // `s_rev_level`: features, and inodes of any size.
        (0x4c, 1),
        (0x54, inode::FIRST),
        (0x5c, COMPATIBLE),
        (0x60, INCOMPATIBLE),
        (0x64, READ_ONLY_COMPATIBLE),
        // `s_default_mount_opts`: user attributes, access control lists.
        (0x100, 0x4 | 0x8),
        // `s_flags`: hashes are of signed bytes.
        (0x160, 0x1),
    ]);
    // `s_max_mnt_count`: no number of mounts asks for a check.
    put16(&mut bytes, 0x36, 0xffff);
    put16(&mut bytes, 0x38, MAGIC);
    // `s_state`: clean. `s_errors`: go on.
    put16(&mut bytes, 0x3a, 1);
    put16(&mut bytes, 0x3c, 1);
    put16(&mut bytes, 0x58, low16(4096 / INODES_PER_BLOCK));
    bytes[0x68..0x78].copy_from_slice(uuid);
    bytes[0x78..0x78 + label.len()].copy_from_slice(label);
    // `s_hash_seed`
    bytes[0xec..0xfc].copy_from_slice(uuid);
    bytes[0xfc] = crate::ext4::writer::hash::VERSION;
    put16(&mut bytes, 0x15c, inode::EXTRA);
    put16(&mut bytes, 0x15e, inode::EXTRA);
    // `s_log_groups_per_flex`: what mke2fs says. Nothing is ever allocated by it.
    bytes[0x174] = 4;
    // `s_checksum_type`: CRC-32C.
    bytes[0x175] = 1;
    let sum = checksum::crc(!0, &bytes[..0x3fc]);
    put32(&mut bytes, 0x3fc, sum);
    bytes
}
