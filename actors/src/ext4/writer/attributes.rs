//! Extended attributes: first in the inode, the rest in one block that inodes with equal ones share.
//!
//! Format: kernel documentation, filesystems/ext4, "Extended Attributes"; fs/ext4/xattr.h.

use crate::ext4::writer::le::{low16, low32, put16, put32};
use crate::ext4::writer::{BLOCK_BYTES, acl, checksum};

/// `EXT4_XATTR_MAGIC`
const MAGIC: u32 = 0xea02_0000;
/// `EXT4_XATTR_REFCOUNT_MAX`: inodes that may share a block.
pub(in crate::ext4) const SHARED_MAX: usize = 1024;
/// What an inode of 256 bytes has left behind its 32 extra bytes.
pub(in crate::ext4) const IN_INODE: usize = 256 - 128 - 32;
/// Before the entries, in the inode: the magic number.
const INODE_HEADER: usize = 4;
/// Before the entries, in a block: `struct ext4_xattr_header`.
const BLOCK_HEADER: usize = 32;
/// Behind the entries, before the values: zeros, which no entry begins with.
const TERMINATOR: usize = 4;
/// An entry without its name (`struct ext4_xattr_entry`).
const ENTRY: usize = 16;
/// The longest name with its prefix (`XATTR_NAME_MAX`, linux/limits.h).
pub(in crate::ext4) const NAME_MAX: usize = 255;
/// What all attributes in the inode, and all in a block, may take; each takes 16 bytes, its name without the prefix and its
/// value, both rounded up to 4.
pub(in crate::ext4) const ROOM: (usize, usize) =
    (IN_INODE - INODE_HEADER - TERMINATOR, BLOCK_BYTES - BLOCK_HEADER - TERMINATOR);

/// One attribute, its name's prefix as a number. Their order is the one that readers of a block look for them in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::ext4) struct Item<'a> {
    pub(in crate::ext4) prefix: u8,
    pub(in crate::ext4) name: &'a [u8],
    pub(in crate::ext4) value: &'a [u8],
}

impl Item<'_> {
    fn size(&self) -> usize {
        ENTRY + self.name.len().next_multiple_of(4) + self.value.len().next_multiple_of(4)
    }

    /// `ext4_xattr_hash_entry`
    fn hash(&self) -> u32 {
        let mut hash = 0_u32;
        for byte in self.name {
            hash = hash.rotate_left(5) ^ u32::from(*byte);
        }
        for chunk in self.value.chunks(4) {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = hash.rotate_left(16) ^ u32::from_le_bytes(word);
        }
        hash
    }
}

/// Divides a name into its prefix, as a number, and the rest (fs/ext4/xattr.h, `EXT4_XATTR_INDEX_*`). `None` where ext4 has no
/// number for it.
pub(in crate::ext4) fn divide(name: &[u8]) -> Option<(u8, &[u8])> {
    const WHOLE: [(&[u8], u8); 3] = [(acl::ACCESS, 2), (acl::DEFAULT, 3), (b"system.richacl", 8)];
    const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    if name.len() > NAME_MAX || name.contains(&0) {
        return None;
    }
    if let Some((_, prefix)) = WHOLE.iter().find(|(whole, _)| *whole == name) {
        return Some((*prefix, b""));
    }
    let found = PREFIXES.iter().find_map(|(prefix, number)| Some((*number, name.strip_prefix(*prefix)?)));
    found.filter(|(_, rest)| !rest.is_empty())
}

/// A name as [`divide`] was given it, for errors.
pub(in crate::ext4) fn whole_name(prefix: u8, rest: &[u8]) -> String {
    let prefix = match prefix {
        1 => "user.",
        2 => "system.posix_acl_access",
        3 => "system.posix_acl_default",
        4 => "trusted.",
        6 => "security.",
        _ => "system.richacl",
    };
    format!("{prefix}{}", rest.escape_ascii())
}

/// Why attributes cannot be placed: because of this one.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::ext4) enum Refused<'a> {
    Twice(Item<'a>),
    NoRoom(Item<'a>),
}

/// Where attributes go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::ext4) struct Placed<'a> {
    pub(in crate::ext4) inode: Vec<Item<'a>>,
    pub(in crate::ext4) block: Vec<Item<'a>>,
}

