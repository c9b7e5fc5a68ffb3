//! Thousands of odd and hostile stacks of layers, the same ones each time: read as archives and held against [`super::model`];
//! then damaged, and held against nothing but the promise of a typed error in bounded memory.
//!
//! `BANGER_FUZZ_CORPUS=DIR` also writes each archive there, as seeds for `actors/fuzz`.

#![cfg(test)]

use super::build::{Label, build_as};
use super::layer::Layer;
use super::model::{Fault, Item, Kind, Model, View};
use super::random::Random;
use super::tree::Kind as NodeKind;
use super::{Ext4Error, Hashes, ImageFile, Spool, Tree};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

/// Stacks that are compared.
const STACKS: u64 = 2500;
/// Damaged archives, each a damage of one of those.
const DAMAGED: u64 = 2500;
const BLOCK: usize = 512;

/// Few names, so that entries meet.
fn name(random: &mut Random) -> Vec<u8> {
    if random.once_in(150) {
        let odd: [&[u8]; 8] = [b"..", b".", b"caf\xe9", &[b'n'; 256], &[b'm'; 255], b"nul\0nul", b".wh.", b"new\nline"];
        return random.of(&odd).to_vec();
    }
    random.of(&["a", "b", "c", "lib", "usr"]).as_bytes().to_vec()
}

/// Mostly with one of these names at its end: what is no directory is seldom in the way of what is below one.
fn path(random: &mut Random, leaves: &[&str]) -> Vec<u8> {
    let mut path = random.of(&["", "", "", "./", "/", "././", ".//"]).as_bytes().to_vec();
    for depth in 0..=random.below(3) {
        if depth > 0 {
            path.extend_from_slice(random.of(&["/", "/", "/", "/", "//", "/./"]).as_bytes());
        }
        path.extend(name(random));
    }
    if !leaves.is_empty() && !random.once_in(5) {
        path.push(b'/');
        path.extend_from_slice(random.of(leaves).as_bytes());
    }
    if random.once_in(12) {
        path.push(b'/');
    }
    if random.once_in(200) {
        path = random.of(&["", "/", "./", "."]).as_bytes().to_vec();
    }
    path
}

fn target(random: &mut Random) -> Vec<u8> {
    if random.once_in(100) {
        let odd: [&[u8]; 6] = [b"", b"\xff", &[b't'; 4095], &[b't'; 4096], &[b't'; 300], b"a\0b"];
        return random.of(&odd).to_vec();
    }
    let mut target = random.of(&["", "", "/", "../", "./", "../../"]).as_bytes().to_vec();
    target.extend(path(random, &[]));
    target
}

const FILES: [&str; 3] = ["f", "g", "h"];
const LINKS: [&str; 2] = ["l", "lib"];

/// `files` are the paths of files that came before, for hard links to find.
fn item(random: &mut Random, files: &[&[u8]]) -> Item {
    let what = match random.below(100) {
        0..35 => Kind::Directory,
        35..65 => Kind::File(vec![b'0' + u8::try_from(random.below(10)).unwrap(); random.below(1500)]),
        65..80 => Kind::Symlink(target(random)),
        80..92 if !files.is_empty() && !random.once_in(20) => Kind::Link(random.of(files).to_vec()),
        80 => Kind::Link(path(random, &FILES)),
        92..95 => Kind::Fifo,
        95..98 => Kind::Char(1, u32::try_from(random.below(9)).unwrap()),
        98 if random.once_in(4) => Kind::Unknown(b'Z'),
        _ => Kind::File(Vec::new()),
    };
    let mut path = match &what {
        Kind::Directory => path(random, &[]),
        Kind::Symlink(_) => path(random, &LINKS),
        _ => path(random, &FILES),
    };
    if random.once_in(4) {
        let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        if random.once_in(3) {
            path.truncate(start);
            path.extend_from_slice(b".wh..wh..opq");
        } else {
            path.splice(start..start, *random.of(&[b".wh."]));
        }
        if random.once_in(20) {
            path.extend_from_slice(random.of(&["/x", "/.wh..wh.plnk", "/"]).as_bytes());
        }
    }
    let owner = |random: &mut Random| match random.below(1000) {
        0 => 1 << 32,
        1 => u64::from(u32::MAX),
        other => other as u64,
    };
    let (uid, gid) = (owner(random), owner(random));
    let attribute: [&[u8]; 4] = [b"user.a", b"user.b", b"security.selinux", b"trusted.x"];
    let attributes = (0..random.below(3)).map(|_| (random.of(&attribute).to_vec(), vec![1; random.below(9)])).collect();
    let attributes = if random.once_in(500) { vec![(b"user.\xff".to_vec(), vec![])] } else { attributes };
    let mtime = (i64::try_from(random.below(1 << 31)).unwrap(), u32::try_from(random.below(1_000_000_000)).unwrap());
    let mode = u16::try_from(random.below(0o10_000)).unwrap();
    Item { path, what, mode, uid, gid, mtime, attributes }
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest..).find(|length| rest + length.to_string().len() == *length).unwrap();
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

