//! Little-endian numbers at fixed places of a structure, as everything in ext4 is but for its checksums' seeds.

pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The lower half.
pub(crate) const fn low16(value: u32) -> u16 {
    (value & 0xffff) as u16
}

/// The upper half.
pub(crate) const fn high16(value: u32) -> u16 {
    (value >> 16) as u16
}

/// The lower half.
pub(crate) const fn low32(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// The upper half.
pub(crate) const fn high32(value: u64) -> u32 {
    (value >> 32) as u32
}
