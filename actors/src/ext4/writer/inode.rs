//! One inode, byte by byte.
//!
//! Format: kernel documentation, filesystems/ext4, "Index Nodes"; fs/ext4/ext4.h, `struct ext4_inode`.

use crate::ext4::writer::attributes::IN_INODE;
use crate::ext4::writer::checksum;
use crate::ext4::writer::le::{high16, high32, low16, low32, put16, put32};

/// Of an inode, in bytes (`s_inode_size`).
pub(in crate::ext4) const SIZE: usize = 256;
/// Bytes behind the first 128 that have a meaning (`i_extra_isize`): up to and with `i_projid`.
pub(in crate::ext4) const EXTRA: u16 = 32;
/// Of the root directory (`EXT4_ROOT_INO`).
pub(in crate::ext4) const ROOT: u32 = 2;
/// The first that is not reserved (`EXT4_GOOD_OLD_FIRST_INO`): lost+found's.
pub(in crate::ext4) const FIRST: u32 = 11;
/// `i_flags`: the directory has a hash tree; blocks are listed as extents.
pub(in crate::ext4) const INDEXED: u32 = 0x1000;
pub(in crate::ext4) const EXTENTS: u32 = 0x8_0000;
/// `i_mode`, its type.
pub(in crate::ext4) const FIFO: u16 = 0x1000;
pub(in crate::ext4) const CHARACTER: u16 = 0x2000;
pub(in crate::ext4) const DIRECTORY: u16 = 0x4000;
pub(in crate::ext4) const BLOCK_DEVICE: u16 = 0x6000;
pub(in crate::ext4) const REGULAR: u16 = 0x8000;
pub(in crate::ext4) const SYMLINK: u16 = 0xa000;
pub(in crate::ext4) const SOCKET: u16 = 0xc000;
/// The earliest and the latest second that are stored: the least that 32 signed bits can say, and 2310-04-04. Two more bits
/// reach to 2446, but e2fsck takes some of the later times for ones before 1970, which an old kernel wrote wrongly
/// (e2fsck/pass1.c, `check_inode_extra_negative_epoch`).
const SECONDS: (i64, i64) = (i32::MIN as i64, (2 << 32) + i32::MAX as i64);

/// A point in time as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ext4) struct Time {
    /// The lower 32 bits of the seconds since 1970, signed.
    seconds: u32,
    /// Nanoseconds, and below them two bits of how often 2^32 seconds are added.
    extra: u32,
}

impl Time {
    /// What cannot be stored becomes the nearest that can, as the kernel has it (`timestamp_truncate`).
    pub(in crate::ext4) fn new((seconds, nanoseconds): (i64, u32)) -> Self {
        let stored = seconds.clamp(SECONDS.0, SECONDS.1);
        let nanoseconds = if stored == seconds { nanoseconds.min(999_999_999) } else { 0 };
        let low = low32(stored.cast_unsigned());
        // What has to be added to the signed lower half.
        let epoch = high32((stored - i64::from(low.cast_signed())).cast_unsigned()) & 3;
        Self { seconds: low, extra: nanoseconds << 2 | epoch }
    }
}

/// All that is written of an inode.
#[derive(Debug)]
pub(in crate::ext4) struct Inode {
    pub(in crate::ext4) mode: u16,
    pub(in crate::ext4) uid: u32,
    pub(in crate::ext4) gid: u32,
    pub(in crate::ext4) time: Time,
    pub(in crate::ext4) links: u16,
    pub(in crate::ext4) size: u64,
    /// Of contents, extent tree and attributes, in blocks of the file system, which has at most 2^28.
    pub(in crate::ext4) blocks: u32,
    pub(in crate::ext4) flags: u32,
    /// `i_block`
    pub(in crate::ext4) content: [u8; 60],
    /// The block of its attributes, or 0.
    pub(in crate::ext4) attribute_block: u32,
    pub(in crate::ext4) attributes: [u8; IN_INODE],
}

