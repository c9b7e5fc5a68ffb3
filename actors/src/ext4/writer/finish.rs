//! Writes a tree: first what inodes refer to, then bitmaps and inodes, superblock last. Each step goes forward through the file.

use crate::ext4::writer::attributes::{self, Item, Placed, SHARED_MAX};
use crate::ext4::writer::builder::LINKS_MAX;
use crate::ext4::writer::directory::{Child, DIRECTORY, Directory, Refused};
use crate::ext4::writer::error::WriterError;
use crate::ext4::writer::extents::{self, Root, Run};
use crate::ext4::writer::hash::Hasher;
use crate::ext4::writer::inode::{self, EXTENTS, FIRST, INDEXED, Inode, Time};
use crate::ext4::writer::le::{low16, low32};
use crate::ext4::writer::sink::Sink;
use crate::ext4::writer::space::{self, Geometry, INODES_PER_BLOCK, Space};
use crate::ext4::writer::superblock::{self, Group};
use crate::ext4::writer::tree::{Attribute, Kind, Node, ROOT, Tree};
use crate::ext4::writer::{BLOCK, BLOCK_BYTES, DATA_START, DESCRIPTOR_BLOCKS, checksum};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

const LOST_FOUND: &[u8] = b"lost+found";
/// Targets of symbolic links that live in `i_block`, with a zero behind them.
const FAST_SYMLINK: u16 = 59;
/// Groups whose descriptors have room in a block, and in all that are kept for them.
const GROUPS_PER_BLOCK: u32 = 4096 / 32;
const GROUPS_MAX: u32 = DESCRIPTOR_BLOCKS * GROUPS_PER_BLOCK;

/// See [`crate::ext4::writer::Builder::finish`]; attributes are sorted by node.
pub(in crate::ext4) fn finish(
    tree: &Tree,
    uuid: &[u8; 16],
    label: &[u8],
    file: &File,
    data_end: u32,
) -> Result<u64, WriterError> {
    let last = GROUPS_MAX * space::PER_GROUP;
    if !(DATA_START..=last).contains(&data_end) {
        return Err(WriterError::DataEnd { end: data_end, first: DATA_START, last });
    }
    let space = contents(tree, data_end)?;
    // Everything from there on is a hole until it is written.
    file.set_len(u64::from(data_end) * BLOCK).map_err(WriterError::Write)?;
    let mut writer = Writer {
        tree,
        file,
        data_end,
        seed: checksum::of_file_system(uuid),
        hasher: Hasher::new(uuid),
        sink: Sink::new(file, data_end),
        places: vec![Place::default(); tree.nodes.len()],
        lost_found: Place::default(),
        deep: HashMap::new(),
        attribute_blocks: HashMap::new(),
    };
    writer.directories()?;
    writer.symlinks_and_trees().map_err(WriterError::Write)?;
    writer.attributes()?;
    let geometry = writer.geometry()?;
    let groups = writer.groups(&geometry, space).map_err(WriterError::Write)?;
    writer.head(&geometry, &groups, uuid, label).map_err(WriterError::Write)
}

/// Takes the blocks of all contents.
fn contents(tree: &Tree, data_end: u32) -> Result<Space, WriterError> {
    let mut space = Space::default();
    for (node, number) in tree.nodes.iter().zip(0..) {
        for run in tree.runs_of(node) {
            if run.start < DATA_START || run.start + run.blocks > data_end {
                return Err(WriterError::Contents { path: tree.path(number), problem: "outside of the area for them" });
            }
            let overlap = |block| WriterError::Overlap { path: tree.path(number), block };
            space.take(run.start, run.blocks).map_err(overlap)?;
        }
    }
    Ok(space)
}

/// Where a directory or a symbolic link has its blocks.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    start: u32,
    blocks: u32,
}

#[derive(Debug)]
struct Writer<'a> {
    tree: &'a Tree,
    file: &'a File,
    data_end: u32,
    seed: u32,
    hasher: Hasher,
    sink: Sink<'a>,
    /// Of each node.
    places: Vec<Place>,
    lost_found: Place,
    /// Of nodes whose extents have blocks of their own.
    deep: HashMap<u32, Root>,
    /// Of nodes whose attributes have a block.
    attribute_blocks: HashMap<u32, u32>,
}

/// The root has its own number; the others follow lost+found in the order in which they came.
fn inode_of(node: u32) -> u32 {
    if node == ROOT { inode::ROOT } else { FIRST + node }
}

