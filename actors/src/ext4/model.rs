//! What a stack of layers means, written a second time and otherwise: one flat map from resolved paths to things, as umoci's
//! unpacking into a directory would leave them. The tests hold [`super::Tree`] against it.

#![cfg(test)]

use super::{Ext4Error, Meta};
use std::collections::BTreeMap;

/// One entry of a layer, before it is an archive.
#[derive(Clone)]
pub(super) struct Item {
    pub(super) path: Vec<u8>,
    pub(super) what: Kind,
    pub(super) mode: u16,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime: (i64, u32),
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, what, mode, uid, gid, .. } = self;
        let what = match what {
            Kind::Directory => "directory".to_owned(),
            Kind::File(contents) => format!("file of {}", contents.len()),
            Kind::Symlink(target) => format!("link to {}", target.escape_ascii()),
            Kind::Link(target) => format!("same as {}", target.escape_ascii()),
            Kind::Fifo => "fifo".to_owned(),
            Kind::Char(major, minor) => format!("char {major}:{minor}"),
            Kind::Unknown(kind) => format!("type {}", kind.escape_ascii()),
        };
        write!(f, "`{}` {what} {mode:o} {uid}:{gid}", path.escape_ascii())
    }
}

#[derive(Clone)]
pub(super) enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Link(Vec<u8>),
    Fifo,
    Char(u32, u32),
    /// A type of tar's that is nothing in a file system.
    Unknown(u8),
}

/// Which error has to come of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    BadPath,
    ParentNotDirectory,
    DanglingLink,
    Kind,
    Other,
}

impl From<&Ext4Error> for Fault {
    fn from(error: &Ext4Error) -> Self {
        match error {
            Ext4Error::BadPath { .. } => Self::BadPath,
            Ext4Error::ParentNotDirectory { .. } => Self::ParentNotDirectory,
            Ext4Error::DanglingLink { .. } => Self::DanglingLink,
            Ext4Error::Kind { .. } => Self::Kind,
            _ => Self::Other,
        }
    }
}

/// What is at a path, as the comparison sees it. Files that are the same one have the same first name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    pub(super) what: String,
    pub(super) contents: Vec<u8>,
    pub(super) meta: Meta,
    pub(super) attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) first_name: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Thing {
    what: What,
    meta: Meta,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Other(String),
}

type Path = Vec<Vec<u8>>;

/// The files of an image. The root is the empty path.
#[derive(Debug)]
pub(super) struct Model {
    things: Vec<Thing>,
    /// With the layer that touched each last.
    names: BTreeMap<Path, (usize, u32)>,
    layer: u32,
}

enum Leads {
    To(Path),
    Nowhere { so_far: Path, missing: Path },
    Against,
}

impl Model {
    pub(super) fn new() -> Self {
        let root = Thing { what: What::Directory, meta: Meta::root(0o755), attributes: BTreeMap::new() };
        Self { things: vec![root], names: BTreeMap::from([(Path::new(), (0, 0))]), layer: 0 }
    }

    /// A layer is read to its end before any of it counts.
    pub(super) fn apply(&mut self, items: &[Item]) -> Result<(), Fault> {
        items.iter().try_for_each(readable)?;
        self.layer += 1;
        items.iter().try_for_each(|item| self.put(item))
    }

