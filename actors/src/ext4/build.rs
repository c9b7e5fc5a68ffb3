//! Turns a [`Tree`], whose contents lie in their image already, into an ext4 file that is only ever mounted read-only.

use super::tree::{Kind, Node};
use super::writer::{BLOCK, Builder, DATA_START, Handle, Options, Run, WriterError};
use super::{Ext4Error, Tree};
use std::path::Path;
use uuid::Uuid;

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

/// Writes the file system to `path`, on the file system that the tree's contents are on. Where it fails, nothing is there.
///
/// # Errors
/// When the tree cannot be laid out or the file not be written.
pub fn build(tree: Tree, path: &Path, label: Label) -> Result<Built, Ext4Error> {
    let digest = tree.digest()?;
    build_as(tree, path, label, &digest)
}

/// The same, of a tree whose contents somebody else's digest stands for already.
///
/// # Errors
/// As [`build`].
pub fn build_as(mut tree: Tree, path: &Path, label: Label, digest: &[u8; 32]) -> Result<Built, Ext4Error> {
    check_lost_found(&tree)?;
    tree.complete()?;
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    let uuid = uuid::Builder::from_custom_bytes(bytes).into_uuid();
    let failed = |error: WriterError| match error {
        WriterError::Write(source) => Ext4Error::write(path, source),
        other => Ext4Error::Layout(other),
    };
    let (builder, used) = declare(&tree, uuid, label).map_err(failed)?;
    let image = tree.image();
    let end = image.end();
    give_back(&tree, used, end);
    let data_end = number(end / BLOCK).map_err(failed)?;
    let size_bytes = builder.finish(image.file(), data_end).map_err(failed)?;
    image.keep(path).map_err(|source| Ext4Error::write(path, source))?;
    Ok(Built { uuid, size_bytes })
}

/// Contents of files that were replaced or taken away afterwards lie between those of the others.
fn give_back(tree: &Tree, mut used: Vec<Run>, end: u64) {
    used.sort_unstable_by_key(|run| run.start);
    let mut at = u64::from(DATA_START) * BLOCK;
    for run in used {
        let start = u64::from(run.start) * BLOCK;
        if start > at {
            tree.image().punch(at, start);
        }
        at = start + u64::from(run.blocks) * BLOCK;
    }
    if end > at {
        tree.image().punch(at, end);
    }
}

/// Every ext4 file system has this directory, and e2fsck puts into it what it finds. The writer makes it.
const LOST_FOUND: &[u8] = b"lost+found";

/// One that was copied from another ext4 file system is empty, and the same as ours.
fn check_lost_found(tree: &Tree) -> Result<(), Ext4Error> {
    let nodes = tree.nodes();
    let Kind::Directory(root) = &nodes[0].kind else { return Ok(()) };
    match root.get(LOST_FOUND).map(|name| &nodes[name.node].kind) {
        None => Ok(()),
        Some(Kind::Directory(children)) if children.is_empty() => Ok(()),
        Some(_) => Err(Ext4Error::Kind {
            path: "lost+found".to_owned(),
            kind: "ext4 keeps an empty directory of its own there".to_owned(),
        }),
    }
}

/// Tells the writer of everything, and says where contents are.
fn declare(tree: &Tree, uuid: Uuid, label: Label) -> Result<(Builder, Vec<Run>), WriterError> {
    let mut builder = Builder::new(Options { uuid, label: label.0 })?;
    let nodes = tree.nodes();
    let root = builder.root();
    let mut handles: Vec<Option<Handle>> = vec![None; nodes.len()];
    handles[0] = Some(root);
    builder.set_meta(root, nodes[0].meta);
    attributes(&mut builder, root, &nodes[0])?;

    // Directories first, then the rest in the order in which its contents lie.
    let mut leaves = Vec::new();
    let mut stack = vec![(root, 0)];
    while let Some((parent, index)) = stack.pop() {
        let Kind::Directory(children) = &nodes[index].kind else { continue };
        for (name, child) in children {
            if index == 0 && name == LOST_FOUND {
                continue;
            }
            let child = child.node;
            match &nodes[child].kind {
                Kind::Directory(_) => {
                    let handle = builder.mkdir(parent, name, nodes[child].meta)?;
                    attributes(&mut builder, handle, &nodes[child])?;
                    stack.push((handle, child));
                }
                Kind::File(_) | Kind::Symlink(_) | Kind::Special(_) => leaves.push((child, parent, name)),
            }
        }
    }
    leaves.sort_by_key(|(index, _, _)| *index);
    let mut used = Vec::new();
    for (index, parent, name) in leaves {
        if let Some(first) = handles[index] {
            builder.hard_link(parent, name, first)?;
            continue;
        }
        let node = &nodes[index];
        let handle = match &node.kind {
            Kind::Directory(_) => unreachable!("directories are no leaves"),
            Kind::File(spooled) => {
                let run = run(tree.place(spooled), spooled.length)?;
                used.extend(run);
                builder.file(parent, name, node.meta, spooled.length, run.as_slice())?
            }
            Kind::Symlink(target) => builder.symlink(parent, name, node.meta, target)?,
            Kind::Special(special) => builder.special(parent, name, node.meta, *special)?,
        };
        attributes(&mut builder, handle, node)?;
        handles[index] = Some(handle);
    }
    Ok((builder, used))
}

/// The blocks of contents of this length, where there are any.
fn run(place: u64, length: u64) -> Result<Option<Run>, WriterError> {
    let (start, blocks) = (number(place / BLOCK)?, number(length.div_ceil(BLOCK))?);
    Ok((blocks > 0).then_some(Run { logical: 0, start, blocks }))
}

/// Of a block, or of blocks, as ext4 keeps it.
fn number(blocks: u64) -> Result<u32, WriterError> {
    u32::try_from(blocks).map_err(|_| WriterError::TooMuch { what: "blocks", limit: u32::MAX.into() })
}

fn attributes(builder: &mut Builder, handle: Handle, node: &Node) -> Result<(), WriterError> {
    node.attributes.iter().try_for_each(|(name, value)| builder.attribute(handle, name, value))
}

/// By comparison with zeros, which is memcmp's work: a loop over bytes would be the slowest part of a pull.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| ZEROS.starts_with(chunk))
}