fn member(kind: u8, name: &[u8], link: &[u8], body: &[u8], change: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::new(kind));
    let old = header.as_old_mut();
    old.name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
    old.linkname[..link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(body.len() as u64);
    change(&mut header);
    header.set_cksum();
    let mut bytes = [header.as_bytes(), body].concat();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// One entry as a member of an archive, in one of the ways that archivers have.
fn written(random: &mut Random, item: &Item) -> Vec<u8> {
    let (kind, link, body): (u8, &[u8], &[u8]) = match &item.what {
        Kind::Directory => (b'5', b"", b""),
        Kind::File(contents) => (*random.of(&[&b'0', &b'0', &b'0', &b'7']), b"", contents),
        Kind::Symlink(target) => (b'2', target, b""),
        Kind::Link(target) => (b'1', target, b""),
        Kind::Fifo => (b'6', b"", b""),
        Kind::Char(..) => (b'3', b"", b""),
        Kind::Unknown(kind) => (*kind, b"", b""),
    };
    let mut bytes = Vec::new();
    let mut records = record(b"mtime", format!("{}.{:09}", item.mtime.0, item.mtime.1).as_bytes());
    let long = |text: &[u8]| text.len() > 100 || text.contains(&0) || text.is_empty();
    let gnu = random.once_in(3);
    for (text, letter, key) in [(item.path.as_slice(), b'L', b"path".as_slice()), (link, b'K', b"linkpath")] {
        let needed = long(text) && !(text.is_empty() && key == b"linkpath");
        if needed && gnu && !text.contains(&0) && !text.is_empty() {
            bytes.extend(member(letter, b"././@LongLink", b"", &[text, b"\0"].concat(), |_| {}));
        } else if !text.is_empty() && (needed || random.once_in(6)) {
            records.extend(record(key, text));
        }
    }
    for (key, value) in &item.attributes {
        records.extend(record(&[b"SCHILY.xattr.", key.as_slice()].concat(), value));
    }
    if random.once_in(8) {
        records.extend(record(b"comment", b"a\n12 path=elsewhere\n"));
        records.extend(record(b"path", b""));
        records.extend(record(b"size", body.len().to_string().as_bytes()));
    }
    for (key, value) in [(b"uid".as_slice(), item.uid), (b"gid", item.gid)] {
        if value >= 1 << 21 || random.once_in(9) {
            records.extend(record(key, value.to_string().as_bytes()));
        }
    }
    if random.once_in(30) {
        bytes.extend(member(b'g', b"pax_global_header", b"", &record(b"comment", b"0123"), |_| {}));
    }
    bytes.extend(member(b'x', b"PaxHeaders/x", b"", &records, |_| {}));
    bytes.extend(member(kind, &item.path, link, body, |header| {
        header.set_mode(u32::from(item.mode) | if random.once_in(5) { 0o100_000 } else { 0 });
        if item.uid < 1 << 21 {
            header.set_uid(item.uid);
        }
        if item.gid < 1 << 21 {
            header.set_gid(item.gid);
        }
        if let Kind::Char(major, minor) = item.what {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        }
    }));
    bytes
}

/// The stack of a number: layers, each as its entries and as their archive.
fn stack(number: u64) -> Vec<(Vec<Item>, Vec<u8>)> {
    let mut random = Random(number);
    let layers = 1 + random.below(3);
    let mut stack: Vec<(Vec<Item>, Vec<u8>)> = Vec::new();
    for _ in 0..layers {
        let mut items: Vec<Item> = Vec::new();
        for _ in 0..=random.below(8) {
            let earlier = stack.iter().flat_map(|(items, _)| items).chain(&items);
            let files = earlier.filter(|item| matches!(item.what, Kind::File(_))).map(|item| item.path.as_slice());
            let item = item(&mut random, &files.collect::<Vec<_>>());
            items.push(item);
        }
        if random.once_in(4) {
            // Said twice, the second time differently or not.
            let again = items[random.below(items.len())].clone();
            items.push(again);
        }
        let mut archive: Vec<u8> = items.iter().flat_map(|item| written(&mut random, item)).collect();
        archive.resize(archive.len() + random.below(3) * BLOCK, 0);
        stack.push((items, archive));
    }
    stack
}

fn read(stack: &[(Vec<Item>, Vec<u8>)], directory: &Path) -> Result<Tree, Ext4Error> {
    let image = Arc::new(ImageFile::create(directory)?);
    let mut tree = Tree::layered(Arc::clone(&image));
    for (number, (_, archive)) in stack.iter().enumerate() {
        tree.add_layer(Layer::read(archive.as_slice(), Spool::new(&image, number, Hashes::Left))?)?;
    }
    Ok(tree)
}

fn views(tree: &Tree) -> BTreeMap<Vec<u8>, View> {
    let mut found = BTreeMap::new();
    tree.walk(|path, node| {
        found.insert(path.to_owned(), node);
    });
    let mut first_names = BTreeMap::new();
    let mut views = BTreeMap::new();
    for (path, node) in found {
        let first_name = first_names.entry(node).or_insert_with(|| path.clone()).clone();
        let node = &tree.nodes()[node];
        let mut contents = Vec::new();
        let what = match &node.kind {
            NodeKind::Directory(_) => "directory".to_owned(),
            NodeKind::File(spooled) => {
                tree.reader(spooled).read_to_end(&mut contents).unwrap();
                "file".to_owned()
            }
            NodeKind::Symlink(target) => format!("link {}", target.escape_ascii()),
            NodeKind::Special(super::tree::Special::Fifo) => "fifo".to_owned(),
            NodeKind::Special(super::tree::Special::Char { major, minor }) => format!("char {major}:{minor}"),
            NodeKind::Special(other) => format!("{other:?}"),
        };
        views.insert(path, View { what, contents, meta: node.meta, attributes: node.attributes.clone(), first_name });
    }
    views
}

#[test]
fn every_stack_of_layers_is_what_the_model_makes_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let corpus = std::env::var_os("BANGER_FUZZ_CORPUS").map(std::path::PathBuf::from);
    let (mut made, mut refused) = (0, BTreeMap::new());
    for number in 0..STACKS {
        let stack = stack(number);
        for (layer, (_, archive)) in stack.iter().enumerate().filter(|_| number % 10 == 0) {
            if let Some(corpus) = &corpus {
                std::fs::write(corpus.join(format!("stack-{number:04}-{layer}")), archive).unwrap();
            }
        }
        let mut model = Model::new();
        let expected = stack.iter().try_for_each(|(items, _)| model.apply(items));
        let read = read(&stack, directory.path());
        let items = || stack.iter().map(|(items, _)| items).collect::<Vec<_>>();
        match (read, expected) {
            (Ok(tree), Ok(())) => {
                made += 1;
                let (views, expected) = (views(&tree), model.views());
                let names = |views: &BTreeMap<Vec<u8>, View>| views.keys().cloned().collect::<Vec<_>>();
                assert_eq!(names(&views), names(&expected), "stack {number}: {:#?}", items());
                for (path, view) in &views {
                    assert_eq!(view, &expected[path], "stack {number}, `{}`: {:#?}", path.escape_ascii(), items());
                }
                if number % 100 == 0 {
                    assert_buildable(tree, directory.path(), number);
                }
            }
            (Err(error), Err(fault)) => {
                assert_eq!(Fault::from(&error), fault, "stack {number}: {error}: {:#?}", items());
                *refused.entry(format!("{fault:?}")).or_insert(0) += 1;
            }
            (read, expected) => {
                panic!("stack {number}: {:?} instead of {expected:?}: {:#?}", read.map(drop), items());
            }
        }
    }
    // The generator is worth something only while both happen often, the refusals for every reason.
    assert!(made > STACKS / 3, "{made} of {STACKS} made a tree; {refused:?}");
    assert!(refused.len() >= 4 && refused.values().all(|count| *count >= 5), "{refused:?}");
}

