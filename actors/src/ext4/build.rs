//! Turns a [`Tree`] into an ext4 file that is just large enough: it is only ever mounted read-only.

use super::tree::{Kind, Node, Special};
use super::{Ext4Error, Meta, Tree};
use mkext4::sink::{FileSink, RegionSink};
use mkext4::{FsBuilder, InodeCount, InodeHandle, Layout, Options, ROOT, SpecialKind};
use std::io;
use std::path::Path;
use uuid::Uuid;

const BLOCK: u64 = 4096;
/// The smallest journal that the kernel takes, in blocks (`JBD2_MIN_JOURNAL_BLOCKS`, linux/jbd2.h). It is never written, and a
/// hole in the file; mkext4 cannot leave it out.
const JOURNAL_BLOCKS: u32 = 1024;
/// Times in the superblock. Fixed, so that equal trees give equal files.
const EPOCH: i64 = 1_700_000_000;
/// Below this mkext4 finds no room for a journal, in bytes.
const SIZE_MIN: u64 = 32 << 20;
/// How often a layout that came out too small is tried again, each time 1/8 larger.
const ATTEMPTS: u32 = 6;

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// Follows from the contents: equal trees give equal file systems.
    pub uuid: Uuid,
    /// Length of the file; holes take no space.
    pub size_bytes: u64,
}

/// The file system's label; at most 16 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Label(pub &'static str);

/// Writes the file system. Where it fails, what is at `path` is worthless.
///
/// # Errors
/// When the tree cannot be laid out or the file not be written.
pub fn build(tree: &Tree, path: &Path, label: Label) -> Result<Built, Ext4Error> {
    build_as(tree, path, label, &tree.digest())
}

/// The same, of a tree whose contents somebody else's digest stands for already.
///
/// # Errors
/// As [`build`].
pub fn build_as(tree: &Tree, path: &Path, label: Label, digest: &[u8; 32]) -> Result<Built, Ext4Error> {
    check_lost_found(tree)?;
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    let uuid = uuid::Builder::from_custom_bytes(bytes).into_uuid();
    let (layout, files) = lay_out(tree, uuid, label)?;
    let size_bytes = layout.image_len();
    let mut sink = FileSink::create(path, size_bytes).map_err(|source| Ext4Error::write(path, source))?;
    write(tree, &layout, &files, &mut sink).map_err(|error| match error {
        mkext4::Error::Io(source) => Ext4Error::write(path, source),
        other => Ext4Error::Layout(other),
    })?;
    Ok(Built { uuid, size_bytes })
}

/// Every ext4 file system has this directory, and e2fsck puts into it what it finds. mkext4 makes it.
const LOST_FOUND: &str = "lost+found";

/// One that was copied from another ext4 file system is empty, and the same as ours.
fn check_lost_found(tree: &Tree) -> Result<(), Ext4Error> {
    let nodes = tree.nodes();
    let Kind::Directory(root) = &nodes[0].kind else { return Ok(()) };
    match root.get(LOST_FOUND).map(|name| &nodes[name.node].kind) {
        None => Ok(()),
        Some(Kind::Directory(children)) if children.is_empty() => Ok(()),
        Some(_) => Err(Ext4Error::Kind {
            path: LOST_FOUND.to_owned(),
            kind: "ext4 keeps an empty directory of its own there".to_owned(),
        }),
    }
}

/// Nodes of files with the handles they were given, in the order of the spool.
type Files = Vec<(usize, InodeHandle)>;

fn lay_out(tree: &Tree, uuid: Uuid, label: Label) -> Result<(Layout, Files), Ext4Error> {
    let mut size = estimate(tree);
    for attempt in 1.. {
        let (builder, files) = declare(tree, uuid, label, size).map_err(Ext4Error::Layout)?;
        match builder.seal() {
            Ok(layout) => return Ok((layout, files)),
            // "too small" has no variant of its own; anything else fails the last attempt too.
            Err(mkext4::Error::Invalid(_)) if attempt < ATTEMPTS => size = (size + size / 8).next_multiple_of(BLOCK),
            Err(error) => return Err(Ext4Error::Layout(error)),
        }
    }
    unreachable!("the last attempt returns")
}

/// A little more than what the tree takes: 1/64 for extent trees, index blocks and the like.
fn estimate(tree: &Tree) -> u64 {
    let mut blocks = u64::from(JOURNAL_BLOCKS) + 64;
    // Under each name: a hard link counts twice, which is rare and harmless; what was replaced does not count.
    tree.walk(|_, node| {
        blocks += match &node.kind {
            // An entry takes at most 8 + 255 bytes, rounded up to 4 (ext4_dir_entry_2).
            Kind::Directory(children) => {
                1 + children.keys().map(|name| (name.len() as u64 + 11) & !3).sum::<u64>() * 3 / 2 / BLOCK
            }
            Kind::File(spooled) => spooled.length.div_ceil(BLOCK),
            // Up to 59 bytes live in the inode.
            Kind::Symlink(target) => u64::from(target.len() > 59),
            Kind::Special(_) => 0,
        };
        blocks += u64::from(!node.attributes.is_empty());
    });
    blocks += u64::from(inodes(tree)) / 16;
    let size = (blocks + blocks / 64) * BLOCK;
    // Two bitmaps, and at worst a superblock copy with descriptors, for each group of 128 MiB.
    let groups = size.div_ceil(128 << 20);
    (size + groups * 8 * BLOCK).max(SIZE_MIN)
}

