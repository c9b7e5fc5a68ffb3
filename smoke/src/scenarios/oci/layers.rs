//! Layers: plain ones for a purpose, and odd ones from a generator that always makes the same.

use flate2::Compression;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use tar::EntryType;

/// A layer as it is and as it travels.
pub(crate) struct Layer {
    pub(super) archive: Vec<u8>,
    pub(super) packed: Vec<u8>,
    /// Of its media type.
    pub(super) suffix: &'static str,
    pub(super) entries: usize,
}

impl Layer {
    pub(crate) fn plain((archive, entries): (Vec<u8>, usize)) -> Self {
        Self { packed: archive.clone(), archive, suffix: "", entries }
    }

    pub(crate) fn gzip((archive, entries): (Vec<u8>, usize)) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&archive).expect("memory takes everything");
        Self { packed: encoder.finish().expect("memory takes everything"), archive, suffix: "+gzip", entries }
    }
}

impl Layer {
    /// The same layer, packed by zstd.
    pub(super) fn zstd(&self) -> Self {
        let packed = zstd::encode_all(self.archive.as_slice(), 1).expect("memory takes everything");
        Self { packed, archive: self.archive.clone(), suffix: "+zstd", entries: self.entries }
    }
}

/// An archive being written; memory takes everything.
pub(crate) struct Archive {
    builder: tar::Builder<Vec<u8>>,
    entries: usize,
}

/// Owner, mode, time and attributes.
#[derive(Clone)]
struct Meta {
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: (u64, u32),
    attributes: Vec<(&'static str, Vec<u8>)>,
}

impl Meta {
    const fn root(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: (1_700_000_000, 0), attributes: Vec::new() }
    }
}

pub(crate) fn archive(fill: impl FnOnce(&mut Archive)) -> (Vec<u8>, usize) {
    let mut archive = Archive { builder: tar::Builder::new(Vec::new()), entries: 0 };
    fill(&mut archive);
    (archive.builder.into_inner().expect("memory takes everything"), archive.entries)
}

impl Archive {
    pub(crate) fn directory(&mut self, path: &str, mode: u32) {
        self.add(path, EntryType::Directory, &Meta::root(mode), b"", None, (0, 0));
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.add(path, EntryType::Regular, &Meta::root(mode), contents, None, (0, 0));
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.add(path, EntryType::Symlink, &Meta::root(0o777), b"", Some(target), (0, 0));
    }

    fn add(
        &mut self,
        path: &str,
        kind: EntryType,
        meta: &Meta,
        contents: &[u8],
        target: Option<&str>,
        device: (u32, u32),
    ) {
        self.entries += 1;
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        if meta.mtime.1 > 0 {
            records.push(("mtime".to_owned(), format!("{}.{:09}", meta.mtime.0, meta.mtime.1).into_bytes()));
        }
        let attributes = meta.attributes.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone()));
        records.extend(attributes);
        if !records.is_empty() {
            let records = records.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
            self.builder.append_pax_extensions(records).expect("memory takes everything");
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(meta.mode);
        header.set_uid(meta.uid);
        header.set_gid(meta.gid);
        header.set_mtime(meta.mtime.0);
        header.set_size(contents.len() as u64);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(device.0).expect("a GNU header has devices");
            header.set_device_minor(device.1).expect("a GNU header has devices");
        }
        match target {
            Some(target) => self.builder.append_link(&mut header, in_bytes(path), in_bytes(target)),
            None => self.builder.append_data(&mut header, in_bytes(path), contents),
        }
        .expect("memory takes everything");
    }
}

/// Stands for a byte that is no UTF-8, for names are bytes.
const LATIN: char = '\u{f8e9}';

fn in_bytes(text: &str) -> PathBuf {
    let parts: Vec<&[u8]> = text.split(LATIN).map(str::as_bytes).collect();
    PathBuf::from(OsString::from_vec(parts.join(&0xe9)))
}

/// xorshift64*: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Other,
}