impl Inode {
    /// The bytes of the inode of this number.
    pub(in crate::ext4) fn encode(&self, number: u32, file_system_seed: u32) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let Time { seconds, extra } = self.time;
        put16(&mut bytes, 0x0, self.mode);
        put16(&mut bytes, 0x2, low16(self.uid));
        put32(&mut bytes, 0x4, low32(self.size));
        for at in [0x8, 0xc, 0x10, 0x90] {
            put32(&mut bytes, at, seconds);
        }
        put16(&mut bytes, 0x18, low16(self.gid));
        put16(&mut bytes, 0x1a, self.links);
        // In sectors of 512 bytes.
        put32(&mut bytes, 0x1c, self.blocks * 8);
        put32(&mut bytes, 0x20, self.flags);
        bytes[0x28..0x64].copy_from_slice(&self.content);
        put32(&mut bytes, 0x68, self.attribute_block);
        put32(&mut bytes, 0x6c, high32(self.size));
        put16(&mut bytes, 0x78, high16(self.uid));
        put16(&mut bytes, 0x7a, high16(self.gid));
        put16(&mut bytes, 0x80, EXTRA);
        for at in [0x84, 0x88, 0x8c, 0x94] {
            put32(&mut bytes, at, extra);
        }
        bytes[SIZE - IN_INODE..].copy_from_slice(&self.attributes);
        seal(&mut bytes, number, file_system_seed);
        bytes
    }
}

/// A reserved inode that is not used.
pub(in crate::ext4) fn unused(number: u32, file_system_seed: u32) -> [u8; SIZE] {
    let mut bytes = [0; SIZE];
    // Or the checksum's upper half would have no place.
    put16(&mut bytes, 0x80, EXTRA);
    seal(&mut bytes, number, file_system_seed);
    bytes
}

/// The checksum, taken while its own two places are 0.
fn seal(bytes: &mut [u8; SIZE], number: u32, file_system_seed: u32) {
    let sum = checksum::crc(checksum::of_inode(file_system_seed, number), bytes);
    put16(bytes, 0x7c, low16(sum));
    put16(bytes, 0x82, high16(sum));
}

/// A device's numbers in `i_block`: small ones in the first word as ever, larger ones in the second
/// (linux/kdev_t.h, `old_encode_dev` and `new_encode_dev`). `None` where they have more than 12 and 20 bits.
pub(in crate::ext4) fn device(major: u32, minor: u32) -> Option<[u8; 60]> {
    let mut content = [0; 60];
    if major < 1 << 8 && minor < 1 << 8 {
        put32(&mut content, 0, major << 8 | minor);
    } else if major < 1 << 12 && minor < 1 << 20 {
        put32(&mut content, 4, minor & 0xff | major << 8 | (minor & !0xff) << 12);
    } else {
        return None;
    }
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ext4_decode_extra_time`
    fn decoded(time: Time) -> (i64, u32) {
        (i64::from(time.seconds.cast_signed()) + (i64::from(time.extra & 3) << 32), time.extra >> 2)
    }

    #[test]
    fn times_survive() {
        let whole = [0, 1, -1, i64::from(i32::MIN), i64::from(i32::MAX), 1 << 31, 1 << 32, SECONDS.1, 5_000_000_000];
        for seconds in whole {
            assert_eq!(decoded(Time::new((seconds, 999_999_999))), (seconds, 999_999_999));
        }
        assert_eq!(decoded(Time::new((i64::MIN, 5))), (SECONDS.0, 0));
        assert_eq!(decoded(Time::new((SECONDS.1 + 1, 5))), (SECONDS.1, 0));
    }

    #[test]
    fn devices_have_twelve_and_twenty_bits() {
        assert_eq!(device(1, 3).unwrap()[..8], [3, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(device(259, 70_000).unwrap()[..8], [0, 0, 0, 0, 0x70, 0x03, 0x11, 0x11]);
        assert!(device(4095, 0xf_ffff).is_some() && device(4096, 0).is_none() && device(0, 1 << 20).is_none());
    }
}
