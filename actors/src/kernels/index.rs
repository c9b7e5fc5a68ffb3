//! kmod's binary index: a prefix tree from names to values, which modprobe reads in place of the text files.
//!
//! Format (kmod, libkmod/libkmod-index.c), all numbers big-endian u32: magic, version, offset of the root node; a node is
//! its prefix with a NUL, then first and last child character and an offset for each character between them, then a count of
//! values, each a priority and a string with a NUL. The top four bits of an offset say which of the three parts are there.

use std::collections::BTreeMap;

const MAGIC: u32 = 0xB007_F457;
const VERSION: u32 = 0x0002_0001;
const HAS_PREFIX: u32 = 0x8000_0000;
const HAS_VALUES: u32 = 0x4000_0000;
const HAS_CHILDREN: u32 = 0x2000_0000;
/// Characters from here on cannot be in a key (`INDEX_CHILDMAX`).
const CHILD_MAX: u8 = 128;
/// Longer keys are nobody's, in bytes. Each byte of one may be a node of its own, which is written after its children.
const KEY_MAX: usize = 512;

/// An index being filled. A value of lower priority is found first.
#[derive(Debug, Default)]
pub struct Index {
    entries: BTreeMap<Vec<u8>, Vec<(u32, String)>>,
}

impl Index {
    /// Adds a value. Keys that the format cannot hold are left out: no module has one, and modprobe could not ask for it.
    pub fn add(&mut self, key: &str, value: &str, priority: u32) {
        let storable = |text: &str| text.bytes().all(|byte| byte != 0 && byte < CHILD_MAX);
        if key.len() <= KEY_MAX && storable(key) && storable(value) {
            self.entries.entry(key.as_bytes().to_vec()).or_default().push((priority, value.to_owned()));
        }
    }

    /// The file.
    #[must_use]
    pub fn to_bytes(mut self) -> Vec<u8> {
        for values in self.entries.values_mut() {
            values.sort();
        }
        let entries: Vec<Entry<'_>> =
            self.entries.iter().map(|(key, values)| (key.as_slice(), values.as_slice())).collect();
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC.to_be_bytes());
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        let root = write_node(&entries, 0, &mut out);
        out[8..12].copy_from_slice(&root.to_be_bytes());
        out
    }
}

/// A key and its values.
type Entry<'a> = (&'a [u8], &'a [(u32, String)]);

