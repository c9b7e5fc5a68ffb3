//! Trees at random, the same ones each time: e2fsck has to be content with each, and debugfs has to find all contents.

use super::*;
use crate::ext4::random::Random;
use crate::ext4::writer::{BLOCK, Handle, Special};

const TREES: u64 = 30;

impl Random {
    /// Mostly small, now and then as large as can be.
    fn skewed(&mut self, end: usize) -> usize {
        let bits = self.below(usize::BITS as usize - end.leading_zeros() as usize + 1);
        self.below(1 << bits).min(end - 1)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    fn meta(&mut self) -> Meta {
        let [uid, gid] = [self.next().to_le_bytes(), self.next().to_le_bytes()];
        let id = |bytes: [u8; 8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let seconds = self.next().cast_signed() >> self.below(64);
        let mode = u16::try_from(self.below(0o10000)).unwrap();
        Meta { mode, uid: id(uid), gid: id(gid), mtime: (seconds, u32::try_from(self.below(1_000_000_000)).unwrap()) }
    }

    /// No two are equal: each begins with its number.
    fn name(&mut self, number: usize) -> Vec<u8> {
        let mut name = format!("{number}-").into_bytes();
        let length = self.skewed(255 - name.len());
        name.extend(self.bytes(length).into_iter().map(|byte| if byte == 0 || byte == b'/' { b'_' } else { byte }));
        name
    }
}

/// Contents in pieces with holes between, and what a reader finds.
fn contents(random: &mut Random, disk: &mut Disk) -> (u64, Vec<Run>, Vec<u8>) {
    let (mut runs, mut whole) = (Vec::new(), Vec::new());
    let most = if random.below(10) == 0 { 800 } else { 8 };
    for _ in 0..random.skewed(most) {
        let length = random.skewed(20_000);
        whole.resize(whole.len().next_multiple_of(4096) + 4096 * random.skewed(6), 0);
        if length > 0 {
            let bytes = random.bytes(1).repeat(length);
            runs.push(Run { logical: u32::try_from(whole.len() as u64 / BLOCK).unwrap(), ..disk.put(&bytes) });
            whole.extend(bytes);
        }
        disk.hole(BLOCK * random.skewed(5) as u64);
    }
    (whole.len() as u64, runs, whole)
}

fn attributes(random: &mut Random, fs: &mut Builder, of: Handle) {
    let mut room = 3500;
    for number in 0..random.skewed(20) {
        let prefix = ["user", "trusted", "security"][random.below(3)];
        let name = [format!("{prefix}.{number}").into_bytes(), vec![b'n'; random.skewed(100)]].concat();
        let value = vec![b'v'; random.skewed(room.min(2000) + 1)];
        // As if all of them were in the block.
        match usize::checked_sub(room, 24 + name.len() + value.len()) {
            Some(rest) => room = rest,
            None => return,
        }
        fs.attribute(of, &name, &value).unwrap();
    }
}

#[test]
fn random_trees() {
    for seed in 0..TREES {
        let (mut random, mut disk, mut fs) = (Random(seed), Disk::new(), builder());
        let mut directories = vec![fs.root()];
        let mut others = Vec::new();
        let mut files = Vec::new();
        let root_meta = random.meta();
        fs.set_meta(fs.root(), root_meta);
        for number in 0..random.skewed(4000) {
            let parent = directories[random.skewed(directories.len())];
            let (name, meta) = (random.name(number), random.meta());
            let kind = random.below(20);
            let made = match kind {
                0..4 => fs.mkdir(parent, &name, meta).unwrap(),
                4..12 => {
                    let (size, runs, whole) = contents(&mut random, &mut disk);
                    files.push((number + 12, whole));
                    fs.file(parent, &name, meta, size, &runs).unwrap()
                }
                12..15 => {
                    let length = random.skewed(4095) + 1;
                    fs.symlink(parent, &name, meta, &vec![b't'; length]).unwrap()
                }
                15 if !others.is_empty() => {
                    let to = others[random.below(others.len())];
                    fs.hard_link(parent, &name, to).unwrap();
                    // Takes no inode: the numbers of those that follow are told by what is made in its place.
                    fs.special(parent, format!("{number}").as_bytes(), meta, Special::Fifo).unwrap()
                }
                kind => {
                    let (major, minor) =
                        (u32::try_from(random.skewed(4096)).unwrap(), u32::try_from(random.skewed(1 << 20)).unwrap());
                    let special = match kind {
                        16 => Special::Char { major, minor },
                        17 => Special::Block { major, minor },
                        18 => Special::Socket,
                        _ => Special::Fifo,
                    };
                    fs.special(parent, &name, meta, special).unwrap()
                }
            };
            if random.below(6) == 0 {
                attributes(&mut random, &mut fs, made);
            }
            if kind < 4 { directories.push(made) } else { others.push(made) }
        }
        disk.finish(fs);
        for (inode, whole) in files.into_iter().rev().take(5) {
            assert!(disk.cat(&format!("<{inode}>")) == whole, "tree {seed}, inode {inode}");
        }
    }
}
