//! A file tree in memory: names, owners, modes, times and attributes; contents lie in an [`ImageFile`]. Names are bytes, as a
//! kernel's are.
//!
//! Paths are looked up component by component, through symbolic links as a kernel would that has this tree for its root:
//! nothing in an archive can reach outside of it, for there is nothing outside. Later entries replace earlier ones, as tar's
//! do. The layers of a container image are put on top of one another: each name knows the layer that touched it last.

use super::Ext4Error;
use super::image_file::{ImageFile, Limits};
use super::layer::{Entry, Layer, What, Whiteout, whiteout};
use super::path::{NAME_LENGTH_MAX, PATH_LENGTH_MAX, shown, split};
use super::spool::{Hashes, Spool, SpoolReader, Spooled};
pub use super::writer::{Meta, Special};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// More entries than this are an attack or a mistake; the records alone would take a gigabyte.
pub(super) const NODES_MAX: usize = 4_000_000;
/// The most contents one image may have, in bytes.
pub(super) const CONTENT_MAX: u64 = 256 << 30;
/// How many symbolic links one path may lead through (Linux: `MAXSYMLINKS`, linux/namei.h).
const LINKS_MAX: usize = 40;

#[derive(Debug)]
pub(super) enum Kind {
    Directory(BTreeMap<Vec<u8>, Name>),
    File(Spooled),
    Symlink(Vec<u8>),
    Special(Special),
}

/// An entry of a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    pub(super) node: usize,
    /// The layer that made it, or something below it.
    layer: u32,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) meta: Meta,
    pub(super) attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a directory: the last layer that took away what those below it had put there. Whatever that layer puts there afterwards
    /// is its own, so it never has to be looked through again for it.
    pruned: u32,
}

impl Node {
    const fn new(kind: Kind, meta: Meta) -> Self {
        Self { kind, meta, attributes: BTreeMap::new(), pruned: 0 }
    }
}

/// The tree. Node 0 is its root.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    image: Arc<ImageFile>,
    spools: Vec<Spool>,
    layer: u32,
}

/// Where a path's directories lead.
enum Walk {
    /// The last directory, after those that lead to it, each with the name that it was found under.
    There { directory: usize, trail: Vec<(usize, Vec<u8>)> },
    /// So far, and these are missing.
    Missing { directory: usize, rest: Vec<Vec<u8>> },
    /// Something on the way is no directory, or there is no end of links.
    Blocked,
}

impl Tree {
    /// An empty tree whose file system will be made in `directory`.
    ///
    /// # Errors
    /// When the file system of that refuses.
    pub fn create(directory: &Path) -> Result<Self, Ext4Error> {
        Self::limited(directory, Limits::default())
    }

    /// The same, with limits of the caller's.
    ///
    /// # Errors
    /// When the file system of that refuses.
    pub fn limited(directory: &Path, limits: Limits) -> Result<Self, Ext4Error> {
        let image = Arc::new(ImageFile::limited(directory, limits)?);
        let spool = Spool::new(&image, 0, Hashes::Kept);
        Ok(Self { spools: vec![spool], ..Self::layered(image) })
    }

    /// An empty tree whose contents come with its layers, which have put them into `image`.
    #[must_use]
    pub fn layered(image: Arc<ImageFile>) -> Self {
        let root = Node::new(Kind::Directory(BTreeMap::new()), Meta::root(0o755));
        Self { nodes: vec![root], image, spools: Vec::new(), layer: 0 }
    }

    /// Puts a layer on top: entries, whiteouts and opaque directories, in its own order.
    ///
    /// # Errors
    /// When an entry cannot be put where it says, or it was cancelled.
    pub fn add_layer(&mut self, layer: Layer) -> Result<(), Ext4Error> {
        let number =
            u16::try_from(self.spools.len()).map_err(|_| Ext4Error::TooMuch { what: "layers", limit: 65_535 })?;
        self.spools.push(layer.spool);
        self.layer += 1;
        self.check_content()?;
        for mut entry in layer.entries {
            // One entry may lead through tens of thousands of directories, and there may be millions.
            self.image.check_cancelled()?;
            if let What::File(spooled) = &mut entry.what {
                spooled.spool = number;
            }
            match whiteout(&entry.path) {
                Some(Whiteout::Name(path)) => self.whiteout(&path)?,
                Some(Whiteout::Opaque(path)) => self.opaque(&path)?,
                Some(Whiteout::Reserved) => {}
                None => self.put(entry)?,
            }
        }
        Ok(())
    }

