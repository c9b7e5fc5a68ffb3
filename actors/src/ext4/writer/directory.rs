//! The blocks of one directory: a single one in the order of names; or a hash tree, its leaves packed in the order of hashes.
//!
//! Format: kernel documentation, filesystems/ext4, "Directory Entries" and "Hash Tree Directories"; fs/ext4/namei.c.

use crate::ext4::writer::hash::{self, Hasher};
use crate::ext4::writer::le::{low16, low32, put16, put32};
use crate::ext4::writer::sink::Sink;
use crate::ext4::writer::{BLOCK_BYTES, checksum};
use std::io;
use std::ops::Range;

/// What is before a name (`struct ext4_dir_entry_2`), in bytes.
const ENTRY: usize = 8;
/// The checksum at a block's end, which looks like an entry without a name (`struct ext4_dir_entry_tail`).
const TAIL: usize = 12;
/// `EXT4_FT_DIR_CSUM`
const TAIL_TYPE: u8 = 0xde;
/// What a leaf has room for.
const LEAF: usize = BLOCK_BYTES - TAIL;
/// `.` and `..`
const DOTS: usize = 24;
/// Of an index entry, and of the checksum of an index block (`struct dx_tail`).
const INDEX_ENTRY: usize = 8;
/// Before the index entries of the root (`struct dx_root`): two entries and `struct dx_root_info`.
const ROOT_HEADER: usize = DOTS + 8;
/// Before those of the other index blocks (`struct dx_node`): an entry that covers the block.
const NODE_HEADER: usize = ENTRY;
/// How many index entries a block holds; the first one's hash makes room for the counts.
const ROOT_LIMIT: usize = (BLOCK_BYTES - ROOT_HEADER) / INDEX_ENTRY - 1;
const NODE_LIMIT: usize = (BLOCK_BYTES - NODE_HEADER) / INDEX_ENTRY - 1;
/// Leaves of the largest directory: more levels would need `large_dir`.
pub(in crate::ext4) const LEAVES_MAX: usize = ROOT_LIMIT * NODE_LIMIT;
/// `file_type` of directories.
pub(in crate::ext4) const DIRECTORY: u8 = 2;

/// An entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ext4) struct Child<'a> {
    pub(in crate::ext4) name: &'a [u8],
    pub(in crate::ext4) inode: u32,
    /// `file_type`: `EXT4_FT_*`
    pub(in crate::ext4) kind: u8,
}

impl Child<'_> {
    fn size(&self) -> usize {
        ENTRY + self.name.len().next_multiple_of(4)
    }
}

/// Which directory, and what its checksums and hashes begin with.
#[derive(Debug, Clone, Copy)]
pub(in crate::ext4) struct Directory {
    pub(in crate::ext4) inode: u32,
    pub(in crate::ext4) parent: u32,
    pub(in crate::ext4) seed: u32,
    pub(in crate::ext4) hasher: Hasher,
}

/// Why a directory cannot be written.
#[derive(Debug)]
pub(in crate::ext4) enum Refused<'a> {
    Twice(&'a [u8]),
    TooLarge,
    Write(io::Error),
}