impl<'a> Writer<'a> {
    fn directories(&mut self) -> Result<(), WriterError> {
        let tree = self.tree;
        let (starts, order) = by_parent(tree);
        let parents = parents(tree);
        let mut children = Vec::new();
        for (number, node) in (0..).zip(&tree.nodes) {
            if !matches!(node.kind, Kind::Directory) {
                continue;
            }
            let index = number as usize;
            children.clear();
            children.extend(order[starts[index] as usize..starts[index + 1] as usize].iter().map(|entry| {
                let entry = &tree.entries[*entry as usize];
                Child {
                    name: tree.text(entry.name),
                    inode: inode_of(entry.node),
                    kind: file_type(tree.node(entry.node)),
                }
            }));
            if number == ROOT {
                children.push(Child { name: LOST_FOUND, inode: FIRST, kind: DIRECTORY });
            }
            let parent = parents.get(&number).copied().unwrap_or(ROOT);
            let place = self.directory(inode_of(number), inode_of(parent), &mut children);
            self.places[index] = place.map_err(|refused| match refused {
                Refused::Twice(name) => WriterError::Twice { path: tree.path_below(number, name) },
                Refused::TooLarge => WriterError::DirectorySize { path: tree.path(number) },
                Refused::Write(source) => WriterError::Write(source),
            })?;
        }
        self.lost_found = self.directory(FIRST, inode::ROOT, &mut []).map_err(|refused| match refused {
            Refused::Write(source) => WriterError::Write(source),
            Refused::Twice(_) | Refused::TooLarge => unreachable!("it is empty"),
        })?;
        Ok(())
    }