/// What is there so far, so that the layers make sense: by path, with the layer that touched it last.
struct Model {
    paths: BTreeMap<String, (Kind, usize)>,
    layer: usize,
    random: Random,
    names: usize,
}

/// The layers of one odd image.
pub(super) fn odd(seed: u64) -> Vec<Layer> {
    let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut model = Model { paths: BTreeMap::new(), layer: 0, random, names: 0 };
    model.paths.insert(String::new(), (Kind::Directory, 0));
    let count = 1 + model.random.below(5);
    (0..count)
        .map(|layer| {
            model.layer = layer;
            let made = archive(|archive| model.fill(archive));
            if model.random.one_in(4) { Layer::plain(made) } else { Layer::gzip(made) }
        })
        .collect()
}

impl Model {
    fn fill(&mut self, archive: &mut Archive) {
        let meta = self.meta(0o755);
        archive.add("./", EntryType::Directory, &meta, b"", None, (0, 0));
        if self.layer > 0 {
            for _ in 0..self.random.below(8) {
                self.take_away(archive);
            }
        }
        for _ in 0..20 + self.random.below(60) {
            self.entry(archive);
        }
    }

    fn meta(&mut self, mode: u32) -> Meta {
        let odd = [0, 0o1000, 0o2000, 0o4000, 0o6000];
        let ids = [0, 0, 1000, 65_534, 65_536, 2_000_000_000, 4_294_967_294];
        Meta {
            mode: if self.random.one_in(5) { mode | self.random.pick(&odd) } else { mode },
            uid: self.random.pick(&ids),
            gid: self.random.pick(&ids),
            mtime: (1_000_000_000 + self.random.next() % 800_000_000, self.nanoseconds()),
            attributes: Vec::new(),
        }
    }

    fn nanoseconds(&mut self) -> u32 {
        if self.random.one_in(2) { u32::try_from(self.random.next() % 1_000_000_000).unwrap_or(0) } else { 0 }
    }