    /// Adds one entry of an archive, whose contents are in one of this tree's spools.
    ///
    /// # Errors
    /// When the path is no path for it.
    pub fn put(&mut self, entry: Entry) -> Result<(), Ext4Error> {
        let Entry { path, meta, what, attributes } = entry;
        match what {
            What::Directory => self.directory(&path, meta)?,
            What::File(spooled) => self.insert(&path, Kind::File(spooled), meta)?,
            What::Symlink(target) => self.symlink(&path, meta, &target)?,
            What::Special(special) => self.special(&path, meta, special)?,
            // Owner, mode and attributes are those of the file that has the name already.
            What::HardLink(target) => return self.hard_link(&path, &target),
        }
        for (name, value) in attributes {
            self.attribute(&path, &name, value)?;
        }
        Ok(())
    }

    /// Takes away what the layers below put at `path`; what this layer put there, or below it, stays.
    fn whiteout(&mut self, path: &[u8]) -> Result<(), Ext4Error> {
        let (parents, name) = split(path)?;
        if let (Walk::There { directory, .. }, Some(name)) = (self.walk_to(&parents), name) {
            self.prune(directory, name);
        }
        Ok(())
    }

    /// Takes away what the layers below put into the directory at `path`.
    fn opaque(&mut self, path: &[u8]) -> Result<(), Ext4Error> {
        let (mut parents, name) = split(path)?;
        parents.extend(name);
        if let Walk::There { directory, .. } = self.walk_to(&parents) {
            self.prune_below(directory);
        }
        Ok(())
    }

    fn prune(&mut self, parent: usize, name: &[u8]) {
        let Kind::Directory(names) = &self.nodes[parent].kind else { return };
        let Some(found) = names.get(name).copied() else { return };
        if found.layer == self.layer {
            self.prune_below(found.node);
        } else {
            self.children(parent).remove(name);
        }
    }

    /// Without recursion: paths through links make directories far deeper than any one path is long.
    fn prune_below(&mut self, directory: usize) {
        let layer = self.layer;
        let mut waiting = vec![directory];
        while let Some(directory) = waiting.pop() {
            let node = &mut self.nodes[directory];
            // Once for each layer: a million markers in a directory of a million files are two million steps, not a trillion.
            if std::mem::replace(&mut node.pruned, layer) == layer {
                continue;
            }
            if let Kind::Directory(names) = &mut node.kind {
                names.retain(|_, name| name.layer == layer);
                waiting.extend(names.values().map(|name| name.node));
            }
        }
    }

    fn check_content(&self) -> Result<(), Ext4Error> {
        self.image.check_contents(self.content_bytes())
    }

    /// Makes a directory, or gives one that is there this metadata.
    ///
    /// # Errors
    /// When the path is no path for it.
    pub fn directory(&mut self, path: &[u8], meta: Meta) -> Result<(), Ext4Error> {
        let (parents, name) = split(path)?;
        let Some(name) = name else {
            self.nodes[0].meta = meta;
            self.nodes[0].attributes.clear();
            return Ok(());
        };
        let parent = self.parent(&parents, path)?;
        if let Some(node) = self.child(parent, name)
            && matches!(self.nodes[node].kind, Kind::Directory(_))
        {
            self.nodes[node].meta = meta;
            self.nodes[node].attributes.clear();
            // Said again by this layer: a whiteout of this layer's does not mean it.
            let layer = self.layer;
            self.children(parent).insert(name.to_owned(), Name { node, layer });
            return Ok(());
        }
        self.add(parent, name, Kind::Directory(BTreeMap::new()), meta)
    }

