//! A file tree in memory: names, owners, modes, times and attributes; contents wait in a [`Spool`].
//!
//! Paths are looked up component by component and never through a symbolic link: nothing in an archive can reach outside its
//! own root. Later entries replace earlier ones, as tar's do.

use super::Ext4Error;
use super::spool::{Spool, Spooled};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// More entries than this are an attack or a mistake; the records alone would take a gigabyte.
const NODES_MAX: usize = 4_000_000;
/// The most contents one image may have, in bytes.
const CONTENT_MAX: u64 = 256 << 30;

/// What is known of a file apart from its name and contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// The twelve permission bits, setuid, setgid and sticky among them.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
}

impl Meta {
    /// Of root's, with these permissions, at the epoch.
    #[must_use]
    pub const fn root(mode: u16) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: (0, 0) }
    }
}

/// Device nodes and their kin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

#[derive(Debug)]
pub(super) enum Kind {
    Directory(BTreeMap<String, usize>),
    File(Spooled),
    Symlink(String),
    Special(Special),
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) meta: Meta,
    pub(super) attributes: BTreeMap<String, Vec<u8>>,
}

/// The tree. Node 0 is its root.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    spool: Spool,
}

impl Tree {
    /// An empty tree whose contents will wait on the file system of `directory`.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(directory: &Path) -> Result<Self, Ext4Error> {
        let root =
            Node { kind: Kind::Directory(BTreeMap::new()), meta: Meta::root(0o755), attributes: BTreeMap::new() };
        Ok(Self { nodes: vec![root], spool: Spool::create(directory)? })
    }

    /// Makes a directory, or gives one that is there this metadata.
    ///
    /// # Errors
    /// When the path is no path for it.
    pub fn directory(&mut self, path: &[u8], meta: Meta) -> Result<(), Ext4Error> {
        let (parents, name) = split(path)?;
        let Some(name) = name else {
            self.nodes[0].meta = meta;
            return Ok(());
        };
        let parent = self.parent(&parents, path)?;
        if let Some(node) = self.child(parent, name)
            && matches!(self.nodes[node].kind, Kind::Directory(_))
        {
            self.nodes[node].meta = meta;
            self.nodes[node].attributes.clear();
            return Ok(());
        }
        self.add(parent, name, Kind::Directory(BTreeMap::new()), meta)
    }

    /// Makes a regular file of everything that `reader` gives.
    ///
    /// # Errors
    /// When the path is no path for it, or the contents cannot be read or kept.
    pub fn file(&mut self, path: &[u8], meta: Meta, reader: &mut dyn Read) -> Result<(), Ext4Error> {
        let spooled = self.spool.append(reader)?;
        if self.spool.length() > CONTENT_MAX {
            return Err(Ext4Error::TooMuch { what: "bytes", limit: CONTENT_MAX });
        }
        self.insert(path, Kind::File(spooled), meta)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// When the path or target cannot be stored.
    pub fn symlink(&mut self, path: &[u8], meta: Meta, target: &[u8]) -> Result<(), Ext4Error> {
        let target = utf8(target)?.to_owned();
        self.insert(path, Kind::Symlink(target), meta)
    }

    /// Makes a device node or a fifo.
    ///
    /// # Errors
    /// When the path is no path for it.
    pub fn special(&mut self, path: &[u8], meta: Meta, special: Special) -> Result<(), Ext4Error> {
        self.insert(path, Kind::Special(special), meta)
    }

    /// Gives a file that is there a second name.
    ///
    /// # Errors
    /// When there is no such file, or the path is no path for it.
    pub fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Ext4Error> {
        let found = self.find(target)?.filter(|node| !matches!(self.nodes[*node].kind, Kind::Directory(_)));
        let node = found.ok_or_else(|| Ext4Error::DanglingLink { path: shown(path), target: shown(target) })?;
        let (parents, name) = split(path)?;
        let name = name.ok_or_else(|| Ext4Error::BadPath { path: shown(path) })?;
        let parent = self.parent(&parents, path)?;
        self.children(parent).insert(name.to_owned(), node);
        Ok(())
    }

    /// Sets an extended attribute of what is at `path`.
    ///
    /// # Errors
    /// When nothing is there.
    pub fn attribute(&mut self, path: &[u8], name: &str, value: Vec<u8>) -> Result<(), Ext4Error> {
        let node = self.find(path)?.ok_or_else(|| Ext4Error::Attribute { path: shown(path), name: name.to_owned() })?;
        self.nodes[node].attributes.insert(name.to_owned(), value);
        Ok(())
    }

    /// True if something is at `path`.
    ///
    /// # Errors
    /// When the path is no path.
    pub fn contains(&self, path: &[u8]) -> Result<bool, Ext4Error> {
        Ok(self.find(path)?.is_some())
    }

    /// Takes a name away, and with it everything below.
    ///
    /// # Errors
    /// When the path is no path.
    pub fn remove(&mut self, path: &[u8]) -> Result<(), Ext4Error> {
        let (parents, name) = split(path)?;
        let parent = parents.into_iter().try_fold(0, |at, component| self.child(at, component));
        if let (Some(parent), Some(name)) = (parent, name)
            && let Kind::Directory(children) = &mut self.nodes[parent].kind
        {
            children.remove(name);
        }
        Ok(())
    }

    /// The contents of the regular file at `path`; `None` where there is none.
    ///
    /// # Errors
    /// When the path is no path or the contents cannot be read back.
    pub fn contents(&self, path: &[u8]) -> Result<Option<Vec<u8>>, Ext4Error> {
        let Some(node) = self.find(path)? else { return Ok(None) };
        let Kind::File(spooled) = &self.nodes[node].kind else { return Ok(None) };
        let mut bytes = Vec::new();
        self.spool.reader(spooled).read_to_end(&mut bytes).map_err(|source| self.spool.failed(source))?;
        Ok(Some(bytes))
    }

    /// The paths of all regular files, sorted within each directory.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        self.walk(|path, node| {
            if matches!(node.kind, Kind::File(_)) {
                files.push(path.to_owned());
            }
        });
        files
    }

    /// Visits every name below the root; a hard link under each of its names.
    pub(super) fn walk(&self, mut visit: impl FnMut(&str, &Node)) {
        let mut stack = vec![(String::new(), 0)];
        while let Some((path, index)) = stack.pop() {
            let node = &self.nodes[index];
            visit(&path, node);
            if let Kind::Directory(children) = &node.kind {
                let below = |name: &String| if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                stack.extend(children.iter().rev().map(|(name, child)| (below(name), *child)));
            }
        }
    }

    /// How many entries were added, replaced ones among them.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes of contents.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.spool.length()
    }

    /// Of all that ends up in the file system: equal trees have equal digests.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut stack = vec![(String::new(), 0)];
        while let Some((path, index)) = stack.pop() {
            let node = &self.nodes[index];
            let meta = &node.meta;
            // Every field ends in a byte that no field contains, so that no two trees give the same text.
            hash.update(format!(
                "{path}\0{:o} {} {} {}.{:09}\0",
                meta.mode, meta.uid, meta.gid, meta.mtime.0, meta.mtime.1
            ));
            for (name, value) in &node.attributes {
                hash.update(format!("{name}\0{}\0", value.len()));
                hash.update(value);
            }
            match &node.kind {
                Kind::Directory(children) => {
                    hash.update(b"d");
                    stack.extend(children.iter().rev().map(|(name, child)| (format!("{path}/{name}"), *child)));
                }
                Kind::File(spooled) => {
                    // The index tells hard links from equal files.
                    hash.update(format!("f{} {index}\0", spooled.length));
                    hash.update(spooled.sha256);
                }
                Kind::Symlink(target) => hash.update(format!("l{target}\0")),
                Kind::Special(special) => hash.update(format!("s{special:?}\0")),
            }
        }
        hash.finalize().into()
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(super) fn spool(&self) -> &Spool {
        &self.spool
    }

    fn insert(&mut self, path: &[u8], kind: Kind, meta: Meta) -> Result<(), Ext4Error> {
        let (parents, name) = split(path)?;
        let name = name.ok_or_else(|| Ext4Error::BadPath { path: shown(path) })?;
        let parent = self.parent(&parents, path)?;
        self.add(parent, name, kind, meta)
    }

    fn add(&mut self, parent: usize, name: &str, kind: Kind, meta: Meta) -> Result<(), Ext4Error> {
        let node = self.nodes.len();
        if node >= NODES_MAX {
            return Err(Ext4Error::TooMuch { what: "entries", limit: NODES_MAX as u64 });
        }
        self.nodes.push(Node { kind, meta, attributes: BTreeMap::new() });
        self.children(parent).insert(name.to_owned(), node);
        Ok(())
    }

    /// The directory at these components; missing ones are made, as tar makes them.
    fn parent(&mut self, components: &[&str], path: &[u8]) -> Result<usize, Ext4Error> {
        let mut at = 0;
        for component in components {
            at = match self.child(at, component) {
                Some(node) => node,
                None => {
                    self.add(at, component, Kind::Directory(BTreeMap::new()), Meta::root(0o755))?;
                    self.nodes.len() - 1
                }
            };
            if !matches!(self.nodes[at].kind, Kind::Directory(_)) {
                return Err(Ext4Error::ParentNotDirectory { path: shown(path) });
            }
        }
        Ok(at)
    }

    fn find(&self, path: &[u8]) -> Result<Option<usize>, Ext4Error> {
        let (parents, name) = split(path)?;
        Ok(parents.into_iter().chain(name).try_fold(0, |at, component| self.child(at, component)))
    }

    fn child(&self, parent: usize, name: &str) -> Option<usize> {
        match &self.nodes[parent].kind {
            Kind::Directory(children) => children.get(name).copied(),
            Kind::File(_) | Kind::Symlink(_) | Kind::Special(_) => None,
        }
    }

    fn children(&mut self, parent: usize) -> &mut BTreeMap<String, usize> {
        match &mut self.nodes[parent].kind {
            Kind::Directory(children) => children,
            Kind::File(_) | Kind::Symlink(_) | Kind::Special(_) => {
                unreachable!("callers have seen that it is a directory")
            }
        }
    }
}

/// Components of a path, the last apart; `.` and empty ones count for nothing.
fn split(path: &[u8]) -> Result<(Vec<&str>, Option<&str>), Ext4Error> {
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(Ext4Error::BadPath { path: shown(path) }),
            name if name.len() > 255 || name.contains(&0) => return Err(Ext4Error::BadPath { path: shown(path) }),
            name => components.push(std::str::from_utf8(name).map_err(|_| Ext4Error::NotUtf8 { path: shown(path) })?),
        }
    }
    let last = components.pop();
    Ok((components, last))
}

fn utf8(bytes: &[u8]) -> Result<&str, Ext4Error> {
    std::str::from_utf8(bytes).map_err(|_| Ext4Error::NotUtf8 { path: shown(bytes) })
}

/// A path as an error shows it.
pub(super) fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}