    fn attributes(&mut self, kind: Kind) -> Vec<(&'static str, Vec<u8>)> {
        let mut attributes = Vec::new();
        if kind != Kind::Other && self.random.one_in(6) {
            attributes.push(("user.note", self.bytes(60)));
        }
        if kind == Kind::File && self.random.one_in(10) {
            attributes.push(("user.long", self.bytes(2000)));
        }
        if kind == Kind::File && self.random.one_in(10) {
            // VFS_CAP_REVISION_2 with cap_net_raw (linux/capability.h).
            attributes.push(("security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()));
        }
        attributes
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = 1 + self.random.below(most);
        (0..length).map(|_| u8::try_from(self.random.next() & 0xff).unwrap_or(0)).collect()
    }

    fn of(&mut self, kind: Kind) -> Option<String> {
        let paths: Vec<&String> = self.paths.iter().filter(|(_, (is, _))| *is == kind).map(|(path, _)| path).collect();
        let index = self.random.below(paths.len());
        paths.get(index).map(|path| (*path).clone())
    }

    /// A path that is new, or sometimes one that is there.
    fn path(&mut self) -> String {
        let parent = self.of(Kind::Directory).unwrap_or_default();
        self.names += 1;
        let name = match self.random.below(13) {
            12 => format!("caf{LATIN} {}", self.names),
            0 => format!("{}{}", "n".repeat(250), self.names),
            1 => format!("\u{fc}n\u{ef}code \u{2603} {}", self.names),
            2 => format!("with space and 'quotes' {}", self.names),
            3 | 4 => format!("same{}", self.random.below(6)),
            _ => format!("name-{}", self.names),
        };
        if parent.is_empty() { name } else { format!("{parent}/{name}") }
    }

    /// Notes what is at a path now; what was below something else is gone.
    fn put(&mut self, path: &str, kind: Kind) {
        if kind != Kind::Directory {
            self.forget_below(path);
        }
        let mut at = path;
        while let Some((parent, _)) = at.rsplit_once('/') {
            if let Some(entry) = self.paths.get_mut(parent) {
                entry.1 = self.layer;
            }
            at = parent;
        }
        self.paths.insert(path.to_owned(), (kind, self.layer));
    }

    fn forget_below(&mut self, path: &str) {
        let below = format!("{path}/");
        self.paths.retain(|known, _| !known.starts_with(&below));
    }

    fn entry(&mut self, archive: &mut Archive) {
        let path = self.path();
        // A path of thousands of bytes is another test's.
        if path.len() > 1500 {
            return;
        }
        match self.random.below(20) {
            0..=4 => {
                let mut meta = self.meta(0o755);
                meta.attributes = self.attributes(Kind::Directory);
                let slash = if self.random.one_in(2) { "/" } else { "" };
                archive.add(&format!("{path}{slash}"), EntryType::Directory, &meta, b"", None, (0, 0));
                self.put(&path, Kind::Directory);
            }
            5 => {
                let length = self.random.pick(&[1, 59, 60, 61, 1000, 4000]);
                let target = if self.random.one_in(2) { "/nowhere" } else { "../x" };
                let target: String = target.chars().chain("/y".chars().cycle()).take(length.max(8)).collect();
                let mut meta = self.meta(0o777);
                meta.mode = 0o777;
                archive.add(&path, EntryType::Symlink, &meta, b"", Some(&target), (0, 0));
                self.put(&path, Kind::Other);
            }
            6 => self.special(archive, &path),
            7 | 8 => {
                if let Some(target) = self.of(Kind::File).filter(|target| *target != path) {
                    let meta = self.meta(0o600);
                    archive.add(&path, EntryType::Link, &meta, b"", Some(&target), (0, 0));
                    self.put(&path, Kind::File);
                }
            }
            _ => {
                let length = self.random.pick(&[0, 1, 511, 512, 4095, 4096, 4097, 12_288, 150_000]);
                let contents = if self.random.one_in(4) { vec![0; length] } else { self.contents(length) };
                let mut meta = self.meta(0o644);
                meta.attributes = self.attributes(Kind::File);
                archive.add(&path, EntryType::Regular, &meta, &contents, None, (0, 0));
                self.put(&path, Kind::File);
            }
        }
    }

    fn contents(&mut self, length: usize) -> Vec<u8> {
        let start = self.random.next();
        (0..length as u64)
            .map(|index| u8::try_from((start ^ (index / 7)).wrapping_mul(31) & 0xff).unwrap_or(0))
            .collect()
    }

    fn special(&mut self, archive: &mut Archive, path: &str) {
        let meta = self.meta(0o660);
        let (kind, device) = match self.random.below(3) {
            0 => (EntryType::Fifo, (0, 0)),
            1 => (EntryType::Char, (self.random.pick(&[1, 10, 300]), self.random.pick(&[3, 200, 70_000]))),
            _ => (EntryType::Block, (self.random.pick(&[7, 259]), self.random.pick(&[0, 255, 70_000]))),
        };
        archive.add(path, kind, &meta, b"", None, device);
        self.put(path, Kind::Other);
    }

    /// A whiteout, or an opaque directory: before this layer's own entries, as every builder writes them.
    fn take_away(&mut self, archive: &mut Archive) {
        let meta = Meta::root(0o600);
        if self.random.one_in(3) {
            let Some(directory) = self.of(Kind::Directory).filter(|path| !path.is_empty()) else { return };
            archive.add(&format!("{directory}/.wh..wh..opq"), EntryType::Regular, &meta, b"", None, (0, 0));
            self.forget_below(&directory);
            return;
        }
        let kind = if self.random.one_in(3) { Kind::Directory } else { Kind::File };
        let Some(path) = self.of(kind) else { return };
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
        if name.is_empty() || name.len() > 250 {
            return;
        }
        let whiteout = if parent.is_empty() { format!(".wh.{name}") } else { format!("{parent}/.wh.{name}") };
        archive.add(&whiteout, EntryType::Regular, &meta, b"", None, (0, 0));
        self.forget_below(&path);
        self.paths.remove(&path);
    }
}