/// Divides attributes, which it sorts, into those in the inode and those in a block.
pub(in crate::ext4) fn place(mut items: Vec<Item<'_>>) -> Result<Placed<'_>, Refused<'_>> {
    // `ext4_xattr_find_entry`: searches in blocks rely on it.
    items.sort_by_key(|item| (item.prefix, item.name.len(), item.name));
    let same = |pair: &&[Item<'_>]| (pair[0].prefix, pair[0].name) == (pair[1].prefix, pair[1].name);
    if let Some(twice) = items.windows(2).find(same) {
        return Err(Refused::Twice(twice[0]));
    }
    let (mut inode, mut block) = ROOM;
    let mut placed = Placed::default();
    for item in items {
        let size = item.size();
        if size <= inode {
            inode -= size;
            placed.inode.push(item);
        } else if size <= block {
            block -= size;
            placed.block.push(item);
        } else {
            return Err(Refused::NoRoom(item));
        }
    }
    Ok(placed)
}

/// What goes behind the inode's extra fields.
pub(in crate::ext4) fn in_inode(items: &[Item<'_>]) -> [u8; IN_INODE] {
    let mut bytes = [0; IN_INODE];
    if !items.is_empty() {
        put32(&mut bytes, 0, MAGIC);
        // The inode's own checksum is all that the kernel asks for here: no hashes.
        lay(&mut bytes[INODE_HEADER..], 0, items, |_| 0);
    }
    bytes
}

/// A block of attributes that so many inodes share.
pub(in crate::ext4) fn in_block(
    items: &[Item<'_>],
    shared: usize,
    number: u32,
    file_system_seed: u32,
) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    put32(&mut bytes, 0x0, MAGIC);
    put32(&mut bytes, 0x4, low32(shared as u64));
    put32(&mut bytes, 0x8, 1);
    // `ext4_xattr_rehash`: an entry whose hash is 0 makes the block one that is never shared, which 0 says as well.
    let hashes = items.iter().map(Item::hash);
    let hash = hashes.clone().fold(0_u32, |hash, entry| hash.rotate_left(16) ^ entry);
    put32(&mut bytes, 0xc, if hashes.clone().any(|entry| entry == 0) { 0 } else { hash });
    lay(&mut bytes, BLOCK_HEADER, items, |item| item.hash());
    // Over the block's number in 64 bits, then the block.
    let sum = checksum::crc(checksum::crc(file_system_seed, &u64::from(number).to_le_bytes()), &bytes);
    put32(&mut bytes, 0x10, sum);
    bytes
}

/// Entries from the front, values from the back.
fn lay(area: &mut [u8], first: usize, items: &[Item<'_>], hash: impl Fn(&Item<'_>) -> u32) {
    let (mut entry, mut end) = (first, area.len());
    for item in items {
        // An empty value is nowhere.
        let mut offset = 0;
        if !item.value.is_empty() {
            end -= item.value.len().next_multiple_of(4);
            offset = end;
            area[end..end + item.value.len()].copy_from_slice(item.value);
        }
        let place = &mut area[entry..];
        place[0] = low16(low32(item.name.len() as u64)).to_le_bytes()[0];
        place[1] = item.prefix;
        put16(place, 2, low16(low32(offset as u64)));
        put32(place, 8, low32(item.value.len() as u64));
        put32(place, 12, hash(item));
        place[ENTRY..ENTRY + item.name.len()].copy_from_slice(item.name);
        entry += ENTRY + item.name.len().next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_known_prefixes() {
        assert_eq!(divide(b"user.a.b"), Some((1, &b"a.b"[..])));
        assert_eq!(divide(b"security.capability"), Some((6, &b"capability"[..])));
        assert_eq!(divide(b"system.posix_acl_default"), Some((3, &b""[..])));
        let long = [&b"user."[..], &[b'x'; 251]].concat();
        for refused in [&b"user."[..], b"", b"system.data", b"os2.x", b"user.a\0", b"system.posix_acl_accessx", &long] {
            assert_eq!(divide(refused), None, "{}", refused.escape_ascii());
        }
        for name in [
            "user.a",
            "trusted.b",
            "security.c",
            "system.posix_acl_access",
            "system.posix_acl_default",
            "system.richacl",
        ] {
            let (prefix, rest) = divide(name.as_bytes()).unwrap();
            assert_eq!(whole_name(prefix, rest), name);
        }
    }

    #[test]
    fn both_places_can_be_filled_to_the_last_byte() {
        let value = [7; 4096];
        let item = |name, length| Item { prefix: 1, name, value: &value[..length] };
        let placed = place(vec![item(b"b", ROOM.1 - 20), item(b"a", ROOM.0 - 20)]).unwrap();
        assert_eq!(placed.inode, [item(b"a", ROOM.0 - 20)]);
        assert_eq!(placed.block, [item(b"b", ROOM.1 - 20)]);
        let refused = item(b"b", ROOM.1 - 19);
        assert_eq!(place(vec![refused]), Err(Refused::NoRoom(refused)));
        assert_eq!(place(vec![refused, item(b"b", 0)]), Err(Refused::Twice(refused)));
        assert!(place(vec![item(b"a", 90), item(b"b", ROOM.1 - 20)]).is_err());
        let placed = place(vec![item(b"a", ROOM.0 - 19)]).unwrap();
        assert_eq!((placed.inode.len(), placed.block.len()), (0, 1));
    }
}
