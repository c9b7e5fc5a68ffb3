//! What cannot be written is a typed error.

use super::*;
use crate::ext4::writer::{BLOCK, Special, WriterError};

#[test]
fn names_and_targets() {
    let mut fs = builder();
    let root = fs.root();
    for odd in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
        let refused = fs.mkdir(root, odd, meta(0o755)).unwrap_err();
        assert!(matches!(refused, WriterError::Name { .. }), "{refused}");
    }
    for odd in [&b""[..], b"a\0", &[b'x'; 4096]] {
        let refused = fs.symlink(root, b"x", meta(0o777), odd).unwrap_err();
        assert!(matches!(refused, WriterError::Target { .. }), "{refused}");
    }
    let refused = Builder::new(Options { label: "seventeen bytes x", ..OPTIONS }).unwrap_err();
    assert!(matches!(refused, WriterError::Label { .. }), "{refused}");
    let odd = Special::Char { major: 4096, minor: 0 };
    let refused = fs.special(root, b"x", meta(0o600), odd).unwrap_err();
    assert!(matches!(refused, WriterError::Device { .. }), "{refused}");
}

#[test]
fn names_that_are_there_twice() {
    let disk = Disk::new();
    for others in [0, 1000] {
        let mut fs = builder();
        let root = fs.root();
        let sub = fs.mkdir(root, b"sub", meta(0o755)).unwrap();
        for number in 0..others {
            fs.mkdir(sub, format!("{number}").as_bytes(), meta(0o755)).unwrap();
        }
        fs.mkdir(sub, b"x", meta(0o755)).unwrap();
        fs.file(sub, b"x", meta(0o755), 0, &[]).unwrap();
        let refused = fs.finish(&disk.file, disk.end).unwrap_err();
        assert!(matches!(&refused, WriterError::Twice { path } if path == "/sub/x"), "{refused}");
    }
    let mut fs = builder();
    let root = fs.root();
    fs.mkdir(root, b"lost+found", meta(0o755)).unwrap();
    let refused = fs.finish(&disk.file, disk.end).unwrap_err();
    assert!(matches!(&refused, WriterError::Twice { path } if path == "/lost+found"), "{refused}");
}

#[test]
fn links_and_parents() {
    let mut fs = builder();
    let root = fs.root();
    let sub = fs.mkdir(root, b"sub", meta(0o755)).unwrap();
    let file = fs.file(sub, b"file", meta(0o755), 0, &[]).unwrap();
    let refused = fs.hard_link(root, b"x", sub).unwrap_err();
    assert!(matches!(&refused, WriterError::DirectoryLink { path } if path == "/sub"), "{refused}");
    let refused = fs.mkdir(file, b"x", meta(0o755)).unwrap_err();
    assert!(matches!(&refused, WriterError::NotDirectory { path } if path == "/sub/file"), "{refused}");
    for number in 1..65_000 {
        fs.hard_link(root, format!("{number}").as_bytes(), file).unwrap();
    }
    let refused = fs.hard_link(root, b"x", file).unwrap_err();
    assert!(matches!(refused, WriterError::Links { .. }), "{refused}");
    let disk = Disk::new();
    disk.finish(fs);
    assert!(disk.stat("/sub/file").contains("Links: 65000"));
}

#[test]
fn runs() {
    let mut fs = builder();
    let root = fs.root();
    let run = |logical, start, blocks| Run { logical, start, blocks };
    let far = u32::MAX - 1;
    let odd: [(u64, &[Run]); 7] = [
        (BLOCK, &[run(0, 100, 0)]),
        (BLOCK, &[run(0, 100, 2)]),
        (9 * BLOCK, &[run(0, 100, 2), run(1, 200, 1)]),
        (9 * BLOCK, &[run(5, 100, 2), run(1, 200, 1)]),
        (u64::MAX, &[]),
        (u64::MAX, &[Run::whole(100, u64::MAX)]),
        (9 * BLOCK, &[run(0, far, 9)]),
    ];
    for (size, runs) in odd {
        let refused = fs.file(root, b"x", meta(0o644), size, runs).unwrap_err();
        assert!(matches!(&refused, WriterError::Contents { path, .. } if path == "/x"), "{refused}");
    }
}
