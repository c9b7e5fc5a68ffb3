//! Every kind of node, with odd owners, times and names.

use super::*;
use crate::ext4::writer::Special;

#[test]
fn an_empty_tree() {
    let disk = Disk::new();
    let length = disk.finish(builder());
    assert_eq!(length / 4096, u64::from(DATA_START) + 5, "two directories, two bitmaps, one block of inodes");
    assert!(disk.stat("/").contains("Mode:  0755") && disk.stat("/").contains("Links: 3"));
    assert!(
        disk.stat("/lost+found").contains("Inode: 11   Type: directory    Mode:  0700"),
        "{}",
        disk.stat("/lost+found")
    );
    let summary = disk.summary();
    let features =
        "ext_attr dir_index sparse_super2 filetype extent flex_bg large_file dir_nlink extra_isize metadata_csum";
    assert!(summary.contains(features), "{summary}");
    assert!(summary.contains("Filesystem UUID:          01234567-89ab-cdef-fedc-ba9876543210"), "{summary}");
    assert!(summary.contains("Filesystem state:         clean"), "{summary}");
    assert!(summary.contains("Reserved block count:     0"), "{summary}");
    assert!(!summary.contains("Journal"), "{summary}");
}

#[test]
fn every_kind_of_node() {
    let mut disk = Disk::new();
    let mut fs = builder();
    let root = fs.root();
    fs.set_meta(root, Meta { mode: 0o1777, uid: 1, gid: 2, mtime: (5, 6) });
    let contents = disk.put(b"contents of a file");
    let file = fs.file(root, b"file", meta(0o4755), 18, &[contents]).unwrap();
    fs.file(root, b"empty", meta(0o600), 0, &[]).unwrap();
    let sub = fs.mkdir(root, b"sub", Meta { uid: u32::MAX, gid: u32::MAX - 1, ..meta(0o2750) }).unwrap();
    let deeper = fs.mkdir(sub, b"deeper", meta(0o700)).unwrap();
    fs.hard_link(deeper, b"also", file).unwrap();
    fs.symlink(root, b"fast", meta(0o777), &[b'f'; 59]).unwrap();
    let slow = fs.symlink(deeper, b"slow", meta(0o777), &[b's'; 60]).unwrap();
    fs.hard_link(root, b"slow too", slow).unwrap();
    fs.symlink(root, b"longest", meta(0o777), &[b'l'; 4095]).unwrap();
    fs.symlink(root, b"odd link", meta(0o777), b"\xff/\n").unwrap();
    for (name, special) in [
        (&b"null"[..], Special::Char { major: 1, minor: 3 }),
        (b"large char", Special::Char { major: 256, minor: 0 }),
        (b"disk", Special::Block { major: 259, minor: 70_000 }),
        (b"largest", Special::Block { major: 4095, minor: 0xf_ffff }),
        (b"fifo", Special::Fifo),
        (b"socket", Special::Socket),
    ] {
        fs.special(root, name, Meta { uid: 100_000, ..meta(0o620) }, special).unwrap();
    }
    disk.finish(fs);

    let stat = |path| disk.stat(path);
    let is = |path, parts: &[&str]| {
        let said = stat(path);
        assert!(parts.iter().all(|part| said.contains(part)), "{path}: {parts:?} in {said}");
    };
    is("/", &["Mode:  01777", "User:     1   Group:     2", "Links: 4"]);
    is(
        "/file",
        &[
            "Type: regular",
            "Mode:  04755",
            "Size: 18",
            "Links: 2",
            "Blockcount: 8",
            "Flags: 0x80000",
            "Size of extra inode fields: 32",
        ],
    );
    assert_eq!(disk.cat("/sub/deeper/also"), b"contents of a file");
    is("/empty", &["Size: 0", "Blockcount: 0"]);
    is("/sub", &["Mode:  02750", "User:    -1   Group:    -2", "Links: 3"]);
    is("/fast", &[&format!("Fast link dest: \"{}\"", "f".repeat(59)), "Flags: 0x0", "Blockcount: 0"]);
    is("/slow too", &["Type: symlink", "Size: 60", "Links: 2", "Blockcount: 8"]);
    is("/longest", &["Size: 4095"]);
    assert_eq!(disk.cat("/longest"), [b'l'; 4095]);
    is("/odd link", &["Size: 3"]);
    is("/null", &["Type: character special", "Mode:  0620", "Device major/minor number: 01:03", "User: 100000"]);
    is("/large char", &["Device major/minor number: 256:00"]);
    is("/disk", &["Type: block special", "Device major/minor number: 259:70000"]);
    is("/largest", &["Device major/minor number: 4095:1048575"]);
    is("/fifo", &["Type: FIFO"]);
    is("/socket", &["Type: socket"]);
    // The kind in the entry is told by `ls -p` from the inode; e2fsck has compared the two.
}

