//! File systems made here, judged by e2fsck and read by debugfs: neither is ours.

#![cfg(test)]

use super::disk::{SIZE_MAX, SIZE_MIN, TEMPLATES_MAX, copy_from, create_disk};
use super::image_file::NAMES_MAX;
use super::layer::Layer;
use super::tarball::{Verdict, read_tar};
use super::{Built, Ext4Error, Hashes, ImageFile, Label, Limits, Meta, Spool, Tree, build, build_as};
use messages::{ErrorKind, WireError};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

fn tool(program: &str, arguments: &[&str], path: &Path) -> (bool, String) {
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).arg(path).env("PATH", search).output().unwrap();
    // debugfs writes its banner to stderr: what it was asked for comes last.
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    (output.status.success(), text)
}

pub(super) fn assert_clean(path: &Path) {
    let (clean, said) = tool("e2fsck", &["-fn"], path);
    assert!(clean, "{said}");
}

fn debugfs(path: &Path, request: &str) -> String {
    tool("debugfs", &["-R", request], path).1
}

/// A tar archive being written.
struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(&mut self, path: &str, kind: tar::EntryType, change: impl FnOnce(&mut tar::Header), contents: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(contents.len() as u64);
        change(&mut header);
        self.0.append_data(&mut header, path, contents).unwrap();
    }

    fn file(&mut self, path: &str, contents: &[u8]) {
        self.add(path, tar::EntryType::Regular, |_| {}, contents);
    }

    fn link(&mut self, path: &str, kind: tar::EntryType, target: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        self.0.append_link(&mut header, path, target).unwrap();
    }

    fn pax(&mut self, records: &[(&str, &[u8])]) {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Everything that a Linux system may have, and a few things that only a test has.
fn odd_archive() -> Vec<u8> {
    use tar::EntryType::{Block, Char, Directory, Fifo, Link, Symlink};
    let mut archive = Archive::new();
    archive.add("./", Directory, |header| header.set_mode(0o755), b"");
    archive.add("./tmp", Directory, |header| header.set_mode(0o1777), b"");
    archive.add("bin/su", tar::EntryType::Regular, |header| header.set_mode(0o4755), b"setuid");
    archive.link("bin/also-su", Link, "./bin/su");
    archive.link("bin/sh", Symlink, "su");
    archive.link("long-link", Symlink, &"x/".repeat(2000));
    archive.add("dev/null", Char, |header| device(header, 1, 3), b"");
    archive.add("dev/vdz", Block, |header| device(header, 259, 70_000), b"");
    archive.add("run/pipe", Fifo, |header| header.set_mode(0o600), b"");
    archive.add("owned", tar::EntryType::Regular, owned_by_many, b"x");
    archive.pax(&[
        ("mtime", b"1700000000.123456789"),
        (
            "SCHILY.xattr.security.capability",
            b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        ),
        ("SCHILY.xattr.user.note", b"hello"),
        ("SCHILY.xattr.security.selinux", b"the host's"),
    ]);
    archive.file("bin/ping", b"capable");
    archive.file(&format!("names/{}", "n".repeat(255)), b"long");
    archive.file("names/\u{fc}n\u{ef}code \u{2603}", b"utf-8");
    archive.file(&format!("{}deep", "d/".repeat(60)), b"deep");
    archive.file("zeros", &vec![0; 10 << 20]);
    archive.file("empty", b"");
    archive.file("replaced", b"old contents");
    archive.file("replaced", b"new");
    for index in 0..3000 {
        archive.file(&format!("many/file-{index:05}"), index.to_string().as_bytes());
    }
    archive.bytes()
}

fn device(header: &mut tar::Header, major: u32, minor: u32) {
    header.set_device_major(major).unwrap();
    header.set_device_minor(minor).unwrap();
}

fn owned_by_many(header: &mut tar::Header) {
    header.set_uid(100_000);
    header.set_gid(70_000);
}

fn tree(directory: &Path, archive: &[u8]) -> Result<Tree, Ext4Error> {
    let mut tree = Tree::create(directory)?;
    read_tar(&mut tree, archive, |path| if path == b"many/file-00007" { Verdict::Drop } else { Verdict::Keep })?;
    Ok(tree)
}

fn built(directory: &Path, name: &str, archive: &[u8]) -> Built {
    build(tree(directory, archive).unwrap(), &directory.join(name), Label("test")).unwrap()
}

#[test]
fn an_archive_of_oddities_becomes_a_clean_file_system() {
    let directory = tempfile::tempdir().unwrap();
    let made = built(directory.path(), "fs.ext4", &odd_archive());
    let path = directory.path().join("fs.ext4");
    assert_clean(&path);
    assert_eq!(fs::metadata(&path).unwrap().len(), made.size_bytes);
    assert!(fs::metadata(&path).unwrap().blocks() * 512 < 24 << 20, "zeros are holes, and there is no journal");

    let stat = |what: &str| debugfs(&path, &format!("stat \"{what}\""));
    assert!(debugfs(&path, "show_super_stats -h").contains(&made.uuid.to_string()));
    assert!(stat("/tmp").contains("Mode:  01777"), "{}", stat("/tmp"));
    assert!(stat("/bin/su").contains("Mode:  04755") && stat("/bin/su").contains("Links: 2"));
    assert!(debugfs(&path, "cat /bin/also-su").ends_with("setuid"));
    assert!(stat("/bin/sh").contains("Fast link dest: \"su\""));
    assert!(stat("/long-link").contains("Size: 4000"));
    assert!(stat("/dev/null").contains("01:03"), "{}", stat("/dev/null"));
    assert!(stat("/dev/vdz").contains("259:70000"), "{}", stat("/dev/vdz"));
    assert!(stat("/run/pipe").contains("Type: FIFO"));
    assert!(stat("/owned").contains("User: 100000   Group: 70000"), "{}", stat("/owned"));
    let ping = stat("/bin/ping");
    // ext4 keeps nanoseconds in the upper 30 bits of the extra time field.
    assert!(ping.contains(&format!("{:08x}", 123_456_789_u32 << 2)), "{ping}");
    assert!(ping.contains("user.note") && ping.contains("security.capability") && !ping.contains("selinux"), "{ping}");
    assert!(debugfs(&path, &format!("cat /names/{}", "n".repeat(255))).contains("long"));
    assert!(debugfs(&path, "cat \"/names/\u{fc}n\u{ef}code \u{2603}\"").contains("utf-8"));
    assert!(debugfs(&path, &format!("cat /{}deep", "d/".repeat(60))).contains("deep"));
    assert!(stat("/zeros").contains("Size: 10485760"));
    assert!(debugfs(&path, "cat /replaced").ends_with("new"));
    assert!(debugfs(&path, "cat /many/file-02999").contains("2999"));
    assert!(debugfs(&path, "cat /many/file-00007").contains("File not found"));
}

#[test]
fn equal_archives_give_equal_files_and_other_ones_others() {
    let directory = tempfile::tempdir().unwrap();
    let archive = |contents: &[u8]| {
        let mut archive = Archive::new();
        archive.file("a", contents);
        archive.file("b", b"b");
        archive.bytes()
    };
    let one = built(directory.path(), "one", &archive(b"a"));
    let two = built(directory.path(), "two", &archive(b"a"));
    assert_eq!(one, two);
    assert!(fs::read(directory.path().join("one")).unwrap() == fs::read(directory.path().join("two")).unwrap());
    assert_ne!(built(directory.path(), "three", &archive(b"A")).uuid, one.uuid);
}

/// Layers side by side: which was faster must not show.
#[test]
fn contents_lie_in_the_order_of_their_layers_whoever_was_first() {
    let directory = tempfile::tempdir().unwrap();
    let layer = |number: u8| {
        let mut archive = Archive::new();
        archive.file(&format!("large-{number}"), &vec![b'a' + number; 3 << 20]);
        archive.file(&format!("holes-{number}"), &[vec![0; 1 << 20], vec![number + 1; 5000], vec![0; 70_000]].concat());
        // Replaced by the next layer's.
        archive.file("common", &vec![number + 101; 100_000 * (usize::from(number) + 1)]);
        archive.bytes()
    };
    let layers = [layer(0), layer(1), layer(2)];
    let made = |order: [usize; 3], name: &str| {
        let image = Arc::new(ImageFile::create(directory.path()).unwrap());
        let mut read: Vec<(usize, Layer)> = order
            .into_iter()
            .map(|number| {
                let spool = Spool::new(&image, number, Hashes::Left);
                (number, Layer::read(layers[number].as_slice(), spool).unwrap())
            })
            .collect();
        read.sort_by_key(|(number, _)| *number);
        let mut tree = Tree::layered(image);
        read.into_iter().for_each(|(_, layer)| tree.add_layer(layer).unwrap());
        let path = directory.path().join(name);
        build_as(tree, &path, Label("test"), &[7; 32]).unwrap();
        assert_clean(&path);
        path
    };
    let first = made([0, 1, 2], "first");
    let bytes = fs::read(&first).unwrap();
    for (number, order) in [[2, 1, 0], [1, 0, 2], [2, 0, 1], [0, 2, 1]].into_iter().enumerate() {
        assert!(fs::read(made(order, &number.to_string())).unwrap() == bytes, "{order:?}");
    }
    for number in 0..3_u8 {
        let letters = char::from(b'a' + number).to_string().repeat(9);
        assert!(debugfs(&first, &format!("cat /large-{number}")).ends_with(&letters));
    }
    assert!(debugfs(&first, "stat /common").contains("Size: 300000"));
    // Two of the three `common` are nobody's any more.
    assert!(fs::metadata(&first).unwrap().blocks() * 512 < (9 << 20) + 300_000 + (512 << 10));
}

#[test]
fn an_image_is_its_contents_and_a_little() {
    let directory = tempfile::tempdir().unwrap();
    let mut tree = Tree::create(directory.path()).unwrap();
    for index in 0_u32..200 {
        let contents = vec![1; 1 << 20];
        tree.file(format!("f/{index}").as_bytes(), Meta::root(0o644), &mut contents.as_slice()).unwrap();
    }
    let made = build(tree, &directory.path().join("fs"), Label("test")).unwrap();
    assert_clean(&directory.path().join("fs"));
    assert!(made.size_bytes < 202 << 20, "{} MiB for 200 MiB", made.size_bytes >> 20);
}

#[test]
fn what_cannot_be_stored_is_a_typed_error() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |fill: &dyn Fn(&mut Tree) -> Result<(), Ext4Error>| {
        fill(&mut Tree::create(directory.path()).unwrap()).unwrap_err()
    };
    let file = |path: &'static [u8]| move |tree: &mut Tree| tree.file(path, Meta::root(0o644), &mut std::io::empty());
    assert!(matches!(refused(&file(b"a/../../b")), Ext4Error::BadPath { .. }));
    assert!(matches!(refused(&file(b"a\0b")), Ext4Error::BadPath { .. }));
    assert!(matches!(refused(&|tree| tree.hard_link(b"a", b"b")), Ext4Error::DanglingLink { .. }));
    assert!(matches!(
        refused(&|tree| {
            file(b"lib")(tree)?;
            file(b"lib/x")(tree)
        }),
        Ext4Error::ParentNotDirectory { .. }
    ));
}

