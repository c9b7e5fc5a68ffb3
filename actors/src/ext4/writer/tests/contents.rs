//! Where contents are: gaps, holes, large files, numbers of groups.

use super::*;
use crate::ext4::writer::space::PER_GROUP;
use crate::ext4::writer::{BLOCK, WriterError};
use std::os::unix::fs::MetadataExt as _;

#[test]
fn gaps_between_contents_are_free() {
    let mut disk = Disk::new();
    let mut fs = builder();
    let root = fs.root();
    let one = disk.put(b"one");
    disk.put(b"nobody's");
    disk.hole(300 << 20);
    let two = disk.put(&[b'2'; 10_000]);
    fs.file(root, b"one", meta(0o644), 3, &[one]).unwrap();
    fs.file(root, b"two", meta(0o644), 10_000, &[two]).unwrap();
    disk.finish(fs);
    assert_eq!(disk.cat("/one"), b"one");
    assert_eq!(disk.cat("/two"), [b'2'; 10_000]);
    let free = (300 << 20) / 4096 + 1 + 63;
    assert!(disk.summary().contains(&format!("Free blocks:              {free}\n")), "{}", disk.summary());
    let kilobytes = disk.file.metadata().unwrap().blocks() / 2;
    assert!(kilobytes < 200, "{kilobytes} KiB: the rest are holes");
}

#[test]
fn holes_in_files_are_holes() {
    let mut disk = Disk::new();
    let mut fs = builder();
    let root = fs.root();
    let runs: Vec<Run> = (0..1000).map(|index| Run { logical: index * 3 + 1, ..disk.put(&[b'a'; 4096]) }).collect();
    let size = 3000 * BLOCK - 5;
    fs.file(root, b"many", meta(0o644), size, &runs).unwrap();
    fs.file(root, b"hole", meta(0o644), 1 << 40, &[]).unwrap();
    fs.file(root, b"largest", meta(0o644), u64::from(u32::MAX) * BLOCK, &[]).unwrap();
    let four: Vec<Run> = (0..4).map(|index| Run { logical: index * 2, ..disk.put(b"four") }).collect();
    fs.file(root, b"four", meta(0o644), 7 * BLOCK, &four).unwrap();
    let joined: Vec<Run> = (0..9).map(|index| Run { logical: index, ..disk.put(&[b'j'; 4096]) }).collect();
    fs.file(root, b"joined", meta(0o644), 9 * BLOCK, &joined).unwrap();
    disk.finish(fs);
    // Three leaves, which the inode points to.
    assert!(disk.stat("/many").contains(&format!("Blockcount: {}", 1003 * 8)), "{}", disk.stat("/many"));
    assert!(disk.stat("/hole").contains("Size: 1099511627776") && disk.stat("/hole").contains("Blockcount: 0"));
    assert!(disk.stat("/joined").contains("(0-8):"), "{}", disk.stat("/joined"));
    let read = disk.cat("/many");
    let expected = |index: usize| if index / 4096 % 3 == 1 { b'a' } else { 0 };
    assert_eq!(read.len() as u64, size);
    assert!(read.iter().enumerate().all(|(index, byte)| *byte == expected(index)));
}

#[test]
fn a_file_of_700_mebibytes_has_a_tree() {
    let mut disk = Disk::new();
    let mut fs = builder();
    let (root, size) = (fs.root(), 700 << 20);
    let run = disk.hole(size);
    fs.file(root, b"large", meta(0o644), size, &[run]).unwrap();
    let small = disk.put(b"small");
    fs.file(root, b"small", meta(0o644), 5, &[small]).unwrap();
    disk.finish(fs);
    assert!(
        disk.stat("/large").contains(&format!("Blockcount: {}", (size / BLOCK + 1) * 8)),
        "{}",
        disk.stat("/large")
    );
    assert!(disk.ask(&[b"ex /large"]).remove(0).contains("1/ 1   1/  6"), "{:?}", disk.ask(&[b"ex /large"]));
    assert_eq!(disk.cat("/small"), b"small");
}

#[test]
fn a_file_of_256_gibibytes_has_a_tree_of_two_levels() {
    let mut disk = Disk::new();
    let mut fs = builder();
    let (root, size) = (fs.root(), 256 << 30);
    let run = disk.hole(size);
    fs.file(root, b"huge", meta(0o644), size, &[run]).unwrap();
    disk.finish(fs);
    assert!(disk.ask(&[b"ex /huge"]).remove(0).contains("2/ 2"), "{:?}", disk.ask(&[b"ex /huge"]));
    let kilobytes = disk.file.metadata().unwrap().blocks() / 2;
    assert!(kilobytes < 18_000, "{kilobytes} KiB: bitmaps of 2049 groups, and little else");
}

/// The last group has from one block to all of them.
#[test]
fn any_number_of_groups() {
    for groups in [1, 2, 17] {
        let full = groups * PER_GROUP;
        for data_end in [full - 5, full - 4, full - 3, full - 2, full - 1, full, full + 1, full + 60] {
            let mut disk = Disk::new();
            let mut fs = builder();
            disk.end = data_end - 1;
            let run = disk.put(b"last");
            let root = fs.root();
            fs.file(root, b"last", meta(0o644), 4, &[run]).unwrap();
            let length = disk.finish(fs);
            assert!(length <= u64::from(data_end + 9 + 3 * (groups + 1)) * BLOCK, "{data_end}: {length}");
            assert_eq!(disk.cat("/last"), b"last");
        }
    }
}

/// Few blocks, and more inodes than one group can have: the second one is a single block.
#[test]
fn groups_for_inodes_alone() {
    let disk = Disk::new();
    let mut fs = builder();
    let root = fs.root();
    for number in 0..PER_GROUP {
        fs.file(root, format!("{number}").as_bytes(), meta(0o644), 0, &[]).unwrap();
    }
    assert_eq!(disk.finish(fs), u64::from(PER_GROUP + 1) * BLOCK);
}

#[test]
fn what_is_behind_contents_is_cut_off() {
    let mut disk = Disk::new();
    disk.put(&[0xff; 1 << 20]);
    disk.end = DATA_START;
    disk.finish(builder());
}

#[test]
fn contents_have_their_area_to_themselves() {
    let mut disk = Disk::new();
    let one = disk.hole(10_000);
    let finished = |first: Run, second: Run| {
        let mut fs = builder();
        let root = fs.root();
        fs.file(root, b"a", meta(0o644), 10_000, &[first]).unwrap();
        let sub = fs.mkdir(root, b"sub", meta(0o644)).unwrap();
        fs.file(sub, b"b", meta(0o644), 10_000, &[second]).unwrap();
        fs.finish(&disk.file, disk.end + 3)
    };
    let moved = |blocks| Run { start: one.start + blocks, ..one };
    assert!(finished(one, moved(3)).is_ok());
    let overlap = finished(one, moved(2)).unwrap_err();
    assert!(matches!(&overlap, WriterError::Overlap { path, block: 67 } if path == "/sub/b"), "{overlap}");
    let beyond = finished(one, moved(4)).unwrap_err();
    assert!(matches!(&beyond, WriterError::Contents { path, .. } if path == "/sub/b"), "{beyond}");
    let before = finished(Run { start: DATA_START - 1, ..one }, moved(3)).unwrap_err();
    assert!(matches!(&before, WriterError::Contents { path, .. } if path == "/a"), "{before}");
    for end in [0, DATA_START - 1, u32::MAX] {
        let refused = builder().finish(&disk.file, end).unwrap_err();
        assert!(matches!(refused, WriterError::DataEnd { .. }), "{refused}");
    }
}
