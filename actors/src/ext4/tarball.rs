//! Reads a tar stream into a [`Tree`]: hard links, symbolic links, devices, owners, times to the nanosecond, attributes.

use super::archive::{Archive, Member};
use super::layer::{Entry, What};
use super::path::{PATH_LENGTH_MAX, beginning, shown};
use super::spool::Spool;
use super::tree::Special;
use super::writer::attributes::{NAME_MAX, ROOM};
use super::{Ext4Error, Meta, Tree};
use std::collections::BTreeMap;
use std::io::Read;
use tar::EntryType;

/// What is to become of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    Drop,
    /// A file of that name and owner, without contents.
    Empty,
    /// Kept, elsewhere. Hard links to it would not find it.
    Rename(Vec<u8>),
}

/// More than this of one file's attributes, names among them, the writer has no room for: each takes as much there as here, and an
/// access control list at least half.
const ATTRIBUTES_MAX: usize = 2 * (ROOM.0 + ROOM.1);

/// Attributes of the host that mean nothing in an image.
const HOST_ATTRIBUTES: [&[u8]; 2] = [b"security.selinux", b"security.ima"];

/// Adds every entry that `judge` keeps; it is given the path without a leading `./`.
///
/// # Errors
/// When the stream is no tar archive, or an entry cannot be held by ext4.
pub fn read_tar(tree: &mut Tree, reader: impl Read, judge: impl FnMut(&[u8]) -> Verdict) -> Result<(), Ext4Error> {
    // The tree's own while it is filled: an entry is put into it as soon as its contents are kept.
    let mut spool = tree.lend_spool();
    let outcome = read_entries(reader, judge, &mut spool, |entry| tree.put(entry));
    tree.return_spool(spool)?;
    outcome
}

/// Reads an archive to its end, keeping contents in `spool`, and gives every entry that `judge` keeps.
///
/// # Errors
/// When the stream is no tar archive, an entry cannot be held by ext4, or `each` fails.
pub fn read_entries(
    reader: impl Read,
    mut judge: impl FnMut(&[u8]) -> Verdict,
    spool: &mut Spool,
    mut each: impl FnMut(Entry) -> Result<(), Ext4Error>,
) -> Result<(), Ext4Error> {
    let mut archive = Archive::new(reader);
    while let Some(member) = archive.next().map_err(Ext4Error::Archive)? {
        let path = relative(&member.path).to_vec();
        let (path, contents) = match judge(&path) {
            Verdict::Keep => (path, Contents::Kept),
            Verdict::Rename(path) => (path, Contents::Kept),
            Verdict::Empty => (path, Contents::Dropped),
            Verdict::Drop => continue,
        };
        let entry = read_entry(path, member, &mut archive, contents, spool)?;
        spool.image().remember(entry.names() as u64)?;
        each(entry)?;
    }
    Ok(())
}

/// A path without what tar puts before it.
#[must_use]
pub fn relative(path: &[u8]) -> &[u8] {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    path.strip_suffix(b"/").unwrap_or(path)
}

#[derive(PartialEq, Eq)]
enum Contents {
    Kept,
    Dropped,
}

fn read_entry<R: Read>(
    path: Vec<u8>,
    mut member: Member,
    archive: &mut Archive<R>,
    contents: Contents,
    spool: &mut Spool,
) -> Result<Entry, Ext4Error> {
    // Here, where only one of them is in memory: an archive may claim a megabyte of each for every entry, and compress it to nothing.
    check_length(&path, &path)?;
    let attributes = attributes(&path, std::mem::take(&mut member.attributes))?;
    let meta = meta(&path, &member)?;
    let what = match member.header.entry_type() {
        EntryType::Directory => What::Directory,
        // Before tar knew types, a directory was a file whose name ends in a slash.
        EntryType::Regular | EntryType::Continuous if member.path.ends_with(b"/") && member.size == 0 => {
            What::Directory
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => What::File(match contents {
            // Before any of it is read: a hole of any size takes no bytes in an archive.
            Contents::Kept => {
                spool.image().check_contents(spool.length().saturating_add(member.size))?;
                spool.append(archive)?
            }
            Contents::Dropped => spool.append(&mut std::io::empty())?,
        }),
        EntryType::Symlink => What::Symlink(link_target(&path, member)?),
        EntryType::Link => What::HardLink(relative(&link_target(&path, member)?).to_vec()),
        EntryType::Char => {
            let (major, minor) = device(&path, &member.header)?;
            What::Special(Special::Char { major, minor })
        }
        EntryType::Block => {
            let (major, minor) = device(&path, &member.header)?;
            What::Special(Special::Block { major, minor })
        }
        EntryType::Fifo => What::Special(Special::Fifo),
        other => return Err(Ext4Error::Kind { path: shown(&path), kind: format!("{other:?}") }),
    };
    Ok(Entry { path, meta, what, attributes })
}

fn meta(path: &[u8], member: &Member) -> Result<Meta, Ext4Error> {
    let id = |value: u64| {
        u32::try_from(value).map_err(|_| Ext4Error::Kind { path: shown(path), kind: format!("owner {value}") })
    };
    let mode = member.header.mode().map_err(Ext4Error::Archive)? & 0o7777;
    Ok(Meta {
        mode: u16::try_from(mode).expect("twelve bits fit sixteen"),
        uid: id(member.uid)?,
        gid: id(member.gid)?,
        mtime: member.mtime,
    })
}

fn link_target(path: &[u8], member: Member) -> Result<Vec<u8>, Ext4Error> {
    if member.link.is_empty() {
        return Err(Ext4Error::Kind { path: shown(path), kind: "a link to nothing".to_owned() });
    }
    check_length(path, &member.link)?;
    Ok(member.link)
}

fn device(path: &[u8], header: &tar::Header) -> Result<(u32, u32), Ext4Error> {
    let missing = || Ext4Error::Kind { path: shown(path), kind: "a device without numbers".to_owned() };
    let major = header.device_major().map_err(Ext4Error::Archive)?.ok_or_else(missing)?;
    let minor = header.device_minor().map_err(Ext4Error::Archive)?.ok_or_else(missing)?;
    Ok((major, minor))
}

/// `text` is a path or a target, at `path` in the archive.
fn check_length(path: &[u8], text: &[u8]) -> Result<(), Ext4Error> {
    if text.len() >= PATH_LENGTH_MAX { Err(Ext4Error::BadPath { path: beginning(path) }) } else { Ok(()) }
}

type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// The attributes that count. Of those that are said twice it is the last.
fn attributes(path: &[u8], said: Attributes) -> Result<Attributes, Ext4Error> {
    let kept = |(name, _): &(Vec<u8>, Vec<u8>)| !HOST_ATTRIBUTES.contains(&name.as_slice());
    let attributes: BTreeMap<_, _> = said.into_iter().filter(kept).collect();
    let mut left = ATTRIBUTES_MAX;
    for (name, value) in &attributes {
        left = match left.checked_sub(name.len() + value.len()) {
            Some(left) if name.len() <= NAME_MAX => left,
            _ => return Err(Ext4Error::Attribute { path: beginning(path), name: beginning(name) }),
        };
    }
    Ok(attributes.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_slash_is_no_part_of_a_path() {
        assert_eq!(relative(b"./etc/"), b"etc");
        assert_eq!(relative(b"./"), b"");
        assert_eq!(relative(b"etc/x"), b"etc/x");
    }
}