    /// Makes a regular file of everything that `reader` gives.
    ///
    /// # Errors
    /// When the path is no path for it, or the contents cannot be read or kept.
    pub fn file(&mut self, path: &[u8], meta: Meta, reader: &mut dyn Read) -> Result<(), Ext4Error> {
        let spooled = self.spools.first_mut().expect("created with its spool").append(reader)?;
        self.check_content()?;
        self.insert(path, Kind::File(spooled), meta)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// When the path or target cannot be stored.
    pub fn symlink(&mut self, path: &[u8], meta: Meta, target: &[u8]) -> Result<(), Ext4Error> {
        if target.len() >= PATH_LENGTH_MAX || target.contains(&0) {
            return Err(Ext4Error::BadPath { path: shown(path) });
        }
        self.insert(path, Kind::Symlink(target.to_vec()), meta)
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
        let layer = self.layer;
        self.children(parent).insert(name.to_owned(), Name { node, layer });
        Ok(())
    }

    /// Sets an extended attribute of what is at `path`.
    ///
    /// # Errors
    /// When nothing is there.
    pub fn attribute(&mut self, path: &[u8], name: &[u8], value: Vec<u8>) -> Result<(), Ext4Error> {
        let node = self.find(path)?.ok_or_else(|| Ext4Error::Attribute { path: shown(path), name: shown(name) })?;
        self.nodes[node].attributes.insert(name.to_vec(), value);
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
        if let (Walk::There { directory, .. }, Some(name)) = (self.walk_to(&parents), name) {
            self.children(directory).remove(name);
        }
        Ok(())
    }

    /// The contents of the regular file at `path`; `None` where there is none.
    ///
    /// # Errors
    /// When the path is no path, there are more than `most` bytes (a hole of any size takes none in an archive), or they cannot be
    /// read back.
    pub fn contents(&self, path: &[u8], most: u64) -> Result<Option<Vec<u8>>, Ext4Error> {
        let Some(node) = self.find(path)? else { return Ok(None) };
        let Kind::File(spooled) = &self.nodes[node].kind else { return Ok(None) };
        if spooled.length > most {
            return Err(Ext4Error::TooLarge { path: shown(path), limit: most });
        }
        let mut bytes = Vec::new();
        self.reader(spooled).read_to_end(&mut bytes).map_err(|source| self.image.failed(source))?;
        Ok(Some(bytes))
    }

    /// Gives the regular file at `path` other contents, where there is one that holds at most `most` bytes. Owner, mode and
    /// attributes stay.
    ///
    /// # Errors
    /// When the path is no path, or contents cannot be read or kept.
    pub fn rewrite(
        &mut self,
        path: &[u8],
        most: u64,
        change: impl FnOnce(Vec<u8>) -> Vec<u8>,
    ) -> Result<(), Ext4Error> {
        let Some(node) = self.find(path)? else { return Ok(()) };
        if !matches!(&self.nodes[node].kind, Kind::File(spooled) if spooled.length <= most) {
            return Ok(());
        }
        let Some(old) = self.contents(path, most)? else { return Ok(()) };
        let new = change(old.clone());
        if new != old {
            let spooled = self.spools.first_mut().expect("created with its spool").append(&mut new.as_slice())?;
            self.nodes[node].kind = Kind::File(spooled);
        }
        Ok(())
    }

    /// The length of the regular file at `path`, in bytes; `None` where there is none.
    ///
    /// # Errors
    /// When the path is no path.
    pub fn length(&self, path: &[u8]) -> Result<Option<u64>, Ext4Error> {
        Ok(self.find(path)?.and_then(|node| match &self.nodes[node].kind {
            Kind::File(spooled) => Some(spooled.length),
            Kind::Directory(_) | Kind::Symlink(_) | Kind::Special(_) => None,
        }))
    }

    /// The paths of those regular files that are `wanted`, sorted within each directory.
    #[must_use]
    pub fn files(&self, mut wanted: impl FnMut(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let mut files = Vec::new();
        self.walk(|path, index| {
            if matches!(self.nodes[index].kind, Kind::File(_)) && wanted(path) {
                files.push(path.to_owned());
            }
        });
        files
    }

    /// Visits the root and every name below it; a hard link under each of its names.
    ///
    /// One path serves all: by way of links they may be far longer than any that can be asked for, times millions of names.
    pub(super) fn walk(&self, mut visit: impl FnMut(&[u8], usize)) {
        let mut path = Vec::new();
        let mut stack: Vec<(usize, &[u8], usize)> = vec![(0, b"", 0)];
        while let Some((above, name, index)) = stack.pop() {
            path.truncate(above);
            if above > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            visit(&path, index);
            if let Kind::Directory(children) = &self.nodes[index].kind {
                let above = path.len();
                stack.extend(children.iter().rev().map(|(name, child)| (above, name.as_slice(), child.node)));
            }
        }
    }

    /// Bytes of contents.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.spools.iter().map(Spool::length).sum()
    }

    /// Of all that ends up in the file system: equal trees have equal digests.
    ///
    /// # Errors
    /// When it was cancelled.
    pub fn digest(&self) -> Result<[u8; 32], Ext4Error> {
        let mut hash = Sha256::new();
        self.walk(|path, index| {
            if self.image.check_cancelled().is_err() {
                return;
            }
            let node = &self.nodes[index];
            let meta = &node.meta;
            // Every field ends in a byte that no field contains, so that no two trees give the same text.
            hash.update(path);
            hash.update(format!("\0{:o} {} {} {}.{:09}\0", meta.mode, meta.uid, meta.gid, meta.mtime.0, meta.mtime.1));
            for (name, value) in &node.attributes {
                hash.update(name);
                hash.update(format!("\0{}\0", value.len()));
                hash.update(value);
            }
            match &node.kind {
                Kind::Directory(_) => hash.update(b"d"),
                Kind::File(spooled) => {
                    // The index tells hard links from equal files.
                    hash.update(format!("f{} {index}\0", spooled.length));
                    hash.update(spooled.sha256);
                }
                Kind::Symlink(target) => {
                    hash.update(b"l");
                    hash.update(target);
                    hash.update(b"\0");
                }
                Kind::Special(special) => hash.update(format!("s{special:?}\0")),
            }
        });
        self.image.check_cancelled()?;
        Ok(hash.finalize().into())
    }

    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The file that its contents lie in.
    pub(super) fn image(&self) -> &ImageFile {
        &self.image
    }

    /// Nothing more is put into it: afterwards every file has its place in the image.
    ///
    /// # Errors
    /// When contents cannot be written.
    pub(super) fn complete(&mut self) -> Result<(), Ext4Error> {
        self.spools.iter_mut().try_for_each(Spool::complete)?;
        self.image.settle()
    }

    /// Where a file's contents lie in the image, in bytes. The tree must be complete.
    pub(super) fn place(&self, spooled: &Spooled) -> u64 {
        self.image.base(spooled.spool.into()).expect("a complete tree's spools have their places") + spooled.offset
    }

    /// Reads one file's contents.
    pub(super) fn reader(&self, spooled: &Spooled) -> SpoolReader<'_> {
        self.spools[usize::from(spooled.spool)].reader(spooled)
    }

