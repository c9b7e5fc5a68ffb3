//! What callers see: takes a tree entry by entry, checks each, and hands it on to [`crate::ext4::writer::finish`]. Writes nothing itself.

use crate::ext4::writer::error::WriterError;
use crate::ext4::writer::extents::Run;
use crate::ext4::writer::inode::{self, Time};
use crate::ext4::writer::superblock::EPOCH;
use crate::ext4::writer::tree::{Attribute, Entry, Kind, Node, ROOT, Text, Tree};
use crate::ext4::writer::{BLOCK, BLOCK_BYTES, acl, attributes, finish};
use std::fs::File;
use uuid::Uuid;

/// The longest name (`EXT4_NAME_LEN`, fs/ext4/ext4.h), in bytes.
const NAME_MAX: usize = 255;
/// The longest target of a symbolic link: a block with a zero at its end.
const TARGET_MAX: usize = BLOCK_BYTES - 1;
/// Names of one file (`EXT4_LINK_MAX`, fs/ext4/ext4.h).
pub(in crate::ext4) const LINKS_MAX: u32 = 65_000;
/// Blocks of one file: the numbers of all of them have 32 bits, and so has the number of the one behind.
const FILE_MAX: u64 = u32::MAX as u64 * BLOCK;

/// Of the whole file system.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The order of large directories follows from it as well.
    pub uuid: Uuid,
    /// At most 16 bytes.
    pub label: &'a str,
}

/// What is known of a file apart from its name and contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// The twelve permission bits, setuid, setgid and sticky among them; others are ignored.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since the epoch, and nanoseconds below 10^9: of every time that ext4 keeps. What it cannot keep, before 1901 or
    /// after 2310, becomes the nearest that it can.
    pub mtime: (i64, u32),
}

impl Meta {
    /// Of root's, with these permissions, at the epoch.
    #[must_use]
    pub const fn root(mode: u16) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: (0, 0) }
    }
}

/// What has neither contents nor children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Numbers of 12 and 20 bits.
    Char {
        major: u32,
        minor: u32,
    },
    /// Numbers of 12 and 20 bits.
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
}

/// Something that a builder has been told of; it means nothing to any other builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle(u32);

/// A file system to be. Its files' contents are in place already; what it is told is kept in memory until [`Self::finish`].
///
/// The same calls in the same order give the same bytes. Entries that are told of directory by directory, contents in their
/// order on the disk, are read fastest later.
#[derive(Debug)]
pub struct Builder {
    tree: Tree,
    uuid: Uuid,
    label: Box<[u8]>,
}