#[test]
fn times_before_1970_and_after_2038() {
    let disk = Disk::new();
    let mut fs = builder();
    let root = fs.root();
    for (name, mtime) in [
        (&b"a"[..], (-1, 999_999_999)),
        (b"b", (i64::from(i32::MIN), 0)),
        (b"c", (1 << 31, 1)),
        (b"d", (i64::from(u32::MAX) + 1, 2)),
        (b"e", (10_737_418_239, 3)),
        (b"f", (i64::MAX, 3)),
        (b"g", (0, 4)),
    ] {
        fs.mkdir(root, name, Meta { mtime, ..meta(0o755) }).unwrap();
    }
    disk.finish(fs);
    let is = |path, parts: [&str; 2]| {
        let said = disk.stat(path);
        for kind in [" ctime", " atime", " mtime", "crtime"] {
            let line = said.lines().find(|line| line.starts_with(kind)).unwrap();
            assert!(parts.iter().all(|part| line.contains(part)), "{path}: {parts:?} in {line}");
        }
    };
    is("/a", ["0xffffffff:ee6b27fc", "Wed Dec 31 23:59:59 1969"]);
    is("/b", ["0x80000000:00000000", "Fri Dec 13 20:45:52 1901"]);
    is("/c", ["0x80000000:00000005", "Tue Jan 19 03:14:08 2038"]);
    is("/d", ["0x00000000:00000009", "Sun Feb  7 06:28:16 2106"]);
    is("/e", ["0x7fffffff:0000000e", "2310"]);
    is("/f", ["0x7fffffff:00000002", "2310"]);
    is("/g", ["0x00000000:00000010", "Thu Jan  1 00:00:00 1970"]);
}

#[test]
fn names_are_bytes() {
    let mut disk = Disk::new();
    let mut fs = builder();
    let root = fs.root();
    let names: [&[u8]; 7] =
        [b"caf\xe9", b"\xff\xfe", b"new\nline", &[b'n'; 255], &[0xe9; 255], b" ", "\u{2603}".as_bytes()];
    for name in names {
        let run = disk.put(name);
        fs.file(root, name, meta(0o644), name.len() as u64, &[run]).unwrap();
    }
    disk.finish(fs);
    let listed = disk.ask(&[b"ls -p /"]).remove(0);
    for name in names {
        // debugfs shows a newline as it is, and ours is not escaped either.
        let shown = name.escape_ascii().to_string().replace("\\n", "\n");
        assert!(listed.contains(&format!("/{shown}/{}/", name.len())), "{shown} in {listed}");
    }
    assert_eq!(disk.ask(&[b"cat /caf\xe9"]).remove(0), "caf\\xe9");
}

#[test]
fn equal_calls_give_equal_bytes() {
    let made = |last: &[u8]| {
        let mut disk = Disk::new();
        let mut fs = builder();
        let root = fs.root();
        for number in 0..2000_u32 {
            let name = format!("{number}");
            let run = disk.put(name.as_bytes());
            let file = fs.file(root, name.as_bytes(), meta(0o644), name.len() as u64, &[run]).unwrap();
            fs.attribute(file, b"user.number", &number.rem_euclid(7).to_le_bytes().repeat(100)).unwrap();
        }
        fs.symlink(root, b"last", meta(0o777), last).unwrap();
        disk.finish(fs);
        std::fs::read(&disk.path).unwrap()
    };
    let one = made(b"x");
    assert!(one == made(b"x"));
    assert!(one != made(b"y"));
}
