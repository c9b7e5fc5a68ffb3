//! Extended attributes: in the inode, in a block, in both, in shared blocks.

use super::*;
use crate::ext4::writer::WriterError;

const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// As getxattr has it: version 2, six entries.
fn list() -> Vec<u8> {
    let mut list = vec![2, 0, 0, 0];
    for (tag, permissions, id) in
        [(1, 6, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (8, 2, 70_000), (0x10, 6, u32::MAX), (0x20, 0, u32::MAX)]
    {
        list.extend_from_slice(&[tag, 0, permissions, 0]);
        list.extend_from_slice(&id.to_le_bytes());
    }
    list
}

#[test]
fn in_the_inode_in_a_block_and_in_both() {
    let disk = Disk::new();
    let mut fs = builder();
    let root = fs.root();
    let mut file = |name: &[u8], attributes: &[(&[u8], &[u8])]| {
        let file = fs.file(root, name, meta(0o644), 0, &[]).unwrap();
        for (name, value) in attributes {
            fs.attribute(file, name, value).unwrap();
        }
    };
    file(b"inode", &[(b"security.capability", &CAPABILITY)]);
    file(b"block", &[(b"user.large", &[b'x'; 3000])]);
    file(
        b"both",
        &[
            (b"user.large", &[b'x'; 3000]),
            (b"trusted.z", b"z"),
            (b"user.empty", b""),
            (b"security.capability", &CAPABILITY),
            (b"user.n\xe9", b"n"),
        ],
    );
    file(b"full", &[(b"user.a", &[1; 68]), (b"user.b", &[2; 4040])]);
    file(b"empty", &[(b"user.nothing", b"")]);
    file(b"list", &[(b"system.posix_acl_access", &list())]);
    let directory = fs.mkdir(root, b"directory", meta(0o755)).unwrap();
    fs.attribute(directory, b"system.posix_acl_default", &list()).unwrap();
    fs.attribute(root, b"user.of root", b"r").unwrap();
    let link = fs.symlink(root, b"link", meta(0o777), b"x").unwrap();
    fs.attribute(link, b"security.selinux", &[b's'; 100]).unwrap();
    let slow = fs.symlink(root, b"slow", meta(0o777), &[b'x'; 100]).unwrap();
    fs.attribute(slow, b"trusted.large", &[b't'; 1000]).unwrap();
    let device =
        fs.special(root, b"device", meta(0o600), crate::ext4::writer::Special::Block { major: 1, minor: 2 }).unwrap();
    fs.attribute(device, b"security.selinux", &[b's'; 30]).unwrap();
    disk.finish(fs);

    let is = |path: &str, parts: &[&str]| {
        let said = disk.ask(&[format!("ea_list \"{path}\"").as_bytes()]).remove(0);
        assert!(parts.iter().all(|part| said.contains(part)), "{path}: {parts:?} in {said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("  ")).count(), parts.len(), "{said}");
    };
    is("/inode", &["security.capability (20) = 01 00 00 02 00 20"]);
    is("/block", &["user.large (3000)"]);
    is(
        "/both",
        &[
            "user.large (3000)",
            "trusted.z (1) = \"z\"",
            "user.empty (0)",
            "security.capability (20)",
            // "user.n" and a byte that is no ASCII.
            "75 73 65 72 2e 6e e9  (1) = \"n\"",
        ],
    );
    is("/full", &["user.a (68)", "user.b (4040)"]);
    is("/empty", &["user.nothing (0)"]);
    // In ext4's form: version 1, and no ids but those of the named user and group.
    let stored = "(36) = 01 00 00 00 01 00 06 00 02 00 04 00 e8 03 00 00 04 00 04 00 08 00 02 00 70 11 01 00 10 00 06 00 20 00 00 00";
    is("/list", &[&format!("system.posix_acl_access {stored}")]);
    is("/directory", &[&format!("system.posix_acl_default {stored}")]);
    is("/", &["user.of root (1) = \"r\""]);
    is("/link", &["security.selinux (100)"]);
    is("/slow", &["trusted.large (1000)"]);
    is("/device", &["security.selinux (30)"]);
    assert!(disk.stat("/inode").contains("Blockcount: 0") && disk.stat("/block").contains("Blockcount: 8"));
    assert!(disk.stat("/slow").contains("Blockcount: 16"));
    assert!(disk.stat("/link").contains("Fast link dest: \"x\""), "{}", disk.stat("/link"));
}

/// A block may have 1024 owners.
#[test]
fn equal_ones_share_blocks() {
    let disk = Disk::new();
    let mut fs = builder();
    let root = fs.root();
    for number in 0..3000_u32 {
        let file = fs.file(root, format!("{number}").as_bytes(), meta(0o644), 0, &[]).unwrap();
        fs.attribute(file, b"user.b", &[1; 1000]).unwrap();
        fs.attribute(file, b"user.number", &number.to_le_bytes()).unwrap();
        fs.attribute(file, b"user.a", if number % 2 == 0 { &[2; 1000] } else { &[3; 1000] }).unwrap();
    }
    let length = disk.finish(fs);
    // 1500 owners of two kinds: two blocks each. Inodes take 189 blocks, their directory 13.
    assert!(length / 4096 < 65 + 4 + 189 + 20, "{}", length / 4096);
    assert!(disk.ask(&[b"ea_list /2999"]).remove(0).contains("user.number (4) = b7 0b 00 00"));
}

#[test]
fn what_has_no_room_is_told() {
    let disk = Disk::new();
    let finished = |attributes: &[(&[u8], &[u8])]| {
        let mut fs = builder();
        let root = fs.root();
        let sub = fs.mkdir(root, b"sub", meta(0o755)).unwrap();
        let file = fs.file(sub, b"f\xff", meta(0o644), 0, &[]).unwrap();
        attributes.iter().try_for_each(|(name, value)| fs.attribute(file, name, value))?;
        fs.finish(&disk.file, disk.end)
    };
    let refused = finished(&[(b"user.a", &[1; 4050]), (b"user.b", b"b")]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the extended attribute `user.a` of `/sub/f\\xff` has 4050 bytes, for which there is no room: all of a file's have 88 bytes in its inode and 4060 in a block"
    );
    let refused = finished(&[(b"user.b", &[1; 3000]), (b"user.c", &[1; 3000])]).unwrap_err();
    assert!(matches!(&refused, WriterError::NoRoom { name, .. } if name == "user.c"), "{refused}");
    let refused = finished(&[(b"user.b", &[1; 100_000])]).unwrap_err();
    assert!(matches!(&refused, WriterError::NoRoom { size: 100_000, .. }), "{refused}");
    let refused = finished(&[(b"user.b", b"1"), (b"user.b", b"2")]).unwrap_err();
    assert_eq!(refused.to_string(), "`/sub/f\\xff` cannot have the extended attribute `user.b`: it is there twice");
    let lists: [&[u8]; 4] = [b"", &[1, 2, 3], &[3, 0, 0, 0], &list()[..51]];
    for odd in lists {
        let refused = finished(&[(b"system.posix_acl_access", odd)]).unwrap_err();
        assert!(
            matches!(&refused, WriterError::Attribute { problem: "it is no access control list", .. }),
            "{refused}"
        );
    }
    for odd in [&b"os2.x"[..], b"user.", b"", b"system.data"] {
        let refused = finished(&[(odd, b"")]).unwrap_err();
        assert!(matches!(&refused, WriterError::Attribute { problem: "ext4 has no such names", .. }), "{refused}");
    }
}
