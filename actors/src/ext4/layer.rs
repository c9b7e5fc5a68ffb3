//! One layer of a container image, read from its archive: entries in their order, contents in a spool. Several layers can be
//! read at once; [`super::Tree::add_layer`] puts them on top of one another.
//!
//! What is special in a layer is in its names: `.wh.NAME` takes NAME of the layers below away, `.wh..wh..opq` everything in its
//! directory (OCI image specification, layer.md, "Whiteouts").

use super::spool::{Spool, Spooled};
use super::tarball::{Verdict, read_entries};
use super::tree::Special;
use super::{Ext4Error, Meta};
use std::io::Read;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names of aufs' own files, which mean nothing to anybody else.
const RESERVED: &[u8] = b".wh..wh.";

/// One entry of an archive.
#[derive(Debug)]
pub struct Entry {
    /// Without a leading `./`.
    pub path: Vec<u8>,
    pub meta: Meta,
    pub what: What,
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// Bytes of what it has of no fixed size.
    pub(super) fn names(&self) -> usize {
        let target = match &self.what {
            What::Symlink(target) | What::HardLink(target) => target.len(),
            What::Directory | What::File(_) | What::Special(_) => 0,
        };
        let attributes = self.attributes.iter().map(|(name, value)| name.len() + value.len());
        self.path.len() + target + attributes.sum::<usize>()
    }
}

/// What an entry is.
#[derive(Debug)]
pub enum What {
    Directory,
    File(Spooled),
    Symlink(Vec<u8>),
    /// Another name of the file at this path.
    HardLink(Vec<u8>),
    Special(Special),
}

/// A layer that was read.
#[derive(Debug)]
pub struct Layer {
    pub entries: Vec<Entry>,
    pub spool: Spool,
}

impl Layer {
    /// Reads one; its contents go into `spool`, which is complete then.
    ///
    /// # Errors
    /// When it is no archive, or holds more than a layer may.
    pub fn read(reader: impl Read, mut spool: Spool) -> Result<Self, Ext4Error> {
        let mut entries = Vec::new();
        let keep = |_: &[u8]| Verdict::Keep;
        read_entries(reader, keep, &mut spool, |entry| {
            entries.push(entry);
            Ok(())
        })?;
        spool.complete()?;
        Ok(Self { entries, spool })
    }
}

/// What a name asks of the layers below.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whiteout {
    /// Nothing of theirs at this path.
    Name(Vec<u8>),
    /// Nothing of theirs in this directory.
    Opaque(Vec<u8>),
    /// Nothing.
    Reserved,
}

pub(super) fn whiteout(path: &[u8]) -> Option<Whiteout> {
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (directory, name) = path.split_at(start);
    if directory.split(|byte| *byte == b'/').any(|component| component.starts_with(RESERVED)) {
        return Some(Whiteout::Reserved);
    }
    let hidden = name.strip_prefix(WHITEOUT)?;
    Some(if name == OPAQUE {
        Whiteout::Opaque(directory.to_vec())
    } else if name.starts_with(RESERVED) || hidden.is_empty() || hidden == b"." || hidden == b".." {
        Whiteout::Reserved
    } else {
        Whiteout::Name([directory, hidden].concat())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_take_away() {
        assert_eq!(whiteout(b"etc/.wh.passwd"), Some(Whiteout::Name(b"etc/passwd".to_vec())));
        assert_eq!(whiteout(b".wh.srv"), Some(Whiteout::Name(b"srv".to_vec())));
        assert_eq!(whiteout(b"var/.wh..wh..opq"), Some(Whiteout::Opaque(b"var/".to_vec())));
        assert_eq!(whiteout(b".wh..wh..opq"), Some(Whiteout::Opaque(Vec::new())));
        for reserved in [b"a/.wh..wh.plnk".as_slice(), b".wh..wh.plnk/1.2", b".wh.", b".wh..", b".wh..."] {
            assert_eq!(whiteout(reserved), Some(Whiteout::Reserved), "{}", reserved.escape_ascii());
        }
        for plain in [b"etc/passwd".as_slice(), b"etc/x.wh.y", b".wh.dir/file", b""] {
            assert_eq!(whiteout(plain), None, "{}", plain.escape_ascii());
        }
    }
}