    fn directory<'b>(&mut self, inode: u32, parent: u32, children: &mut [Child<'b>]) -> Result<Place, Refused<'b>> {
        let seed = checksum::of_inode(self.seed, inode);
        let start = self.sink.block()?;
        let directory = Directory { inode, parent, seed, hasher: self.hasher };
        Ok(Place { start, blocks: directory.write(children, &mut self.sink)? })
    }

    /// Long targets, and extent trees that do not fit their inodes.
    fn symlinks_and_trees(&mut self) -> io::Result<()> {
        let tree = self.tree;
        let mut extents = Vec::new();
        for (number, node) in (0..).zip(&tree.nodes) {
            if let Kind::Symlink(target) = node.kind
                && target.length > FAST_SYMLINK
            {
                let mut bytes = [0; BLOCK_BYTES];
                bytes[..target.length.into()].copy_from_slice(tree.text(target));
                self.places[number as usize] = Place { start: self.sink.block()?, blocks: 1 };
                self.sink.push(&bytes)?;
            }
            self.extents_of(number, node, &mut extents);
            if extents::is_deep(&extents) {
                let seed = checksum::of_inode(self.seed, inode_of(number));
                let root = extents::deep(&extents, seed, &mut self.sink)?;
                self.deep.insert(number, root);
            }
        }
        Ok(())
    }

    fn extents_of(&self, number: u32, node: &Node, into: &mut Vec<Run>) {
        match node.kind {
            Kind::File { .. } => extents::cut(self.tree.runs_of(node).iter().copied(), into),
            Kind::Directory | Kind::Symlink(_) => extents::cut(self.places[number as usize].runs(), into),
            Kind::Device { .. } | Kind::Pipe => into.clear(),
        }
    }

    /// Blocks of attributes; nodes whose attributes are the same share one.
    fn attributes(&mut self) -> Result<(), WriterError> {
        let mut blocks: Vec<(Vec<Item<'a>>, Vec<u32>)> = Vec::new();
        let mut open: HashMap<Vec<Item<'a>>, usize> = HashMap::new();
        for of_node in self.tree.attributes.chunk_by(|one, other| one.node == other.node) {
            let node = of_node[0].node;
            let outside = self.placed(node, of_node)?.block;
            if outside.is_empty() {
                continue;
            }
            match open.get(&outside).map(|block| &mut blocks[*block].1) {
                Some(nodes) if nodes.len() < SHARED_MAX => nodes.push(node),
                Some(_) | None => {
                    open.insert(outside.clone(), blocks.len());
                    blocks.push((outside, vec![node]));
                }
            }
        }
        for (items, nodes) in blocks {
            let number = self.sink.block().map_err(WriterError::Write)?;
            let bytes = attributes::in_block(&items, nodes.len(), number, self.seed);
            self.sink.push(&bytes).map_err(WriterError::Write)?;
            self.attribute_blocks.extend(nodes.into_iter().map(|node| (node, number)));
        }
        Ok(())
    }

    /// A node's attributes, divided.
    fn placed(&self, node: u32, attributes: &[Attribute]) -> Result<Placed<'a>, WriterError> {
        let tree = self.tree;
        let item = |of: &Attribute| Item { prefix: of.prefix, name: tree.text(of.name), value: tree.text(of.value) };
        attributes::place(attributes.iter().map(item).collect()).map_err(|refused| {
            let path = tree.path(node);
            let name = |item: Item<'_>| attributes::whole_name(item.prefix, item.name);
            match refused {
                attributes::Refused::Twice(item) => {
                    WriterError::Attribute { path, name: name(item), problem: "it is there twice" }
                }
                attributes::Refused::NoRoom(item) => {
                    WriterError::NoRoom { path, name: name(item), size: item.value.len() }
                }
            }
        })
    }

    fn geometry(&self) -> Result<Geometry, WriterError> {
        let bitmaps = self.sink.block().map_err(WriterError::Write)?;
        // Node 0 has a reserved inode; lost+found takes the first of the others.
        let inodes = FIRST + low32(self.tree.nodes.len() as u64 - 1);
        let geometry = Geometry::new(bitmaps, inodes).filter(|geometry| geometry.groups <= GROUPS_MAX);
        let limit = u64::from(GROUPS_MAX) * u64::from(space::PER_GROUP);
        geometry.ok_or(WriterError::TooMuch { what: "blocks", limit })
    }

    /// Bitmaps and inodes.
    fn groups(&mut self, geometry: &Geometry, mut space: Space) -> io::Result<Vec<Group>> {
        let end = geometry.tables + geometry.groups * geometry.table_blocks();
        let taken = "contents lie between the two";
        space.take(0, 1 + geometry.groups.div_ceil(GROUPS_PER_BLOCK)).expect(taken);
        space.take(self.data_end, end - self.data_end).expect(taken);
        let mut groups = self.bitmaps(geometry, &space)?;
        self.inodes(geometry, &mut groups)?;
        self.sink.flush()?;
        Ok(groups)
    }

    /// Descriptors and superblock, which make a file system of it. Returns its length in bytes.
    fn head(&self, geometry: &Geometry, groups: &[Group], uuid: &[u8; 16], label: &[u8]) -> io::Result<u64> {
        let length = u64::from(geometry.blocks) * BLOCK;
        self.file.set_len(length)?;
        self.file.write_all_at(&superblock::descriptors(geometry, groups, self.seed), BLOCK)?;
        self.file.write_all_at(&superblock::first_block(geometry, groups, uuid, label), 0)?;
        Ok(length)
    }

    fn bitmaps(&mut self, geometry: &Geometry, space: &Space) -> io::Result<Vec<Group>> {
        let mut groups = Vec::with_capacity(geometry.groups as usize);
        for number in 0..geometry.groups {
            let bitmap = space.bitmap(number, geometry);
            let free_blocks = space::zeros(&bitmap);
            let block_bitmap_sum = checksum::crc(self.seed, &bitmap);
            groups.push(Group { free_blocks, block_bitmap_sum, directories: 0, inode_bitmap_sum: 0 });
            self.push_or_skip(&bitmap, free_blocks == space::PER_GROUP)?;
        }
        for (number, group) in (0..).zip(&mut groups) {
            let bitmap = geometry.inode_bitmap(number);
            group.inode_bitmap_sum = checksum::crc(self.seed, &bitmap[..geometry.inodes_per_group as usize / 8]);
            self.push_or_skip(&bitmap, geometry.inodes_in(number) == 0)?;
        }
        Ok(groups)
    }

    fn push_or_skip(&mut self, block: &[u8; BLOCK_BYTES], skip: bool) -> io::Result<()> {
        if skip { self.sink.skip(1) } else { self.sink.push(block) }
    }

    /// All tables are one, for they lie behind one another: inodes are written in the order of their numbers, and what is
    /// behind the last stays a hole.
    fn inodes(&mut self, geometry: &Geometry, groups: &mut [Group]) -> io::Result<()> {
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        let mut extents = Vec::new();
        for number in 1..=geometry.inodes {
            let node = match number {
                inode::ROOT => Some(ROOT),
                FIRST.. => number.checked_sub(FIRST).filter(|node| *node != ROOT),
                _ => None,
            };
            let bytes = match node {
                Some(node) => self.inode(node, &mut extents).encode(number, self.seed),
                None if number == FIRST => self.lost_found().encode(number, self.seed),
                None => inode::unused(number, self.seed),
            };
            if number == FIRST || node.is_some_and(|node| matches!(self.tree.node(node).kind, Kind::Directory)) {
                groups[((number - 1) / geometry.inodes_per_group) as usize].directories += 1;
            }
            block.extend_from_slice(&bytes);
            if number.is_multiple_of(INODES_PER_BLOCK) {
                self.sink.push(&block)?;
                block.clear();
            }
        }
        if !block.is_empty() {
            block.resize(BLOCK_BYTES, 0);
            self.sink.push(&block)?;
        }
        Ok(())
    }

    fn inode(&self, number: u32, extents: &mut Vec<Run>) -> Inode {
        let node = self.tree.node(number);
        let place = self.places[number as usize];
        self.extents_of(number, node, extents);
        let mut contents: u32 = extents.iter().map(|extent| extent.blocks).sum();
        let mut mapped = || {
            let root = self.deep.get(&number).copied().unwrap_or_else(|| extents::shallow(extents));
            contents += root.blocks;
            root.bytes
        };
        let (size, flags, content) = match node.kind {
            Kind::Directory => {
                let indexed = if place.blocks > 1 { INDEXED } else { 0 };
                (u64::from(place.blocks) * BLOCK, EXTENTS | indexed, mapped())
            }
            Kind::File { size, .. } => (size, EXTENTS, mapped()),
            Kind::Symlink(target) if target.length > FAST_SYMLINK => (target.length.into(), EXTENTS, mapped()),
            Kind::Symlink(target) => {
                let mut content = [0; 60];
                content[..target.length.into()].copy_from_slice(self.tree.text(target));
                (target.length.into(), 0, content)
            }
            Kind::Device { major, minor } => {
                (0, 0, inode::device(major, minor).expect("the builder has seen that the numbers fit"))
            }
            Kind::Pipe => (0, 0, [0; 60]),
        };
        // Of files, the builder takes no more; directories with more say 1 (`dir_nlink`).
        let links = if node.links > LINKS_MAX { 1 } else { low16(node.links) };
        let (attribute_block, attributes) = self.attributes_of(number);
        let blocks = contents + u32::from(attribute_block != 0);
        let Node { mode, uid, gid, time, .. } = *node;
        Inode { mode, uid, gid, time, links, size, blocks, flags, content, attribute_block, attributes }
    }

    fn attributes_of(&self, node: u32) -> (u32, [u8; attributes::IN_INODE]) {
        let of_node = if self.tree.attributes.is_empty() { &[] } else { self.tree.attributes_of(node) };
        if of_node.is_empty() {
            return (0, [0; attributes::IN_INODE]);
        }
        let inside = self.placed(node, of_node).expect("their blocks were written by the same rule").inode;
        (self.attribute_blocks.get(&node).copied().unwrap_or(0), attributes::in_inode(&inside))
    }

    fn lost_found(&self) -> Inode {
        let mut extents = Vec::new();
        extents::cut(self.lost_found.runs(), &mut extents);
        Inode {
            mode: inode::DIRECTORY | 0o700,
            uid: 0,
            gid: 0,
            time: Time::new((superblock::EPOCH.into(), 0)),
            links: 2,
            size: BLOCK,
            blocks: 1,
            flags: EXTENTS,
            content: extents::shallow(&extents).bytes,
            attribute_block: 0,
            attributes: [0; attributes::IN_INODE],
        }
    }
}