    fn put(&mut self, item: &Item) -> Result<(), Fault> {
        let mut path = item.path.strip_prefix(b"./").unwrap_or(&item.path);
        let called_directory = item.path.ends_with(b"/");
        path = path.strip_suffix(b"/").unwrap_or(path);
        let components: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let (name, above) = components.split_last().expect("splitting gives at least one");
        if above.iter().any(|component| component.starts_with(b".wh..wh.")) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return match hidden {
                b".wh..opq" => self.opaque(&above.join(&b'/')),
                b"" | b"." | b".." => Ok(()),
                hidden if hidden.starts_with(b".wh.") => Ok(()),
                hidden => self.whiteout(&[above, &[hidden][..]].concat().join(&b'/')),
            };
        }
        let meta = Meta {
            mode: item.mode,
            uid: u32::try_from(item.uid).map_err(|_| Fault::Kind)?,
            gid: u32::try_from(item.gid).map_err(|_| Fault::Kind)?,
            mtime: item.mtime,
        };
        let attributes = item.attributes.iter().filter(|(name, _)| name != b"security.selinux").cloned().collect();
        let what = match &item.what {
            Kind::Link(target) => return self.link(path, target),
            Kind::Directory => What::Directory,
            Kind::File(contents) if contents.is_empty() && called_directory => What::Directory,
            Kind::File(contents) => What::File(contents.clone()),
            Kind::Symlink(target) if target.contains(&0) => return Err(Fault::BadPath),
            Kind::Symlink(target) => What::Symlink(target.clone()),
            Kind::Fifo => What::Other("fifo".to_owned()),
            Kind::Char(major, minor) => What::Other(format!("char {major}:{minor}")),
            Kind::Unknown(_) => return Err(Fault::Kind),
        };
        let mut place = parts(path)?;
        let Some(name) = place.pop() else {
            if what != What::Directory {
                return Err(Fault::BadPath);
            }
            (self.things[0].meta, self.things[0].attributes) = (meta, attributes);
            return Ok(());
        };
        let mut place = self.make_way(place)?;
        place.push(name);
        let thing = Thing { what, meta, attributes };
        match self.names.get(&place) {
            // A directory said again keeps what is in it.
            Some((there, _)) if self.things[*there].what == What::Directory && thing.what == What::Directory => {
                let there = *there;
                self.things[there] = thing;
                self.names.insert(place, (there, self.layer));
            }
            _ => self.replace(place, thing),
        }
        Ok(())
    }

    fn replace(&mut self, place: Path, thing: Thing) {
        self.names.retain(|path, _| !path.starts_with(&place));
        self.things.push(thing);
        self.names.insert(place, (self.things.len() - 1, self.layer));
    }

    fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Fault> {
        let target = target.strip_prefix(b"./").unwrap_or(target);
        let mut at = parts(target.strip_suffix(b"/").unwrap_or(target))?;
        let last = at.pop();
        let found = match (self.lead(&at), last) {
            (Leads::To(mut at), Some(last)) => {
                at.push(last);
                self.names.get(&at).map(|(thing, _)| *thing)
            }
            _ => None,
        };
        let found = found.filter(|thing| self.things[*thing].what != What::Directory).ok_or(Fault::DanglingLink)?;
        let mut place = parts(path)?;
        let name = place.pop().ok_or(Fault::BadPath)?;
        let mut place = self.make_way(place)?;
        place.push(name);
        self.names.retain(|path, _| !path.starts_with(&place));
        self.names.insert(place, (found, self.layer));
        Ok(())
    }

    /// Nothing of the layers below at this path.
    fn whiteout(&mut self, path: &[u8]) -> Result<(), Fault> {
        let mut above = parts(path)?;
        let Some(name) = above.pop() else { return Ok(()) };
        if let Leads::To(mut place) = self.lead(&above) {
            place.push(name);
            let layer = self.layer;
            self.names.retain(|path, (_, touched)| !path.starts_with(&place) || *touched == layer);
        }
        Ok(())
    }

    /// Nothing of the layers below in this directory.
    fn opaque(&mut self, path: &[u8]) -> Result<(), Fault> {
        if let Leads::To(place) = self.lead(&parts(path)?) {
            let layer = self.layer;
            let below = |path: &Path| path.len() > place.len() && path.starts_with(&place);
            self.names.retain(|path, (_, touched)| !below(path) || *touched == layer);
        }
        Ok(())
    }

    /// The directory at a path, made where it is missing, and touched with all that leads to it.
    fn make_way(&mut self, components: Path) -> Result<Path, Fault> {
        let place = match self.lead(&components) {
            Leads::To(place) => place,
            Leads::Against => return Err(Fault::ParentNotDirectory),
            Leads::Nowhere { missing, .. } if missing.iter().any(|name| name == b".." || name.len() > 255) => {
                return Err(Fault::BadPath);
            }
            Leads::Nowhere { so_far, missing } => {
                let mut place = so_far;
                for name in missing {
                    place.push(name);
                    let made = Thing { what: What::Directory, meta: Meta::root(0o755), attributes: BTreeMap::new() };
                    self.replace(place.clone(), made);
                }
                place
            }
        };
        for length in 1..=place.len() {
            self.names.get_mut(&place[..length]).expect("it was walked").1 = self.layer;
        }
        Ok(place)
    }

    /// Rewrites a path until no link is left in it.
    fn lead(&self, components: &[Vec<u8>]) -> Leads {
        let (mut place, mut links) = (Path::new(), 0);
        let mut ahead: Path = components.to_vec();
        while !ahead.is_empty() {
            let name = ahead.remove(0);
            if name == b".." {
                place.pop();
                continue;
            }
            place.push(name);
            match self.names.get(&place).map(|(thing, _)| &self.things[*thing].what) {
                Some(What::Directory) => {}
                Some(What::Symlink(target)) if links < 40 => {
                    links += 1;
                    place.pop();
                    if target.starts_with(b"/") {
                        place.clear();
                    }
                    let way = target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
                    ahead = way.map(<[u8]>::to_vec).chain(ahead).collect();
                }
                Some(_) => return Leads::Against,
                None => {
                    let name = place.pop().expect("pushed above");
                    return Leads::Nowhere { so_far: place, missing: [vec![name], ahead].concat() };
                }
            }
        }
        Leads::To(place)
    }

    pub(super) fn views(&self) -> BTreeMap<Vec<u8>, View> {
        let mut first_names: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        let mut views: BTreeMap<Vec<u8>, View> = BTreeMap::new();
        let by_name: BTreeMap<Vec<u8>, usize> =
            self.names.iter().map(|(path, (thing, _))| (path.join(&b'/'), *thing)).collect();
        for (path, index) in by_name {
            let thing = &self.things[index];
            let first_name = first_names.entry(index).or_insert_with(|| path.clone()).clone();
            let (what, contents) = match &thing.what {
                What::Directory => ("directory".to_owned(), Vec::new()),
                What::File(contents) => ("file".to_owned(), contents.clone()),
                What::Symlink(target) => (format!("link {}", target.escape_ascii()), Vec::new()),
                What::Other(what) => (what.clone(), Vec::new()),
            };
            let attributes = thing.attributes.clone();
            views.insert(path, View { what, contents, meta: thing.meta, attributes, first_name });
        }
        views
    }
}

/// What stops an archive before its layer is put anywhere.
fn readable(item: &Item) -> Result<(), Fault> {
    if item.uid > u64::from(u32::MAX) || item.gid > u64::from(u32::MAX) {
        return Err(Fault::Kind);
    }
    match &item.what {
        Kind::Unknown(_) => Err(Fault::Kind),
        Kind::Symlink(target) | Kind::Link(target) if target.is_empty() => Err(Fault::Kind),
        Kind::Symlink(target) | Kind::Link(target) if target.len() >= 4096 => Err(Fault::BadPath),
        _ => Ok(()),
    }
}

/// A path's components.
fn parts(path: &[u8]) -> Result<Path, Fault> {
    if path.len() >= 4096 {
        return Err(Fault::BadPath);
    }
    let mut parts = Path::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Fault::BadPath),
            part if part.len() > 255 || part.contains(&0) => return Err(Fault::BadPath),
            part => parts.push(part.to_vec()),
        }
    }
    Ok(parts)
}
