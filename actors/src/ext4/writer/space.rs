//! Which blocks are in use, and how blocks and inodes fall into groups. Knows nothing of what the blocks hold.

use crate::ext4::writer::BLOCK_BYTES;

/// Blocks, and inodes at most, of a group: one block of bitmap has a bit for each.
pub(in crate::ext4) const PER_GROUP: u32 = 8 * 4096;
/// Words of bitmap for a group.
const WORDS: usize = PER_GROUP as usize / 64;
/// Inodes in a block of inode table.
pub(in crate::ext4) const INODES_PER_BLOCK: u32 = 16;

/// A bit for every block: set if it is in use.
#[derive(Debug, Default)]
pub(in crate::ext4) struct Space {
    words: Vec<u64>,
}

impl Space {
    /// Takes blocks, or says which of them is taken already.
    pub(in crate::ext4) fn take(&mut self, start: u32, blocks: u32) -> Result<(), u32> {
        let (mut at, end) = (start as usize, start as usize + blocks as usize);
        if self.words.len() * 64 < end {
            self.words.resize(end.div_ceil(64), 0);
        }
        while at < end {
            let bit = at % 64;
            let count = (64 - bit).min(end - at);
            let mask = (u64::MAX >> (64 - count)) << bit;
            let word = &mut self.words[at / 64];
            let twice = *word & mask;
            if twice != 0 {
                let block = at / 64 * 64 + twice.trailing_zeros() as usize;
                return Err(u32::try_from(block).expect("it was a u32 before it was an index"));
            }
            *word |= mask;
            at += count;
        }
        Ok(())
    }

    /// One group's bitmap; blocks beyond the end of the file system count as used.
    pub(in crate::ext4) fn bitmap(&self, group: u32, geometry: &Geometry) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        let first = group as usize * WORDS;
        let words = self.words.get(first..).unwrap_or_default();
        for (place, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        fill(&mut bytes, geometry.blocks_in(group));
        bytes
    }
}

/// Sets all bits of a bitmap from this one on.
fn fill(bytes: &mut [u8; BLOCK_BYTES], from: u32) {
    let byte = from as usize / 8;
    if let Some(first) = bytes.get_mut(byte) {
        *first |= 0xff << (from % 8);
        bytes[byte + 1..].fill(0xff);
    }
}

/// How many bits are not set.
pub(in crate::ext4) fn zeros(bitmap: &[u8; BLOCK_BYTES]) -> u32 {
    bitmap.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word).count_zeros()).sum()
}

/// How the file system is divided. Bitmaps and inode tables lie behind one another at its end, those of all groups together:
/// `flex_bg` allows them anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ext4) struct Geometry {
    pub(in crate::ext4) groups: u32,
    pub(in crate::ext4) inodes_per_group: u32,
    /// Inodes that are used: the first ones.
    pub(in crate::ext4) inodes: u32,
    /// All blocks of the file system.
    pub(in crate::ext4) blocks: u32,
    /// Where the block bitmaps begin; the inode bitmaps follow.
    pub(in crate::ext4) bitmaps: u32,
    /// Where the inode tables begin.
    pub(in crate::ext4) tables: u32,
}

impl Geometry {
    /// The smallest that has so many inodes, and the bitmaps and tables from block `bitmaps` on. `None` where numbers have
    /// more than 32 bits.
    pub(in crate::ext4) fn new(bitmaps: u32, inodes: u32) -> Option<Self> {
        let mut groups = bitmaps.div_ceil(PER_GROUP).max(inodes.div_ceil(PER_GROUP)).max(1);
        loop {
            let inodes_per_group = inodes.div_ceil(groups).next_multiple_of(INODES_PER_BLOCK);
            let tables = bitmaps.checked_add(groups.checked_mul(2)?)?;
            let end = tables.checked_add(groups.checked_mul(inodes_per_group / INODES_PER_BLOCK)?)?;
            // A group that is there for its inodes alone has at least one block.
            let blocks = end.max((groups - 1).checked_mul(PER_GROUP)?.checked_add(1)?);
            let needed = blocks.div_ceil(PER_GROUP);
            if needed <= groups {
                groups.checked_mul(inodes_per_group)?;
                return Some(Self { groups, inodes_per_group, inodes, blocks, bitmaps, tables });
            }
            groups = needed;
        }
    }

    /// Blocks of a group: fewer in the last.
    pub(in crate::ext4) fn blocks_in(&self, group: u32) -> u32 {
        (self.blocks - group * PER_GROUP).min(PER_GROUP)
    }

    /// Used inodes of a group.
    pub(in crate::ext4) fn inodes_in(&self, group: u32) -> u32 {
        self.inodes.saturating_sub(group * self.inodes_per_group).min(self.inodes_per_group)
    }

    /// Blocks of a group's inode table.
    pub(in crate::ext4) fn table_blocks(&self) -> u32 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    /// One group's bitmap of inodes; what is beyond them counts as used.
    pub(in crate::ext4) fn inode_bitmap(&self, group: u32) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        let used = self.inodes_in(group);
        bytes[..used as usize / 8].fill(0xff);
        if !used.is_multiple_of(8) {
            bytes[used as usize / 8] = !(0xff << (used % 8));
        }
        fill(&mut bytes, self.inodes_per_group);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_taken_once() {
        let mut space = Space::default();
        space.take(0, 3).unwrap();
        space.take(60, 200).unwrap();
        space.take(3, 57).unwrap();
        space.take(5000, 0).unwrap();
        assert_eq!(space.take(300, 10).and_then(|()| space.take(290, 11)), Err(300));
        assert_eq!(space.take(259, 1), Err(259));
        assert_eq!(space.take(0, 1000), Err(0));
    }

    #[test]
    fn bitmaps_end_in_ones() {
        let mut space = Space::default();
        space.take(PER_GROUP, 9).unwrap();
        let geometry = Geometry { blocks: PER_GROUP + 20, groups: 2, ..Geometry::new(100, 27).unwrap() };
        assert_eq!(zeros(&space.bitmap(0, &geometry)), PER_GROUP);
        let last = space.bitmap(1, &geometry);
        assert_eq!((last[0], last[1], last[2], last[3]), (0xff, 1, 0xf0, 0xff));
        assert_eq!(zeros(&last), 11);
        let inodes = geometry.inode_bitmap(0);
        assert_eq!((inodes[2], inodes[3], inodes[4]), (0xff, 0x07, 0xff));
    }

    #[test]
    fn groups_are_as_few_as_will_do() {
        for (bitmaps, inodes) in [(70, 11), (32_765, 16), (32_764, 16), (PER_GROUP * 17 - 40, 900), (100, 4_000_000)] {
            let made = Geometry::new(bitmaps, inodes).unwrap();
            assert!(made.groups * made.inodes_per_group >= inodes, "{made:?}");
            assert!(made.inodes_per_group <= PER_GROUP && made.inodes_per_group.is_multiple_of(16), "{made:?}");
            assert_eq!(made.blocks.div_ceil(PER_GROUP), made.groups, "{made:?}");
            assert!(made.tables + made.groups * made.table_blocks() <= made.blocks, "{made:?}");
        }
        assert_eq!(Geometry::new(32_765, 16).unwrap().blocks, 32_765 + 3);
        assert_eq!(Geometry::new(32_766, 16).unwrap().groups, 2);
        assert!(Geometry::new(u32::MAX - 2, 11).is_none());
    }
}