fn assert_buildable(tree: Tree, directory: &Path, number: u64) {
    let file = directory.join("fs.ext4");
    build_as(tree, &file, Label("test"), &[7; 32]).unwrap_or_else(|error| panic!("stack {number}: {error}"));
    super::tests::assert_clean(&file);
}

/// Damage of many kinds; a header's checksum is often put right again, or hardly anything would get past it.
fn damage(random: &mut Random, archive: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        match random.below(10) {
            0 => archive.truncate(random.below(archive.len() + 1)),
            1 => {
                let from = random.below(archive.len().div_ceil(BLOCK).max(1)) * BLOCK;
                let block = archive.get(from..from + BLOCK).map(<[u8]>::to_vec).unwrap_or_default();
                let at = random.below(archive.len() / BLOCK + 1) * BLOCK;
                archive.splice(at..at, block);
            }
            _ if archive.is_empty() => return,
            2 => {
                // A size beyond all sense, in one of the ways that a header has.
                let records = [
                    record(b"size", random.of(&[b"18446744073709551615".as_slice(), b"1099511627776", b"-1", b"x"])),
                    record(b"GNU.sparse.size", b"9223372036854775807"),
                    record(b"GNU.sparse.map", b"0,1,18446744073709551615,2"),
                ];
                let kept = random.below(3);
                archive.splice(0..0, member(b'x', b"x", b"", &records[..=kept].concat(), |_| {}));
            }
            kind => {
                let at = random.below(archive.len());
                archive[at] = u8::try_from(random.next() & 0xff).unwrap();
                // Not where a sparse file of the old kind says how long it is: it may say 256 GiB, and be read as such.
                if kind < 8 && at % BLOCK < 345 && archive.len() >= at / BLOCK * BLOCK + BLOCK {
                    put_right(&mut archive[at / BLOCK * BLOCK..][..BLOCK]);
                }
            }
        }
    }
}