fn inodes(tree: &Tree) -> u32 {
    // Eleven are reserved (ext4's `s_first_ino`); groups round up by themselves.
    u32::try_from(tree.entries()).expect("NODES_MAX fits u32") + 32
}

fn declare(tree: &Tree, uuid: Uuid, label: Label, size: u64) -> mkext4::Result<(FsBuilder, Files)> {
    let mut options = Options::new(size, *uuid.as_bytes(), EPOCH);
    options.label = Some(label.0.to_owned());
    options.inodes = InodeCount::Exact(inodes(tree));
    options.reserved_percent = 0;
    options.journal_blocks = Some(JOURNAL_BLOCKS);
    let mut builder = FsBuilder::new(options)?;
    let nodes = tree.nodes();
    let mut handles: Vec<Option<InodeHandle>> = vec![None; nodes.len()];
    handles[0] = Some(ROOT);
    builder.set_meta(ROOT, converted(&nodes[0].meta))?;
    attributes(&mut builder, ROOT, &nodes[0])?;

    // Directories first, then the rest in the order of the spool: then the file is written from front to back while the spool
    // is read from front to back.
    let mut leaves = Vec::new();
    let mut stack = vec![(ROOT, 0)];
    while let Some((parent, index)) = stack.pop() {
        let Kind::Directory(children) = &nodes[index].kind else { continue };
        for (name, child) in children {
            if index == 0 && name == LOST_FOUND {
                continue;
            }
            let child = child.node;
            match &nodes[child].kind {
                Kind::Directory(_) => {
                    let handle = builder.mkdir(parent, name, converted(&nodes[child].meta))?;
                    attributes(&mut builder, handle, &nodes[child])?;
                    stack.push((handle, child));
                }
                Kind::File(_) | Kind::Symlink(_) | Kind::Special(_) => leaves.push((child, parent, name)),
            }
        }
    }
    leaves.sort_by_key(|(index, _, _)| *index);
    let mut files = Vec::new();
    for (index, parent, name) in leaves {
        if let Some(first) = handles[index] {
            builder.hardlink(parent, name, first)?;
            continue;
        }
        let node = &nodes[index];
        let handle = leaf(&mut builder, parent, name, node)?;
        attributes(&mut builder, handle, node)?;
        handles[index] = Some(handle);
        if matches!(&node.kind, Kind::File(spooled) if spooled.length > 0) {
            files.push((index, handle));
        }
    }
    Ok((builder, files))
}

fn leaf(builder: &mut FsBuilder, parent: InodeHandle, name: &str, node: &Node) -> mkext4::Result<InodeHandle> {
    let meta = converted(&node.meta);
    match &node.kind {
        Kind::Directory(_) => builder.mkdir(parent, name, meta),
        Kind::File(spooled) => builder.file(parent, name, meta, spooled.length),
        Kind::Symlink(target) => builder.symlink(parent, name, target, meta),
        Kind::Special(special) => {
            let kind = match *special {
                Special::Char { major, minor } => SpecialKind::Char { major, minor },
                Special::Block { major, minor } => SpecialKind::Block { major, minor },
                Special::Fifo => SpecialKind::Fifo,
            };
            builder.mknod(parent, name, meta, kind)
        }
    }
}

fn attributes(builder: &mut FsBuilder, handle: InodeHandle, node: &Node) -> mkext4::Result<()> {
    node.attributes.iter().try_for_each(|(name, value)| builder.set_xattr(handle, name, value))
}

fn converted(meta: &Meta) -> mkext4::Meta {
    mkext4::Meta::new(meta.mode, meta.uid, meta.gid, meta.mtime)
}

fn write(tree: &Tree, layout: &Layout, files: &Files, sink: &mut FileSink) -> mkext4::Result<()> {
    let mut writer = layout.writer(Sparse(sink))?;
    for (index, handle) in files {
        if let Kind::File(spooled) = &tree.nodes()[*index].kind {
            writer.fill(*handle, &mut tree.reader(spooled))?;
        }
    }
    writer.finish().map(drop)
}

/// By comparison with zeros, which is memcmp's work: a loop over bytes would be the slowest part of a pull.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| ZEROS.starts_with(chunk))
}

/// Leaves blocks of zeros out: the file is one long hole at first.
struct Sparse<'a>(&'a mut FileSink);

impl RegionSink for Sparse<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if is_zero(bytes) { self.0.zeros(offset, bytes.len() as u64) } else { self.0.data(offset, bytes) }
    }

    fn zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.0.zeros(offset, len)
    }
}