/// A megabyte of zeros or so for each of a million entries compresses to nothing: it must not come to be kept.
#[test]
fn what_an_entry_makes_one_keep_is_bounded_when_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let image = Arc::new(ImageFile::create(directory.path()).unwrap());
    let mut number = 0;
    let mut read = |records: &[(&str, &[u8])], kind: tar::EntryType| {
        let mut archive = Archive::new();
        archive.pax(records);
        match kind {
            tar::EntryType::Regular => archive.file("name", b""),
            link => archive.link("name", link, "target"),
        }
        let spool = Spool::new(&image, number, Hashes::Left);
        number += 1;
        Layer::read(archive.bytes().as_slice(), spool).map(|mut layer| layer.entries.remove(0))
    };
    let (longest, longer) = ([b'd'; 4095], [b'd'; 4096]);
    assert_eq!(read(&[("path", &longest)], tar::EntryType::Regular).unwrap().path, longest);
    for (key, kind) in
        [("path", tar::EntryType::Regular), ("linkpath", tar::EntryType::Symlink), ("linkpath", tar::EntryType::Link)]
    {
        let error = read(&[(key, &longer)], kind).err().unwrap();
        assert!(matches!(error, Ext4Error::BadPath { .. }), "{key}: {error}");
        assert!(error.to_string().len() < 200, "{error}");
    }
    let named = |length: usize| format!("SCHILY.xattr.user.{}", "n".repeat(length - 5));
    assert_eq!(read(&[(&named(255), b"x")], tar::EntryType::Regular).unwrap().attributes.len(), 1);
    let values = |length: usize| vec![b'v'; length];
    for records in [
        vec![(named(256), values(1))],
        vec![(named(6), values(9000))],
        (6..15).map(|length| (named(length), values(1000))).collect(),
    ] {
        let records: Vec<_> = records.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        let error = read(&records, tar::EntryType::Regular).err().unwrap();
        assert!(matches!(error, Ext4Error::Attribute { .. }), "{error}");
        assert!(error.to_string().len() < 300, "{error}");
    }
    // Said again and again, it is kept once.
    let again = vec![(named(6), values(1000)); 20];
    let again: Vec<_> = again.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
    assert_eq!(read(&again, tar::EntryType::Regular).unwrap().attributes.len(), 1);
    // All layers of an image share one bound.
    image.remember(NAMES_MAX - 8000).unwrap();
    let error = read(&[("path", &longest)], tar::EntryType::Regular).err().unwrap();
    assert!(matches!(error, Ext4Error::TooMuch { what: "bytes of names and attributes", .. }), "{error}");
}