impl Place {
    fn runs(self) -> Option<Run> {
        (self.blocks > 0).then_some(Run { logical: 0, start: self.start, blocks: self.blocks })
    }
}

/// Entries in the order of their parents, and where each node's begin among them: those of a node end where the next one's
/// begin.
fn by_parent(tree: &Tree) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0_u32; tree.nodes.len() + 1];
    for entry in &tree.entries {
        starts[entry.parent as usize + 1] += 1;
    }
    for index in 1..starts.len() {
        starts[index] += starts[index - 1];
    }
    let mut next = starts.clone();
    let mut order = vec![0; tree.entries.len()];
    for (index, entry) in (0..).zip(&tree.entries) {
        let place = &mut next[entry.parent as usize];
        order[*place as usize] = index;
        *place += 1;
    }
    (starts, order)
}

/// The parents of directories, which have one each.
fn parents(tree: &Tree) -> HashMap<u32, u32> {
    let directories = tree.entries.iter().filter(|entry| matches!(tree.node(entry.node).kind, Kind::Directory));
    directories.map(|entry| (entry.node, entry.parent)).collect()
}

/// `EXT4_FT_*`
fn file_type(node: &Node) -> u8 {
    match node.mode & 0xf000 {
        inode::REGULAR => 1,
        inode::DIRECTORY => DIRECTORY,
        inode::CHARACTER => 3,
        inode::BLOCK_DEVICE => 4,
        inode::FIFO => 5,
        inode::SOCKET => 6,
        _ => 7,
    }
}