/// Writes the node of entries that share their first `depth` bytes, after its children; returns its offset and flags.
fn write_node(entries: &[Entry<'_>], depth: usize, out: &mut Vec<u8>) -> u32 {
    let prefix = common_prefix(entries, depth);
    let depth = depth + prefix.len();
    // Sorted: the one that ends here, if any, is the first.
    let (values, longer) = match entries.split_first() {
        Some(((key, values), rest)) if key.len() == depth => (*values, rest),
        _ => (&[][..], entries),
    };
    let mut children: BTreeMap<u8, u32> = BTreeMap::new();
    for group in longer.chunk_by(|a, b| a.0[depth] == b.0[depth]) {
        let offset = write_node(group, depth + 1, out);
        children.insert(group[0].0[depth], offset);
    }
    let mut offset = u32::try_from(out.len()).expect("an index is a few megabytes");
    if !prefix.is_empty() {
        out.extend_from_slice(prefix);
        out.push(0);
        offset |= HAS_PREFIX;
    }
    if let (Some((first, _)), Some((last, _))) = (children.first_key_value(), children.last_key_value()) {
        out.extend_from_slice(&[*first, *last]);
        for character in *first..=*last {
            out.extend_from_slice(&children.get(&character).copied().unwrap_or(0).to_be_bytes());
        }
        offset |= HAS_CHILDREN;
    }
    if !values.is_empty() {
        out.extend_from_slice(&u32::try_from(values.len()).expect("a handful").to_be_bytes());
        for (priority, value) in values {
            out.extend_from_slice(&priority.to_be_bytes());
            out.extend_from_slice(value.as_bytes());
            out.push(0);
        }
        offset |= HAS_VALUES;
    }
    offset
}

/// What the first and the last of a sorted list share, all between them share.
fn common_prefix<'a>(entries: &[Entry<'a>], depth: usize) -> &'a [u8] {
    let (Some((first, _)), Some((last, _))) = (entries.first(), entries.last()) else { return &[] };
    let shared = first[depth..].iter().zip(&last[depth..]).take_while(|(a, b)| a == b).count();
    &first[depth..depth + shared]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn string(bytes: &[u8], at: &mut usize) -> String {
        let end = *at + bytes[*at..].iter().position(|byte| *byte == 0).unwrap();
        let text = std::str::from_utf8(&bytes[*at..end]).unwrap().to_owned();
        *at = end + 1;
        text
    }

    /// Each key is the beginning of the next: as deep as a tree can be.
    #[test]
    fn the_longest_keys_fit_a_small_stack() {
        let key = "k".repeat(5000);
        let mut index = Index::default();
        for length in 1..key.len() {
            index.add(&key[..length], "value", 1);
        }
        let small = std::thread::Builder::new().stack_size(1 << 20);
        let bytes = small.spawn(move || index.to_bytes()).unwrap().join().unwrap();
        assert_eq!(search(&bytes, &key[..KEY_MAX]), [(1, "value".to_owned())]);
        assert!(search(&bytes, &key[..=KEY_MAX]).is_empty());
    }

    /// Walks as libkmod's `index_mm_search_node` does.
    fn search(bytes: &[u8], key: &str) -> Vec<(u32, String)> {
        let mut node = number(bytes, 8);
        let mut rest = key.as_bytes();
        loop {
            let mut at = (node & 0x0FFF_FFFF) as usize;
            if node & HAS_PREFIX != 0 {
                let prefix = string(bytes, &mut at);
                let Some(after) = rest.strip_prefix(prefix.as_bytes()) else { return Vec::new() };
                rest = after;
            }
            let mut child = 0;
            if node & HAS_CHILDREN != 0 {
                let (first, last) = (bytes[at], bytes[at + 1]);
                at += 2;
                if let Some(character) = rest.first().filter(|c| (first..=last).contains(c)) {
                    child = number(bytes, at + usize::from(character - first) * 4);
                }
                at += (usize::from(last - first) + 1) * 4;
            }
            if rest.is_empty() {
                if node & HAS_VALUES == 0 {
                    return Vec::new();
                }
                let count = number(bytes, at);
                at += 4;
                return (0..count)
                    .map(|_| {
                        let priority = number(bytes, at);
                        at += 4;
                        (priority, string(bytes, &mut at))
                    })
                    .collect();
            }
            if child == 0 {
                return Vec::new();
            }
            node = child;
            rest = &rest[1..];
        }
    }

    #[test]
    fn an_empty_index_is_a_root_without_anything() {
        assert_eq!(Index::default().to_bytes(), [0xB0, 7, 0xF4, 0x57, 0, 2, 0, 1, 0, 0, 0, 12]);
    }

    #[test]
    fn lower_priorities_come_first() {
        let mut index = Index::default();
        index.add("pci:v*", "second", 7);
        index.add("pci:v*", "first", 3);
        let bytes = index.to_bytes();
        assert_eq!(search(&bytes, "pci:v*"), [(3, "first".to_owned()), (7, "second".to_owned())]);
    }

    proptest! {
        #[test]
        fn every_key_is_found_and_no_other(
            keys in proptest::collection::btree_map("[a-e]{0,6}", "[a-z]{1,4}", 0..40), other in "[a-e]{0,6}"
        ) {
            let mut index = Index::default();
            for (key, value) in &keys {
                index.add(key, value, 1);
            }
            let bytes = index.to_bytes();
            for (key, value) in &keys {
                prop_assert_eq!(search(&bytes, key), vec![(1, value.clone())]);
            }
            if !keys.contains_key(&other) {
                prop_assert!(search(&bytes, &other).is_empty());
            }
        }
    }
}