fn read_layer(image: &Arc<ImageFile>, number: usize, archive: Archive) -> Result<Layer, Ext4Error> {
    Layer::read(archive.bytes().as_slice(), Spool::new(image, number, Hashes::Left))
}

#[test]
fn a_directory_is_looked_through_once_for_all_markers_of_a_layer() {
    const MANY: usize = 100_000;
    let directory = tempfile::tempdir().unwrap();
    let image = Arc::new(ImageFile::create(directory.path()).unwrap());
    let mut tree = Tree::layered(Arc::clone(&image));
    let mut base = Archive::new();
    base.file("d/old", b"");
    tree.add_layer(read_layer(&image, 0, base).unwrap()).unwrap();
    let mut top = Archive::new();
    for number in 0..MANY {
        top.link(&format!("d/e/f/{number}"), tar::EntryType::Symlink, "x");
    }
    for _ in 0..MANY / 3 {
        // The one that is deepest first, so that each would look through what is below it once more.
        for marker in ["d/e/f/.wh..wh..opq", "d/e/.wh..wh..opq", ".wh.d"] {
            top.file(marker, b"");
        }
    }
    let top = read_layer(&image, 1, top).unwrap();
    let started = std::time::Instant::now();
    tree.add_layer(top).unwrap();
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert!(!tree.contains(b"d/old").unwrap() && tree.contains(b"d/e/f/99999").unwrap());
}

