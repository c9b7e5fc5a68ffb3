//! Extent trees: which blocks a file has. Four extents live in the inode; more of them in blocks of their own, packed full and
//! as shallow as can be, for e2fsck remarks on anything looser.
//!
//! Format: kernel documentation, filesystems/ext4, "Extent Tree".

use crate::ext4::writer::le::{low32, put16, put32};
use crate::ext4::writer::sink::Sink;
use crate::ext4::writer::{BLOCK, BLOCK_BYTES, checksum};
use std::io;

/// `EXT4_EXT_MAGIC`
const MAGIC: u16 = 0xf30a;
/// Of the header, an extent and an index entry, in bytes.
const ENTRY: usize = 12;
/// The blocks of one extent (`EXT_INIT_MAX_LEN`): more would say that they were never written.
const BLOCKS_MAX: u32 = 1 << 15;
/// Entries in `i_block`.
const IN_INODE: usize = 4;
/// Entries in a block; four bytes of checksum follow.
const IN_BLOCK: usize = (BLOCK_BYTES - ENTRY) / ENTRY;

/// A piece of a file whose blocks lie behind one another. All in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where in the file.
    pub logical: u32,
    /// Where in the file system.
    pub start: u32,
    /// How many.
    pub blocks: u32,
}

impl Run {
    /// All of a file of `size` bytes whose contents begin at block `start`.
    #[must_use]
    pub fn whole(start: u32, size: u64) -> Self {
        // What is too long for the file system is refused when it is added.
        Self { logical: 0, start, blocks: u32::try_from(size.div_ceil(BLOCK)).unwrap_or(u32::MAX) }
    }
}

/// Where an inode's blocks are.
#[derive(Debug, Clone, Copy)]
pub(in crate::ext4) struct Root {
    /// What goes into `i_block`.
    pub(in crate::ext4) bytes: [u8; 60],
    /// Blocks of the tree itself.
    pub(in crate::ext4) blocks: u32,
}

/// Puts runs together that continue one another, then cuts them into extents.
pub(in crate::ext4) fn cut(runs: impl IntoIterator<Item = Run>, into: &mut Vec<Run>) {
    into.clear();
    let mut push = |mut run: Run| {
        while run.blocks > 0 {
            let blocks = run.blocks.min(BLOCKS_MAX);
            into.push(Run { blocks, ..run });
            run = Run { logical: run.logical + blocks, start: run.start + blocks, blocks: run.blocks - blocks };
        }
    };
    let mut last = Run { logical: 0, start: 0, blocks: 0 };
    for run in runs {
        if last.logical + last.blocks == run.logical && last.start + last.blocks == run.start {
            last.blocks += run.blocks;
        } else {
            push(last);
            last = run;
        }
    }
    push(last);
}

/// True if they need blocks of their own.
pub(in crate::ext4) fn is_deep(extents: &[Run]) -> bool {
    extents.len() > IN_INODE
}

/// Of few extents.
pub(in crate::ext4) fn shallow(extents: &[Run]) -> Root {
    let mut bytes = [0; 60];
    node(&mut bytes, IN_INODE, 0, extents, leaf);
    Root { bytes, blocks: 0 }
}

/// Of many: writes the tree's blocks, which the inode whose seed this is owns.
pub(in crate::ext4) fn deep(extents: &[Run], seed: u32, sink: &mut Sink<'_>) -> io::Result<Root> {
    let mut blocks = 0;
    let mut depth = 0;
    let mut level = write_level(extents, depth, leaf, seed, sink)?;
    loop {
        blocks += level.len();
        depth += 1;
        if level.len() <= IN_INODE {
            let mut bytes = [0; 60];
            node(&mut bytes, IN_INODE, depth, &level, index);
            return Ok(Root { bytes, blocks: low32(blocks as u64) });
        }
        level = write_level(&level, depth, index, seed, sink)?;
    }
}

/// Writes the blocks of a level, and returns the index entries that lead to them: as runs of one block.
fn write_level(
    entries: &[Run],
    depth: u16,
    entry: fn(&mut [u8], &Run),
    seed: u32,
    sink: &mut Sink<'_>,
) -> io::Result<Vec<Run>> {
    let mut above = Vec::with_capacity(entries.len().div_ceil(IN_BLOCK));
    for part in entries.chunks(IN_BLOCK) {
        let mut bytes = [0; BLOCK_BYTES];
        node(&mut bytes, IN_BLOCK, depth, part, entry);
        let tail = ENTRY + IN_BLOCK * ENTRY;
        let sum = checksum::crc(seed, &bytes[..tail]);
        put32(&mut bytes, tail, sum);
        above.push(Run { logical: part[0].logical, start: sink.block()?, blocks: 1 });
        sink.push(&bytes)?;
    }
    Ok(above)
}

fn node(bytes: &mut [u8], room: usize, depth: u16, entries: &[Run], entry: fn(&mut [u8], &Run)) {
    let count = |count: usize| u16::try_from(count).expect("a block has room for 340");
    put16(bytes, 0x0, MAGIC);
    put16(bytes, 0x2, count(entries.len()));
    put16(bytes, 0x4, count(room));
    put16(bytes, 0x6, depth);
    for (place, run) in bytes[ENTRY..].chunks_exact_mut(ENTRY).zip(entries) {
        entry(place, run);
    }
}

/// `struct ext4_extent`
fn leaf(place: &mut [u8], run: &Run) {
    put32(place, 0x0, run.logical);
    put16(place, 0x4, u16::try_from(run.blocks).expect("cut to at most 32768"));
    put32(place, 0x8, run.start);
}

/// `struct ext4_extent_idx`
fn index(place: &mut [u8], run: &Run) {
    put32(place, 0x0, run.logical);
    put32(place, 0x4, run.start);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_joined_and_cut() {
        let run = |logical, start, blocks| Run { logical, start, blocks };
        let mut extents = Vec::new();
        cut([run(0, 100, 5), run(5, 105, 5), run(12, 112, 1), run(13, 200, 1)], &mut extents);
        assert_eq!(extents, [run(0, 100, 10), run(12, 112, 1), run(13, 200, 1)]);
        cut([run(0, 100, 65_537)], &mut extents);
        assert_eq!(extents, [run(0, 100, 32_768), run(32_768, 32_868, 32_768), run(65_536, 65_636, 1)]);
        cut([], &mut extents);
        assert!(extents.is_empty());
        assert_eq!(Run::whole(7, 4097), run(0, 7, 2));
    }
}
