//! Directories of all sizes.

use super::*;
use crate::ext4::writer::hash::Hasher;

/// Names of all lengths, some of them not UTF-8.
fn name(number: u32, length: usize) -> Vec<u8> {
    let mut name = format!("{number:x}-").into_bytes();
    let filler = number.to_le_bytes().map(|byte| byte | 0x81);
    while name.len() < length {
        name.push(filler[name.len() % 4]);
    }
    name
}

fn listed(disk: &Disk, path: &str) -> Vec<String> {
    let text = disk.ask(&[format!("ls -p {path}").as_bytes()]).remove(0);
    // Index blocks are shown as entries of inode 0.
    text.lines()
        .filter(|line| line.starts_with('/') && !line.starts_with("/0/"))
        .map(|line| line.split('/').nth(5).unwrap().to_owned())
        .collect()
}

fn indexed(disk: &Disk, path: &str) -> bool {
    disk.stat(path).contains("Flags: 0x81000")
}

#[test]
fn one_block_until_it_is_full() {
    let disk = Disk::new();
    let mut fs = builder();
    let root = fs.root();
    // An entry takes 16 bytes: 253 of them and the two dots fill 4084 - 12.
    for (directory, count) in [(&b"less"[..], 252), (b"full", 253), (b"more", 254), (b"none", 0)] {
        let directory = fs.mkdir(root, directory, meta(0o755)).unwrap();
        for number in (0..count).rev() {
            fs.special(directory, format!("{number:07}").as_bytes(), meta(0o600), crate::ext4::writer::Special::Fifo)
                .unwrap();
        }
    }
    disk.finish(fs);
    assert!(
        !indexed(&disk, "/less") && !indexed(&disk, "/full") && indexed(&disk, "/more") && !indexed(&disk, "/none")
    );
    let mut sorted: Vec<String> = (0..253).map(|number| format!("{number:07}")).collect();
    sorted.splice(0..0, [".".to_owned(), "..".to_owned()]);
    assert_eq!(listed(&disk, "/full"), sorted);
    assert_eq!(listed(&disk, "/more").len(), 256);
    assert_eq!(listed(&disk, "/none").len(), 2);
}

#[test]
fn names_of_all_lengths_in_one_tree() {
    let disk = Disk::new();
    let mut fs = builder();
    let root = fs.root();
    for number in 0..3000 {
        fs.symlink(root, &name(number, number as usize % 250 + 5), meta(0o777), b"x").unwrap();
    }
    disk.finish(fs);
    assert!(indexed(&disk, "/"));
    assert_eq!(listed(&disk, "/").len(), 3003);
}

#[test]
fn a_hundred_thousand_entries() {
    let disk = Disk::new();
    let mut fs = builder();
    let root = fs.root();
    let directory = fs.mkdir(root, b"d", meta(0o755)).unwrap();
    let first = fs.file(directory, &name(0, 0), meta(0o644), 0, &[]).unwrap();
    for number in 1..100_000 {
        if number % 3 == 0 {
            fs.file(directory, &name(number, 30), meta(0o644), 0, &[]).unwrap();
        } else if number < 60_000 {
            fs.hard_link(directory, &name(number, 0), first).unwrap();
        } else {
            fs.special(directory, &name(number, 100), meta(0o644), crate::ext4::writer::Special::Fifo).unwrap();
        }
    }
    disk.finish(fs);
    let tree = disk.ask(&[b"htree_dump /d"]).remove(0);
    assert!(tree.contains("Indirect levels: 1"), "{}", &tree[..500]);
    assert_eq!(listed(&disk, "/d").len(), 100_002);
}

#[test]
fn seventy_thousand_directories_in_one() {
    let disk = Disk::new();
    let mut fs = builder();
    let root = fs.root();
    let (many, limit) = (fs.mkdir(root, b"many", meta(0o755)).unwrap(), fs.mkdir(root, b"limit", meta(0o755)).unwrap());
    for number in 0..70_000 {
        fs.mkdir(many, &name(number, 0), meta(0o755)).unwrap();
    }
    for number in 0..64_998 {
        fs.mkdir(limit, &name(number, 0), meta(0o755)).unwrap();
    }
    disk.finish(fs);
    assert!(disk.stat("/many").contains("Links: 1 "), "{}", disk.stat("/many"));
    assert!(disk.stat("/limit").contains("Links: 65000 "), "{}", disk.stat("/limit"));
}

/// Two names of one hash, of which the first fills a leaf.
#[test]
fn equal_hashes_in_two_leaves() {
    let hasher = Hasher::new(UUID.as_bytes());
    let mut names: Vec<(u32, String)> =
        (0..600_000).map(|number| format!("{number:08}")).map(|name| (hasher.hash(name.as_bytes()), name)).collect();
    names.sort();
    // An entry takes 16 bytes: a leaf has 255.
    let pair = (254..).find(|first| names[*first].0 == names[first + 1].0).unwrap();
    let disk = Disk::new();
    let mut fs = builder();
    let root = fs.root();
    let directory = fs.mkdir(root, b"d", meta(0o755)).unwrap();
    for (_, name) in &names[pair - 254..pair + 100] {
        fs.file(directory, name.as_bytes(), meta(0o644), 0, &[]).unwrap();
    }
    disk.finish(fs);
    let tree = disk.ask(&[b"htree_dump /d"]).remove(0);
    assert!(tree.contains(&format!("Entry #1: Hash {:#010x}", names[pair].0 | 1)), "{}", &tree[..600]);
}

#[test]
fn a_deep_path() {
    let disk = Disk::new();
    let mut fs = builder();
    let mut at = fs.root();
    for _ in 0..1000 {
        at = fs.mkdir(at, b"d", meta(0o755)).unwrap();
    }
    disk.finish(fs);
    assert!(disk.stat(&"/d".repeat(1000)).contains("Type: directory"));
}