#[test]
fn reading_and_stacking_end_when_they_are_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    let cancel = CancellationToken::new();
    let limits = Limits { cancel: cancel.clone(), ..Limits::default() };
    let image = Arc::new(ImageFile::limited(directory.path(), limits).unwrap());
    let one = || {
        let mut archive = Archive::new();
        archive.file("f", b"contents");
        archive
    };
    let read = read_layer(&image, 0, one()).unwrap();
    let mut tree = Tree::layered(Arc::clone(&image));
    cancel.cancel();
    assert!(matches!(read_layer(&image, 1, one()), Err(Ext4Error::Cancelled)));
    assert!(matches!(tree.add_layer(read), Err(Ext4Error::Cancelled)));
    assert!(matches!(tree.digest(), Err(Ext4Error::Cancelled)));
    assert_eq!(WireError::from(&Ext4Error::Cancelled).kind, ErrorKind::Cancelled);
}

/// By way of links a directory lies deeper than any path is long.
#[test]
fn a_long_path_is_in_memory_once_however_many_names_are_below_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut tree = Tree::create(directory.path()).unwrap();
    let mut end = "d/".repeat(2000);
    for number in 0..10 {
        tree.directory(end.as_bytes(), Meta::root(0o755)).unwrap();
        tree.symlink(format!("l{number}").as_bytes(), Meta::root(0o777), end.as_bytes()).unwrap();
        end = format!("l{number}/{}", "d/".repeat(2000));
    }
    for number in 0..3000 {
        tree.file(format!("l9/f{number}").as_bytes(), Meta::root(0o644), &mut std::io::empty()).unwrap();
    }
    let peak = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    let before = peak();
    let mut longest = 0;
    assert_eq!(tree.files(|path| (longest = longest.max(path.len()), false).1).len(), 0);
    assert!(longest > 10 * 4000, "{longest}");
    assert!(peak() - before < 32 << 20, "{} MiB", (peak() - before) >> 20);
}