    /// Where entries that come without a layer are kept, until it is returned.
    pub(super) fn lend_spool(&mut self) -> Spool {
        self.spools.pop().expect("a tree that is filled one by one was created with its spool, and lends it once")
    }

    /// Takes it back.
    pub(super) fn return_spool(&mut self, spool: Spool) -> Result<(), Ext4Error> {
        self.spools.push(spool);
        self.check_content()
    }

    fn insert(&mut self, path: &[u8], kind: Kind, meta: Meta) -> Result<(), Ext4Error> {
        let (parents, name) = split(path)?;
        let name = name.ok_or_else(|| Ext4Error::BadPath { path: shown(path) })?;
        let parent = self.parent(&parents, path)?;
        self.add(parent, name, kind, meta)
    }

    fn add(&mut self, parent: usize, name: &[u8], kind: Kind, meta: Meta) -> Result<(), Ext4Error> {
        let node = self.nodes.len();
        if node >= NODES_MAX {
            return Err(Ext4Error::TooMuch { what: "entries", limit: NODES_MAX as u64 });
        }
        self.nodes.push(Node::new(kind, meta));
        let layer = self.layer;
        self.children(parent).insert(name.to_owned(), Name { node, layer });
        Ok(())
    }

    /// The directory at these components; missing ones are made, as tar makes them. All of them count as touched.
    fn parent(&mut self, components: &[&[u8]], path: &[u8]) -> Result<usize, Ext4Error> {
        let mut walk = self.walk_to(components);
        if let Walk::Missing { mut directory, rest } = walk {
            // A link to `..` of what is not there, or to what no directory can be called.
            if rest.iter().any(|component| component == b".." || component.len() > NAME_LENGTH_MAX) {
                return Err(Ext4Error::BadPath { path: shown(path) });
            }
            for component in &rest {
                self.add(directory, component, Kind::Directory(BTreeMap::new()), Meta::root(0o755))?;
                directory = self.nodes.len() - 1;
            }
            walk = self.walk_to(components);
        }
        let Walk::There { directory, trail } = walk else {
            return Err(Ext4Error::ParentNotDirectory { path: shown(path) });
        };
        let layer = self.layer;
        for (parent, name) in trail {
            if let Some(name) = self.children(parent).get_mut(&name) {
                name.layer = layer;
            }
        }
        Ok(directory)
    }

