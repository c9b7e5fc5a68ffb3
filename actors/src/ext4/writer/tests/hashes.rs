//! The hash of names, as debugfs has it.

use super::*;
use crate::ext4::writer::hash::Hasher;

#[test]
fn debugfs_finds_the_same_hashes() {
    let disk = Disk::new();
    disk.finish(builder());
    let mut names: Vec<Vec<u8>> =
        [&b"a"[..], b"hello", b"lost+found", b"caf\xe9", b"\xff", b"\x80\x81\x82\x83\x84"].map(<[u8]>::to_vec).to_vec();
    names.extend((1..=255).map(|length: u8| {
        (0..length).map(|index| b'A' + (index ^ length) % 57).filter(|byte| *byte != b'\\').collect()
    }));
    names.extend((1..=255).map(|length: u8| (0..length).map(|index| 0x80 | index ^ length).collect()));
    for seed in [UUID, Uuid::nil()] {
        let asked: Vec<Vec<u8>> = names
            .iter()
            .map(|name| [format!("dx_hash -h half_md4 -s {seed} \"").as_bytes(), name, b"\""].concat())
            .collect();
        let answers = disk.ask(&asked.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for (name, answer) in names.iter().zip(answers) {
            let hash = Hasher::new(seed.as_bytes()).hash(name);
            assert!(answer.contains(&format!(" is {hash:#x} (")), "{hash:#x} in {answer}");
        }
    }
}

#[test]
fn known_hashes() {
    // debugfs -R "dx_hash -h half_md4 hello"
    assert_eq!(Hasher::new(&[0; 16]).hash(b"hello"), 0x1746_da32);
}