fn put_right(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Bytes that a layer keeps of its archive in memory.
fn kept(layer: &Layer) -> usize {
    layer.entries.iter().map(super::layer::Entry::names).sum()
}

#[test]
fn no_damage_is_more_than_a_typed_error() {
    let directory = tempfile::tempdir().unwrap();
    let (mut fine, mut refused) = (0, 0);
    for number in 0..DAMAGED {
        let mut random = Random(!number);
        let image = Arc::new(ImageFile::create(directory.path()).unwrap());
        let mut tree = Tree::layered(Arc::clone(&image));
        let outcome = stack(number).into_iter().enumerate().try_for_each(|(number, (_, mut archive))| {
            damage(&mut random, &mut archive);
            let layer = Layer::read(archive.as_slice(), Spool::new(&image, number, Hashes::Left))?;
            // Every entry has a header, and every byte that is kept was in the archive once.
            assert!(layer.entries.len() <= archive.len() / BLOCK, "stack {number}");
            assert!(kept(&layer) <= archive.len(), "stack {number}");
            tree.add_layer(layer)
        });
        match outcome {
            Ok(()) => fine += 1,
            Err(error) => {
                refused += 1;
                let wire = messages::WireError::from(&error);
                assert!(wire.kind != messages::ErrorKind::Internal, "stack {number}: {error}");
            }
        }
        // What was put there until then can be walked and hashed.
        assert!(tree.digest().unwrap() != [0; 32]);
    }
    assert!(fine > DAMAGED / 20 && refused > DAMAGED / 4, "{fine} fine, {refused} refused");
}

#[test]
fn holes_that_are_larger_than_any_image_are_refused_before_they_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let sparse = |size: &[u8]| {
        let records = [record(b"GNU.sparse.size", size), record(b"GNU.sparse.map", b"")].concat();
        [member(b'x', b"x", b"", &records, |_| {}), member(b'0', b"hole", b"", b"", |_| {})].concat()
    };
    let archive = [sparse(b"1000000"), sparse(b"274877900000"), sparse(b"9000000000000000000")].concat();
    let started = std::time::Instant::now();
    for archive in [&archive[..], &archive[6 * BLOCK..]] {
        let image = Arc::new(ImageFile::create(directory.path()).unwrap());
        let error = Layer::read(archive, Spool::new(&image, 0, Hashes::Left)).unwrap_err();
        assert!(matches!(error, Ext4Error::TooMuch { what: "bytes", .. } | Ext4Error::Archive(_)), "{error}");
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "holes were read: {:?}", started.elapsed());
}