    /// Follows the components of a directory's path, through links as the kernel would below this root.
    fn walk_to(&self, components: &[&[u8]]) -> Walk {
        let mut trail: Vec<(usize, Vec<u8>)> = Vec::with_capacity(components.len());
        let mut ahead: Vec<&[u8]> = components.iter().rev().copied().collect();
        let (mut at, mut links) = (0, 0);
        while let Some(component) = ahead.pop() {
            if component == b".." {
                // The root's parent is the root.
                at = trail.pop().map_or(0, |(parent, _)| parent);
                continue;
            }
            let Some(next) = self.child(at, component) else {
                let rest = std::iter::once(component).chain(ahead.into_iter().rev()).map(<[u8]>::to_vec).collect();
                return Walk::Missing { directory: at, rest };
            };
            match &self.nodes[next].kind {
                Kind::Directory(_) => {
                    trail.push((at, component.to_owned()));
                    at = next;
                }
                Kind::Symlink(target) if links < LINKS_MAX => {
                    links += 1;
                    if target.starts_with(b"/") {
                        (at, trail) = (0, Vec::new());
                    }
                    ahead.extend(
                        target.split(|byte| *byte == b'/').rev().filter(|part| !part.is_empty() && *part != b"."),
                    );
                }
                Kind::Symlink(_) | Kind::File(_) | Kind::Special(_) => return Walk::Blocked,
            }
        }
        Walk::There { directory: at, trail }
    }

    /// What is at a path. Links on the way are followed, one at its end is not.
    fn find(&self, path: &[u8]) -> Result<Option<usize>, Ext4Error> {
        let (parents, name) = split(path)?;
        Ok(match (self.walk_to(&parents), name) {
            (Walk::There { directory, .. }, Some(name)) => self.child(directory, name),
            (Walk::There { directory, .. }, None) => Some(directory),
            (Walk::Missing { .. } | Walk::Blocked, _) => None,
        })
    }

    fn child(&self, parent: usize, name: &[u8]) -> Option<usize> {
        match &self.nodes[parent].kind {
            Kind::Directory(children) => children.get(name).map(|name| name.node),
            Kind::File(_) | Kind::Symlink(_) | Kind::Special(_) => None,
        }
    }

    fn children(&mut self, parent: usize) -> &mut BTreeMap<Vec<u8>, Name> {
        match &mut self.nodes[parent].kind {
            Kind::Directory(children) => children,
            Kind::File(_) | Kind::Symlink(_) | Kind::Special(_) => {
                unreachable!("callers have seen that it is a directory")
            }
        }
    }
}