/// Names are bytes to a kernel.
#[test]
fn names_need_not_be_text() {
    let directory = tempfile::tempdir().unwrap();
    let mut tree = Tree::create(directory.path()).unwrap();
    tree.file(b"caf\xe9/\xff\xfe", Meta::root(0o644), &mut &b"latin"[..]).unwrap();
    tree.symlink(b"link", Meta::root(0o777), b"caf\xe9").unwrap();
    tree.attribute(b"caf\xe9", b"user.\xf1", vec![1, 2]).unwrap();
    let path = directory.path().join("fs");
    build(tree, &path, Label("test")).unwrap();
    assert_clean(&path);
    for (request, expected) in
        [("ls -p /", b"/caf\xe9/".as_slice()), ("ls -p /link/", b"/\xff\xfe/"), ("ea_list <12>", b"75 73 65 72 2e f1")]
    {
        let mut debugfs = Command::new("debugfs");
        let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let said = debugfs.args(["-R", request]).arg(&path).env("PATH", search).output().unwrap().stdout;
        assert!(said.windows(expected.len()).any(|part| part == expected), "{request}: {}", said.escape_ascii());
    }
}

#[test]
fn lost_and_found_is_the_file_systems_own() {
    let directory = tempfile::tempdir().unwrap();
    let mut archive = Archive::new();
    archive.add("lost+found/", tar::EntryType::Directory, |_| {}, b"");
    archive.add("etc/lost+found/", tar::EntryType::Directory, |_| {}, b"");
    archive.file("etc/lost+found/kept", b"1");
    built(directory.path(), "fs", &archive.bytes());
    assert_clean(&directory.path().join("fs"));
    assert_eq!(debugfs(&directory.path().join("fs"), "cat /etc/lost+found/kept").lines().last(), Some("1"));
    let mut archive = Archive::new();
    archive.file("lost+found/found", b"1");
    let tree = tree(directory.path(), &archive.bytes()).unwrap();
    let refused = build(tree, &directory.path().join("other"), Label("test"));
    assert!(matches!(refused, Err(Ext4Error::Kind { .. })), "{refused:?}");
}

#[test]
fn an_archive_that_breaks_off_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut archive = Archive::new();
    archive.file("a", &[7; 5000]);
    let bytes = archive.bytes();
    for cut in [100, 512 + 10, 512 + 4999] {
        let error = tree(directory.path(), &bytes[..cut]).unwrap_err();
        assert!(matches!(error, Ext4Error::Archive(_)), "{cut}: {error}");
    }
}

#[test]
fn a_disk_is_a_sparse_copy_of_a_template() {
    let directory = tempfile::tempdir().unwrap();
    let templates = directory.path().join("templates");
    let (one, two) = (directory.path().join("1.ext4"), directory.path().join("2.ext4"));
    let uuid = create_disk(&templates, &one, (256 << 20) - 5).unwrap();
    assert_eq!(create_disk(&templates, &two, 256 << 20).unwrap(), uuid);
    assert_eq!(fs::read_dir(&templates).unwrap().count(), 1, "made once");
    for path in [&one, &two] {
        assert_clean(path);
        assert_eq!(fs::metadata(path).unwrap().len(), 256 << 20);
        assert!(fs::metadata(path).unwrap().blocks() * 512 < 2 << 20);
        assert!(debugfs(path, "show_super_stats -h").contains(&uuid.to_string()));
        for made in ["/upper", "/work", "/docker", "/containerd", "/containers"] {
            let stat = debugfs(path, &format!("stat {made}"));
            assert!(stat.contains("Mode:  0755") && stat.contains("User:     0"), "{made}: {stat}");
        }
    }
    assert!(create_disk(&templates, &two, 256 << 20).is_err(), "a disk that is there is not replaced");
    assert!(two.exists());
}

/// A daemon that is killed in the middle of a copy leaves no disk, and what it leaves goes with the next copy.
#[test]
fn a_disk_has_its_name_only_once_it_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (templates, vm) = (directory.path().join("templates"), directory.path().join("vm"));
    fs::create_dir(&vm).unwrap();
    let disk = vm.join("disk.ext4");
    for planted in [".disk.ext4.x1.partial", "console.log"] {
        fs::write(vm.join(planted), "half of it").unwrap();
    }
    create_disk(&templates, &disk, 64 << 20).unwrap();
    let names = || {
        let entries = fs::read_dir(&vm).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        entries.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names(), ["console.log".to_owned(), "disk.ext4".to_owned()].into());
    // Whoever looks at the name at any moment sees nothing or all of it.
    let whole = fs::read(&disk).unwrap();
    let made = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..30 {
                fs::remove_file(&disk).unwrap();
                create_disk(&templates, &disk, 64 << 20).unwrap();
            }
            made.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        while !made.load(std::sync::atomic::Ordering::SeqCst) {
            if let Ok(bytes) = fs::read(&disk) {
                assert!(bytes == whole, "a disk was there before it was whole");
            }
        }
    });
    assert!(create_disk(&templates, &disk, 64 << 20).is_err());
    assert_eq!(names().len(), 2, "nor does one that fails leave anything");
}