impl From<io::Error> for Refused<'_> {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl Directory {
    /// Writes it, and returns how many blocks it has; the first is the sink's next. One with more than one is a hash tree.
    pub(in crate::ext4) fn write<'a>(
        self,
        children: &mut [Child<'a>],
        sink: &mut Sink<'_>,
    ) -> Result<u32, Refused<'a>> {
        let size = DOTS + children.iter().map(Child::size).sum::<usize>();
        if size > LEAF {
            return self.write_tree(children, sink);
        }
        children.sort_unstable_by_key(|child| child.name);
        if let Some(twice) = children.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Refused::Twice(twice[0].name));
        }
        let dots = [self.dot(b"."), self.dot(b"..")];
        sink.push(&self.leaf(dots.iter().chain(&*children)))?;
        Ok(1)
    }

    fn dot<'a>(self, name: &'a [u8]) -> Child<'a> {
        Child { name, inode: if name.len() == 1 { self.inode } else { self.parent }, kind: DIRECTORY }
    }

    fn write_tree<'a>(self, children: &[Child<'a>], sink: &mut Sink<'_>) -> Result<u32, Refused<'a>> {
        let order = self.sorted(children).map_err(Refused::Twice)?;
        let leaves = pack(order.iter().map(|(hash, child)| (*hash, child.size())));
        if leaves.len() > LEAVES_MAX {
            return Err(Refused::TooLarge);
        }
        let nodes = if leaves.len() > ROOT_LIMIT { leaves.len().div_ceil(NODE_LIMIT) } else { 0 };
        // Root, index blocks, leaves: each knows where the next level begins.
        let first_leaf = 1 + nodes;
        let entry = |index: usize, hash: u32| (hash, low32(index as u64));
        let below = leaves.iter().enumerate().map(|(index, leaf)| entry(first_leaf + index, leaf.hash));
        let below: Vec<(u32, u32)> = below.collect();
        if nodes == 0 {
            sink.push(&self.root(&below, 0))?;
        } else {
            let parts = || below.chunks(NODE_LIMIT);
            let above: Vec<_> = parts().enumerate().map(|(index, part)| entry(1 + index, part[0].0)).collect();
            sink.push(&self.root(&above, 1))?;
            for part in parts() {
                sink.push(&self.node(part))?;
            }
        }
        for leaf in &leaves {
            sink.push(&self.leaf(order[leaf.children.clone()].iter().map(|(_, child)| child)))?;
        }
        Ok(low32((first_leaf + leaves.len()) as u64))
    }

    /// In the order of hashes; a name that is there twice is an error.
    fn sorted<'a>(self, children: &[Child<'a>]) -> Result<Vec<(u32, Child<'a>)>, &'a [u8]> {
        let mut order: Vec<_> = children.iter().map(|child| (self.hasher.hash(child.name), *child)).collect();
        order.sort_unstable_by_key(|(hash, child)| (*hash, child.name));
        match order.windows(2).find(|pair| pair[0].1.name == pair[1].1.name) {
            Some(twice) => Err(twice[0].1.name),
            None => Ok(order),
        }
    }

    /// A block of entries, of which there is one at least. The last one reaches to the checksum.
    fn leaf<'b, 'a: 'b>(self, children: impl Iterator<Item = &'b Child<'a>>) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        let (mut at, mut last) = (0, 0);
        for child in children {
            last = at;
            at += child.size();
            put_entry(&mut bytes[last..], child, at - last);
        }
        put16(&mut bytes, last + 4, low16(low32((LEAF - last) as u64)));
        let sum = checksum::crc(self.seed, &bytes[..LEAF]);
        put16(&mut bytes, LEAF + 4, low16(low32(TAIL as u64)));
        bytes[LEAF + 7] = TAIL_TYPE;
        put32(&mut bytes, LEAF + 8, sum);
        bytes
    }

    /// The tree's root, which old readers take for a block with two entries.
    fn root(self, entries: &[(u32, u32)], levels: u8) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        put_entry(&mut bytes, &self.dot(b"."), 12);
        put_entry(&mut bytes[12..], &self.dot(b".."), BLOCK_BYTES - 12);
        bytes[DOTS + 4] = hash::VERSION;
        // `info_length`
        bytes[DOTS + 5] = 8;
        bytes[DOTS + 6] = levels;
        self.index(bytes, ROOT_HEADER, ROOT_LIMIT, entries)
    }

    /// An index block below the root, which old readers take for an empty one.
    fn node(self, entries: &[(u32, u32)]) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        put16(&mut bytes, 4, low16(low32(BLOCK_BYTES as u64)));
        self.index(bytes, NODE_HEADER, NODE_LIMIT, entries)
    }

    fn index(
        self,
        mut bytes: [u8; BLOCK_BYTES],
        header: usize,
        limit: usize,
        entries: &[(u32, u32)],
    ) -> [u8; BLOCK_BYTES] {
        let places = bytes[header..].chunks_exact_mut(INDEX_ENTRY);
        for (place, (hash, block)) in places.zip(entries) {
            put32(place, 0, *hash);
            put32(place, 4, *block);
        }
        // In place of the first hash, which is all that is below the second.
        put16(&mut bytes, header, low16(low32(limit as u64)));
        put16(&mut bytes, header + 2, low16(low32(entries.len() as u64)));
        // Over what is used, and the tail with a checksum of 0.
        let used = checksum::crc(self.seed, &bytes[..header + entries.len() * INDEX_ENTRY]);
        let sum = checksum::crc(used, &[0; INDEX_ENTRY]);
        put32(&mut bytes, header + limit * INDEX_ENTRY + 4, sum);
        bytes
    }
}

fn put_entry(place: &mut [u8], child: &Child<'_>, length: usize) {
    put32(place, 0, child.inode);
    put16(place, 4, low16(low32(length as u64)));
    place[6] = u8::try_from(child.name.len()).expect("names have at most 255 bytes");
    place[7] = child.kind;
    place[ENTRY..ENTRY + child.name.len()].copy_from_slice(child.name);
}

/// Some children in the order of hashes, and the first one's hash.
#[derive(Debug, PartialEq, Eq)]
struct Leaf {
    /// Its lowest bit is set where the leaf before ends with the same hash: a reader that looks for it goes on here.
    hash: u32,
    children: Range<usize>,
}

/// Fills leaves one after the other with children, of which it is given hash and size.
fn pack(children: impl Iterator<Item = (u32, usize)>) -> Vec<Leaf> {
    let mut leaves: Vec<Leaf> = Vec::new();
    let (mut room, mut before) = (0, 0);
    for (index, (hash, size)) in children.enumerate() {
        if let Some(leaf) = leaves.last_mut().filter(|_| size <= room) {
            leaf.children.end = index + 1;
        } else {
            let continued = u32::from(index > 0 && hash == before);
            leaves.push(Leaf { hash: hash | continued, children: index..index + 1 });
            room = LEAF;
        }
        room -= size;
        before = hash;
    }
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_filled_and_tell_of_equal_hashes() {
        let leaf = |hash, children| Leaf { hash, children };
        // Two of these fill one to the last byte.
        let half = LEAF / 2;
        let packed = pack([(2, half), (4, half), (4, half), (4, half), (4, 264), (6, LEAF)].into_iter());
        assert_eq!(packed, [leaf(2, 0..2), leaf(5, 2..4), leaf(5, 4..5), leaf(6, 5..6)]);
        assert_eq!(LEAVES_MAX, 507 * 510);
    }
}