impl Builder {
    /// One with a root directory of root's, mode 0755. `lost+found` is put into it at the end: callers leave it out.
    ///
    /// # Errors
    /// [`WriterError::Label`]
    pub fn new(options: Options<'_>) -> Result<Self, WriterError> {
        let Options { uuid, label } = options;
        if label.len() > 16 {
            return Err(WriterError::Label { label: label.to_owned() });
        }
        let mut builder = Self { tree: Tree::default(), uuid, label: label.as_bytes().into() };
        let root = Meta { mode: 0o755, uid: 0, gid: 0, mtime: (EPOCH.into(), 0) };
        builder.tree.nodes.push(node(inode::DIRECTORY, root, Kind::Directory));
        // Its own `.` and `..`, and the `..` of lost+found.
        builder.tree.node_mut(ROOT).links = 3;
        Ok(builder)
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> Handle {
        Handle(ROOT)
    }

    /// Gives something, as a rule the root, another owner, mode and time.
    pub fn set_meta(&mut self, of: Handle, meta: Meta) {
        let old = self.tree.node_mut(of.0);
        *old = Node { links: old.links, ..node(old.mode & !0o7777, meta, old.kind) };
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// [`WriterError::Name`], [`WriterError::NotDirectory`], [`WriterError::TooMuch`]; that a name is there twice is found at
    /// the end.
    pub fn mkdir(&mut self, parent: Handle, name: &[u8], meta: Meta) -> Result<Handle, WriterError> {
        let handle = self.add(parent, name, node(inode::DIRECTORY, meta, Kind::Directory))?;
        self.tree.node_mut(handle.0).links = 2;
        self.tree.node_mut(parent.0).links += 1;
        Ok(handle)
    }

    /// Makes a regular file of `size` bytes, whose contents are in these runs, in the order of the file. What no run covers is
    /// a hole; the file's last block has zeros behind its end, which whoever wrote it has seen to.
    ///
    /// # Errors
    /// As [`Self::mkdir`], and [`WriterError::Contents`] where runs are not in order, or reach beyond the file's last block.
    pub fn file(
        &mut self,
        parent: Handle,
        name: &[u8],
        meta: Meta,
        size: u64,
        runs: &[Run],
    ) -> Result<Handle, WriterError> {
        if let Some(problem) = problem(size, runs) {
            return Err(WriterError::Contents { path: self.tree.path_below(parent.0, name), problem });
        }
        let too_much = |_| WriterError::TooMuch { what: "runs", limit: u32::MAX.into() };
        let first_run = u32::try_from(self.tree.runs.len()).map_err(too_much)?;
        let kind = Kind::File { size, first_run, runs: u32::try_from(runs.len()).map_err(too_much)? };
        let handle = self.add(parent, name, node(inode::REGULAR, meta, kind))?;
        self.tree.runs.extend_from_slice(runs);
        Ok(handle)
    }

    /// Makes a symbolic link. `meta.mode` is kept, and ignored by kernels.
    ///
    /// # Errors
    /// As [`Self::mkdir`], and [`WriterError::Target`].
    pub fn symlink(&mut self, parent: Handle, name: &[u8], meta: Meta, target: &[u8]) -> Result<Handle, WriterError> {
        if target.is_empty() || target.len() > TARGET_MAX || target.contains(&0) {
            let path = self.tree.path_below(parent.0, name);
            return Err(WriterError::Target { path, length: target.len(), limit: TARGET_MAX });
        }
        let target = self.text(target)?;
        self.add(parent, name, node(inode::SYMLINK, meta, Kind::Symlink(target)))
    }

    /// Makes a device, a fifo or a socket.
    ///
    /// # Errors
    /// As [`Self::mkdir`], and [`WriterError::Device`].
    pub fn special(
        &mut self,
        parent: Handle,
        name: &[u8],
        meta: Meta,
        special: Special,
    ) -> Result<Handle, WriterError> {
        let (mode, kind) = match special {
            Special::Char { major, minor } => (inode::CHARACTER, Kind::Device { major, minor }),
            Special::Block { major, minor } => (inode::BLOCK_DEVICE, Kind::Device { major, minor }),
            Special::Fifo => (inode::FIFO, Kind::Pipe),
            Special::Socket => (inode::SOCKET, Kind::Pipe),
        };
        if let Kind::Device { major, minor } = kind
            && inode::device(major, minor).is_none()
        {
            return Err(WriterError::Device { path: self.tree.path_below(parent.0, name), major, minor });
        }
        self.add(parent, name, node(mode, meta, kind))
    }

    /// Gives something that is no directory a further name.
    ///
    /// # Errors
    /// As [`Self::mkdir`], and [`WriterError::DirectoryLink`], [`WriterError::Links`].
    pub fn hard_link(&mut self, parent: Handle, name: &[u8], to: Handle) -> Result<(), WriterError> {
        let node = self.tree.node(to.0);
        if matches!(node.kind, Kind::Directory) {
            return Err(WriterError::DirectoryLink { path: self.tree.path(to.0) });
        }
        if node.links >= LINKS_MAX {
            return Err(WriterError::Links { path: self.tree.path(to.0), limit: LINKS_MAX });
        }
        self.enter(parent, name, to.0)?;
        self.tree.node_mut(to.0).links += 1;
        Ok(())
    }

    /// Gives something an extended attribute. An access control list may have the form that system calls and archives know, or
    /// ext4's own.
    ///
    /// # Errors
    /// [`WriterError::Attribute`] where the name has none of ext4's prefixes or the list is none; [`WriterError::NoRoom`] where
    /// the value is larger than a block. What else has no room, or is there twice, is found at the end.
    pub fn attribute(&mut self, of: Handle, name: &[u8], value: &[u8]) -> Result<(), WriterError> {
        let refused = |tree: &Tree, problem| {
            let (path, name) = (tree.path(of.0), name.escape_ascii().to_string());
            WriterError::Attribute { path, name, problem }
        };
        let Some((prefix, rest)) = attributes::divide(name) else {
            return Err(refused(&self.tree, "ext4 has no such names"));
        };
        let converted;
        let value = if [acl::ACCESS, acl::DEFAULT].contains(&name) {
            converted = acl::stored(value).ok_or_else(|| refused(&self.tree, "it is no access control list"))?;
            &converted
        } else {
            value
        };
        if value.len() > BLOCK_BYTES {
            let (path, name) = (self.tree.path(of.0), name.escape_ascii().to_string());
            return Err(WriterError::NoRoom { path, name, size: value.len() });
        }
        let (name, value) = (self.text(rest)?, self.text(value)?);
        self.tree.attributes.push(Attribute { node: of.0, prefix, name, value });
        Ok(())
    }

    /// Writes the file system around the contents, which lie in `file` between [`crate::ext4::writer::DATA_START`] and `data_end`, a number
    /// of blocks. What is in the file from there on is cut off. Returns the file's length in bytes: that of the file system.
    ///
    /// The superblock is written last: where this fails, a file that was new holds no file system. Nothing is synced.
    ///
    /// # Errors
    /// When names or attributes are there twice or have no room, contents overlap or lie outside of their area, there is too
    /// much of something, or the file cannot be written.
    pub fn finish(mut self, file: &File, data_end: u32) -> Result<u64, WriterError> {
        // Stable: equal names stay in the order in which they came.
        self.tree.attributes.sort_by_key(|attribute| attribute.node);
        finish::finish(&self.tree, self.uuid.as_bytes(), &self.label, file, data_end)
    }

    fn add(&mut self, parent: Handle, name: &[u8], node: Node) -> Result<Handle, WriterError> {
        // Inodes have numbers of 32 bits, a few of which are reserved.
        let limit = u32::MAX - 64;
        let number = u32::try_from(self.tree.nodes.len()).ok().filter(|number| *number < limit);
        let number = number.ok_or(WriterError::TooMuch { what: "files", limit: limit.into() })?;
        self.enter(parent, name, number)?;
        self.tree.nodes.push(node);
        Ok(Handle(number))
    }

    fn enter(&mut self, parent: Handle, name: &[u8], node: u32) -> Result<(), WriterError> {
        if !matches!(self.tree.node(parent.0).kind, Kind::Directory) {
            return Err(WriterError::NotDirectory { path: self.tree.path(parent.0) });
        }
        let odd = name.is_empty() || name == b"." || name == b".." || name.len() > NAME_MAX;
        if odd || name.contains(&0) || name.contains(&b'/') {
            return Err(WriterError::Name { path: self.tree.path_below(parent.0, name) });
        }
        let name = self.text(name)?;
        self.tree.entries.push(Entry { parent: parent.0, node, name });
        Ok(())
    }

    fn text(&mut self, bytes: &[u8]) -> Result<Text, WriterError> {
        let start = u32::try_from(self.tree.bytes.len());
        let start = start
            .map_err(|_| WriterError::TooMuch { what: "bytes of names and attributes", limit: u32::MAX.into() })?;
        self.tree.bytes.extend_from_slice(bytes);
        Ok(Text { start, length: u16::try_from(bytes.len()).expect("callers have seen that it is at most a block") })
    }
}

fn node(kind_bits: u16, meta: Meta, kind: Kind) -> Node {
    let Meta { mode, uid, gid, mtime } = meta;
    Node { mode: kind_bits | mode & 0o7777, uid, gid, time: Time::new(mtime), links: 1, kind }
}

/// Why contents cannot be these runs. Where they lie in the file system is seen at the end.
fn problem(size: u64, runs: &[Run]) -> Option<&'static str> {
    if size > FILE_MAX {
        return Some("longer than ext4 can number");
    }
    let mut end = 0;
    for run in runs {
        let logical = u64::from(run.logical);
        if run.blocks == 0 {
            return Some("in a run of no blocks");
        }
        if logical < end {
            return Some("in runs that are not in order");
        }
        end = logical + u64::from(run.blocks);
        if u64::from(run.start) + u64::from(run.blocks) > u64::from(u32::MAX) {
            return Some("beyond what ext4 can number");
        }
    }
    (end > size.div_ceil(BLOCK)).then_some("in blocks beyond its end")
}
