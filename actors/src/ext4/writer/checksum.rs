//! The checksums of `metadata_csum`: which bytes each covers is said where its structure is written (kernel documentation,
//! filesystems/ext4, "Checksums").

/// CRC-32C as ext4 takes it: neither the seed nor the result is inverted, so that one result is the next one's seed.
pub(crate) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// What every checksum of a file system begins with.
pub(crate) fn of_file_system(uuid: &[u8; 16]) -> u32 {
    crc(!0, uuid)
}

/// What the checksums of an inode and of the blocks that it owns begin with: its number, and its generation, which is 0.
pub(crate) fn of_inode(file_system: u32, inode: u32) -> u32 {
    crc(crc(file_system, &inode.to_le_bytes()), &[0; 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_castagnoli_sum_without_inversions() {
        // RFC 3720, appendix B.4: 32 bytes of zeros.
        assert_eq!(!crc(!0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(crc(crc(7, b"ab"), b"cd"), crc(7, b"abcd"));
    }
}
