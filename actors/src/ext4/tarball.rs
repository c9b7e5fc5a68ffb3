//! Reads a tar stream into a [`Tree`]: hard links, symbolic links, devices, owners, times to the nanosecond, attributes.

use super::layer::{Entry, What};
use super::spool::{Spool, Spooled};
use super::tree::{Special, shown};
use super::{Ext4Error, Meta, Tree};
use std::cell::Cell;
use std::io::Read;
use std::rc::Rc;
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

/// tar's names for attributes, in PAX records (star(1); GNU tar and libarchive write the same).
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
/// The most that the headers of one entry may take, long names and attributes among them, in bytes.
const HEADERS_MAX: u64 = 1 << 20;
/// Attributes of the host that mean nothing in an image.
const HOST_ATTRIBUTES: [&str; 2] = ["security.selinux", "security.ima"];

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
    let budget = Rc::new(Cell::new(HEADERS_MAX));
    let mut archive = tar::Archive::new(Bounded { inner: reader, budget: Rc::clone(&budget) });
    let mut entries = archive.entries().map_err(Ext4Error::Archive)?;
    loop {
        // tar keeps long names and PAX records in memory however long they say they are.
        budget.set(HEADERS_MAX);
        let Some(next) = entries.next() else { return Ok(()) };
        budget.set(u64::MAX);
        let mut entry = next.map_err(Ext4Error::Archive)?;
        let path = relative(&entry.path_bytes()).to_vec();
        let (path, contents) = match judge(&path) {
            Verdict::Keep => (path, Contents::Kept),
            Verdict::Rename(path) => (path, Contents::Kept),
            Verdict::Empty => (path, Contents::Dropped),
            Verdict::Drop => {
                std::io::copy(&mut entry, &mut std::io::sink()).map_err(Ext4Error::Archive)?;
                continue;
            }
        };
        if let Some(entry) = read_entry(path, &mut entry, contents, spool)? {
            each(entry)?;
        }
        // What a caller has no use for is skipped here, where it costs no memory.
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(Ext4Error::Archive)?;
    }
}

/// Fails once more was read than may be.
struct Bounded<R> {
    inner: R,
    budget: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let left = self.budget.get().checked_sub(count as u64);
        self.budget.set(left.ok_or_else(|| std::io::Error::other("an entry's headers are longer than 1 MiB"))?);
        Ok(count)
    }
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

/// `None` for what is no entry of its own.
fn read_entry<R: Read>(
    path: Vec<u8>,
    entry: &mut tar::Entry<'_, R>,
    contents: Contents,
    spool: &mut Spool,
) -> Result<Option<Entry>, Ext4Error> {
    let (mtime, attributes) = extended(&path, entry)?;
    let meta = meta(&path, entry.header(), mtime)?;
    let what = match entry.header().entry_type() {
        EntryType::Directory => What::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            // Before tar knew types, a directory was a file whose name ends in a slash.
            if entry.path_bytes().ends_with(b"/") && entry.size() == 0 {
                What::Directory
            } else {
                What::File(match contents {
                    Contents::Kept => kept(&path, entry, spool)?,
                    Contents::Dropped => spool.append(&mut std::io::empty())?,
                })
            }
        }
        EntryType::Symlink => What::Symlink(link_target(&path, entry)?),
        EntryType::Link => What::HardLink(relative(&link_target(&path, entry)?).to_vec()),
        EntryType::Char => {
            let (major, minor) = device(&path, entry.header())?;
            What::Special(Special::Char { major, minor })
        }
        EntryType::Block => {
            let (major, minor) = device(&path, entry.header())?;
            What::Special(Special::Block { major, minor })
        }
        EntryType::Fifo => What::Special(Special::Fifo),
        EntryType::XGlobalHeader => return Ok(None),
        other => return Err(Ext4Error::Kind { path: shown(&path), kind: format!("{other:?}") }),
    };
    Ok(Some(Entry { path, meta, what, attributes }))
}

fn kept<R: Read>(path: &[u8], entry: &mut tar::Entry<'_, R>, spool: &mut Spool) -> Result<Spooled, Ext4Error> {
    // tar itself takes an archive that ends in the middle of its last file.
    let promised = entry.size();
    let spooled = spool.append(entry)?;
    if entry.header().entry_type() != EntryType::GNUSparse && spooled.length != promised {
        let why = format!("it ends in the middle of `{}`", shown(path));
        return Err(Ext4Error::Archive(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, why)));
    }
    Ok(spooled)
}