/// Those used last stay, others go, and nothing else in the directory is touched.
#[test]
fn templates_are_bounded_by_their_last_use() {
    let directory = tempfile::tempdir().unwrap();
    let templates = directory.path().join("templates");
    fs::create_dir(&templates).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    let plant = |name: &str, age: u64| {
        let file = fs::File::create(templates.join(name)).unwrap();
        file.set_modified(long_ago - Duration::from_secs(age)).unwrap();
    };
    let uuid = uuid::Uuid::from_u128(7);
    for size in 100..120_u64 {
        plant(&format!("disk-v1-{size}M-{uuid}.ext4"), 120 - size);
    }
    plant(&format!("disk-v0-64M-{uuid}.ext4"), 1000);
    plant("disk.cut-off.partial", 0);
    plant("somebody.else", 0);
    fs::write(templates.join("disk.being-made.partial"), "").unwrap();
    // An old template is used, which makes it the newest.
    create_disk(&templates, &directory.path().join("one"), 101 << 20).unwrap();
    assert_eq!(fs::read_dir(&templates).unwrap().count(), 24, "a template that is there is no reason to look");
    create_disk(&templates, &directory.path().join("two"), 64 << 20).unwrap();
    let mut left: Vec<String> =
        fs::read_dir(&templates).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort_unstable();
    let kept: Vec<&str> = left.iter().filter_map(|name| name.strip_prefix("disk-v1-")?.split('M').next()).collect();
    assert_eq!(kept, ["101", "114", "115", "116", "117", "118", "119", "64"]);
    assert_eq!(kept.len(), TEMPLATES_MAX);
    assert_eq!(left.iter().filter(|name| !name.starts_with("disk-")).count(), 2, "{left:?}");
    assert!(!left.iter().any(|name| name.starts_with("disk-v0") || name.contains("cut-off")), "{left:?}");
}

/// Creates of more sizes than are kept take the templates from under each other, and every disk is whole all the same.
#[test]
fn creates_at_once_survive_each_others_trim() {
    let directory = tempfile::tempdir().unwrap();
    let templates = directory.path().join("templates");
    std::thread::scope(|scope| {
        for worker in 0..3_u64 {
            let (templates, directory) = (&templates, directory.path());
            scope.spawn(move || {
                for size in 0..2 * TEMPLATES_MAX as u64 {
                    let path = directory.join(format!("{worker}-{size}"));
                    let bytes = (64 + (size * (worker + 1)) % 12) << 20;
                    create_disk(templates, &path, bytes).unwrap();
                    assert_eq!(fs::metadata(&path).unwrap().len(), bytes);
                    fs::remove_file(&path).unwrap();
                }
            });
        }
    });
    // Each of the three may have made its last one after the others had trimmed.
    assert!(fs::read_dir(&templates).unwrap().count() <= TEMPLATES_MAX + 3);
}

#[test]
fn absurd_sizes_are_refused_and_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    for bytes in [0, 3, SIZE_MIN - 1, SIZE_MAX + 1, u64::MAX] {
        let error = create_disk(directory.path(), &directory.path().join("disk"), bytes).unwrap_err();
        assert!(matches!(error, Ext4Error::DiskSize { asked, .. } if asked == bytes));
        assert_eq!(WireError::from(&error).kind, ErrorKind::Usage);
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_sparse_copy_is_equal_and_as_sparse() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    let file = fs::File::create(&from).unwrap();
    file.set_len(64 << 20).unwrap();
    for at in [0_u64, 1 << 20, (32 << 20) + 4096, (64 << 20) - 100] {
        file.write_all_at(&[9; 100], at).unwrap();
    }
    copy_from(&fs::File::open(&from).unwrap(), &to).unwrap();
    assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
    assert!(fs::metadata(&to).unwrap().blocks() <= fs::metadata(&from).unwrap().blocks() + 64);
}

#[test]
fn a_full_disk_is_told_apart() {
    let full = std::io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32);
    let error = Ext4Error::write(Path::new("x"), full);
    assert!(matches!(error, Ext4Error::NoSpace { .. }));
    let wire = WireError::from(&error);
    assert_eq!(wire.kind, ErrorKind::Resources);
    assert!(!wire.hints.is_empty());
}