fn meta(path: &[u8], header: &tar::Header, mtime: Option<(i64, u32)>) -> Result<Meta, Ext4Error> {
    let id = |value: std::io::Result<u64>| {
        let value = value.map_err(Ext4Error::Archive)?;
        u32::try_from(value).map_err(|_| Ext4Error::Kind { path: shown(path), kind: format!("owner {value}") })
    };
    let mode = header.mode().map_err(Ext4Error::Archive)? & 0o7777;
    let seconds = header.mtime().map_err(Ext4Error::Archive)?;
    Ok(Meta {
        mode: u16::try_from(mode).expect("twelve bits fit sixteen"),
        uid: id(header.uid())?,
        gid: id(header.gid())?,
        mtime: mtime.unwrap_or((i64::try_from(seconds).unwrap_or(0), 0)),
    })
}

fn link_target<R: Read>(path: &[u8], entry: &tar::Entry<'_, R>) -> Result<Vec<u8>, Ext4Error> {
    entry
        .link_name_bytes()
        .map(std::borrow::Cow::into_owned)
        .filter(|target| !target.is_empty())
        .ok_or_else(|| Ext4Error::Kind { path: shown(path), kind: "a link to nothing".to_owned() })
}

fn device(path: &[u8], header: &tar::Header) -> Result<(u32, u32), Ext4Error> {
    let missing = || Ext4Error::Kind { path: shown(path), kind: "a device without numbers".to_owned() };
    let major = header.device_major().map_err(Ext4Error::Archive)?.ok_or_else(missing)?;
    let minor = header.device_minor().map_err(Ext4Error::Archive)?.ok_or_else(missing)?;
    Ok((major, minor))
}

type Extended = (Option<(i64, u32)>, Vec<(String, Vec<u8>)>);

/// What only the PAX records say: fractions of seconds and attributes.
fn extended<R: Read>(path: &[u8], entry: &mut tar::Entry<'_, R>) -> Result<Extended, Ext4Error> {
    let mut mtime = None;
    let mut attributes = Vec::new();
    let Some(records) = entry.pax_extensions().map_err(Ext4Error::Archive)? else {
        return Ok((mtime, attributes));
    };
    for record in records {
        let record = record.map_err(Ext4Error::Archive)?;
        if record.key_bytes() == b"mtime" {
            mtime = std::str::from_utf8(record.value_bytes()).ok().and_then(timestamp);
        } else if let Some(name) = record.key_bytes().strip_prefix(XATTR_PREFIX) {
            let name = std::str::from_utf8(name).map_err(|_| Ext4Error::NotUtf8 { path: shown(path) })?;
            if HOST_ATTRIBUTES.contains(&name) {
                continue;
            }
            attributes.push((name.to_owned(), on_disk(path, name, record.value_bytes())?));
        }
    }
    Ok((mtime, attributes))
}

/// PAX times are decimal fractions, negative ones too: `-1.25` is a quarter second before second -1.
fn timestamp(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos))
    } else {
        Some((seconds, nanos))
    }
}

/// ACLs travel in the form of the system call (linux/posix_acl_xattr.h: u32 version 2, then tag, permissions and id of 2, 2
/// and 4 bytes); ext4 stores version 1, and the id only of named users and groups (fs/ext4/acl.h).
fn on_disk(path: &[u8], name: &str, value: &[u8]) -> Result<Vec<u8>, Ext4Error> {
    if !name.starts_with("system.posix_acl_") {
        return Ok(value.to_vec());
    }
    let bad = || Ext4Error::Attribute { path: shown(path), name: name.to_owned() };
    let (version, entries) = value.split_first_chunk::<4>().ok_or_else(bad)?;
    if u32::from_le_bytes(*version) != 2 || !entries.len().is_multiple_of(8) {
        return Err(bad());
    }
    let mut stored = 1_u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let named = matches!(entry[0], 2 | 8);
        stored.extend_from_slice(if named { entry } else { &entry[..4] });
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_nanoseconds() {
        assert_eq!(timestamp("1700000000.123456789"), Some((1_700_000_000, 123_456_789)));
        assert_eq!(timestamp("1700000000.5"), Some((1_700_000_000, 500_000_000)));
        assert_eq!(timestamp("17"), Some((17, 0)));
        assert_eq!(timestamp("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(timestamp("x"), None);
    }

    #[test]
    fn acls_are_stored_in_ext4s_form() {
        let mut raw = 2_u32.to_le_bytes().to_vec();
        raw.extend_from_slice(&[1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff]);
        raw.extend_from_slice(&[2, 0, 4, 0, 0xe8, 3, 0, 0]);
        let stored = on_disk(b"x", "system.posix_acl_access", &raw).unwrap();
        assert_eq!(stored, [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xe8, 3, 0, 0]);
        assert!(on_disk(b"x", "system.posix_acl_access", &raw[..9]).is_err());
    }

    #[test]
    fn a_dot_slash_is_no_part_of_a_path() {
        assert_eq!(relative(b"./etc/"), b"etc");
        assert_eq!(relative(b"./"), b"");
        assert_eq!(relative(b"etc/x"), b"etc/x");
    }
}
