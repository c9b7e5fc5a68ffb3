//! Writes a tree of files as a tar archive: every kind, owner, time and attribute, hard links as such. Sockets are left out, as
//! every tar does.
//!
//! Format: POSIX.1-2024, "pax Interchange Format": ustar headers, and records before them for what does not fit; attributes as
//! `SCHILY.xattr.*`, as star, GNU tar and libarchive have them; files with holes as GNU tar's format 0.1 ("Storing Sparse Files").

use super::holes::{self, Data, Pieces};
use crate::identity::RUNTIME_DIRECTORY;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{major, minor};
use std::collections::HashMap;
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// The longest name that a header holds by itself, in bytes.
const NAME_MAX: usize = 100;
/// As much as a frame to the host holds.
const BUFFER: usize = 128 << 10;

/// Archives `root` to stdout. The guest's own root is seen without anything that is mounted on it.
///
/// # Errors
/// A file cannot be read, or nobody reads the archive.
pub fn run(root: &Path) -> io::Result<()> {
    // What programs have written but not yet flushed is read from memory all the same; what was renamed is on the disk then.
    nix::unistd::sync();
    let bare = if root == Path::new("/") { bare_root()? } else { root.to_owned() };
    let mut out = BufWriter::with_capacity(BUFFER, io::stdout().lock());
    write(&bare, &mut out)?;
    out.flush()
}

/// The root directory's file system alone, in a namespace of this process's own.
fn bare_root() -> io::Result<PathBuf> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    // Not recursive: mounts on the root stay behind.
    mount(Some("/"), RUNTIME_DIRECTORY, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(RUNTIME_DIRECTORY.into())
}

/// Writes everything below `root`, directories before what is in them, by name.
///
/// # Errors
/// As [`run`].
pub fn write(root: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut archive = Builder::new(out);
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let real = root.join(&path);
        let Some(metadata) = present(fs::symlink_metadata(&real)).map_err(|error| named(&path, &error))? else {
            continue;
        };
        if metadata.is_dir() {
            let mut names = present(fs::read_dir(&real).and_then(|entries| {
                entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>()
            }))
            .map_err(|error| named(&path, &error))?
            .unwrap_or_default();
            // The last one is taken first.
            names.sort_by(|one, other| other.cmp(one));
            waiting.extend(names.into_iter().map(|name| path.join(name)));
        }
        entry(&real, &path, &metadata, &mut links, &mut archive).map_err(|error| named(&path, &error))?;
    }
    archive.finish()
}

/// A file that another program has just removed is not there: no error.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("/{}: {error}", path.display()))
}

fn entry(
    real: &Path,
    path: &Path,
    metadata: &Metadata,
    links: &mut HashMap<(u64, u64), PathBuf>,
    archive: &mut Builder<impl Write>,
) -> io::Result<()> {
    let kind = metadata.file_type();
    if kind.is_socket() {
        return Ok(());
    }
    // What others may be links to, once it is in the archive.
    let linked = (metadata.nlink() > 1 && !metadata.is_dir()).then(|| (metadata.dev(), metadata.ino()));
    if let Some(first) = linked.and_then(|file| links.get(&file)) {
        let mut member = Member::new(path, metadata, EntryType::Link)?;
        member.link(first.as_os_str().as_bytes());
        return member.write(archive, io::empty());
    }
    let first = linked.map(|file| (file, path.to_owned()));
    if kind.is_file() {
        // A pipe that took its place meanwhile must not hold us up.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(real);
        let Some(file) = present(opened)? else { return Ok(()) };
        links.extend(first);
        let metadata = file.metadata()?;
        let mut member = Member::new(path, &metadata, EntryType::Regular)?;
        member.attributes(real)?;
        if let Some(pieces) = holes::find(&file, metadata.len())? {
            member.sparse(&pieces, metadata.len());
            return member.write(archive, Data { file: &file, pieces: pieces.into() });
        }
        member.header.set_size(metadata.len());
        // As many bytes as were announced: a file that shrinks meanwhile ends in zeros, one that grows is cut.
        return member.write(archive, file.chain(io::repeat(0)).take(metadata.len()));
    }
    let mut member = match () {
        () if kind.is_dir() => Member::new(path, metadata, EntryType::Directory)?,
        () if kind.is_symlink() => {
            let Some(target) = present(fs::read_link(real))? else { return Ok(()) };
            let mut member = Member::new(path, metadata, EntryType::Symlink)?;
            member.link(target.as_os_str().as_bytes());
            member
        }
        () if kind.is_fifo() => Member::new(path, metadata, EntryType::Fifo)?,
        () => {
            let kind = if kind.is_block_device() { EntryType::Block } else { EntryType::Char };
            let mut member = Member::new(path, metadata, kind)?;
            let number = |value: u64| u32::try_from(value).map_err(io::Error::other);
            member.header.set_device_major(number(major(metadata.rdev()))?)?;
            member.header.set_device_minor(number(minor(metadata.rdev()))?)?;
            member
        }
    };
    member.attributes(real)?;
    links.extend(first);
    member.write(archive, io::empty())
}

/// A header, and the records before it.
struct Member {
    header: Header,
    records: Vec<(String, Vec<u8>)>,
}

impl Member {
    fn new(path: &Path, metadata: &Metadata, kind: EntryType) -> io::Result<Self> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(metadata.mode() & 0o7777);
        // Beyond the octal fields these are written in base 256, as GNU tar does.
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        header.set_size(0);
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        let mut member = Self { header, records: Vec::new() };
        let mut name = b"./".to_vec();
        name.extend_from_slice(path.as_os_str().as_bytes());
        if name.len() > NAME_MAX {
            member.record("path", &name);
        }
        copy_into(&mut member.header.as_old_mut().name, &name);
        if metadata.mtime() < 0 || metadata.mtime_nsec() != 0 {
            member.record("mtime", timestamp(metadata.mtime(), metadata.mtime_nsec()).as_bytes());
        }
        Ok(member)
    }

    fn link(&mut self, target: &[u8]) {
        if target.len() > NAME_MAX {
            self.record("linkpath", target);
        }
        copy_into(&mut self.header.as_old_mut().linkname, target);
    }

    fn attributes(&mut self, real: &Path) -> io::Result<()> {
        let names = match present(xattr::list(real)) {
            Ok(names) => names,
            // A file system without attributes has none.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut names: Vec<_> = names.into_iter().flatten().collect();
        names.sort();
        for name in names {
            if let Some(value) = present(xattr::get(real, &name))?.flatten() {
                self.record(&format!("SCHILY.xattr.{}", name.to_string_lossy()), &value);
            }
        }
        Ok(())
    }

    /// Of this length, with data only in these pieces.
    fn sparse(&mut self, pieces: &Pieces, length: u64) {
        let map: Vec<String> = pieces.iter().map(|(offset, length)| format!("{offset},{length}")).collect();
        // The reader makes room for so many before it reads the map. One that has none is taken for no sparse file.
        let (count, map) = if map.is_empty() { (1, format!("{length},0")) } else { (map.len(), map.join(",")) };
        self.record("GNU.sparse.size", length.to_string().as_bytes());
        self.record("GNU.sparse.numblocks", count.to_string().as_bytes());
        self.record("GNU.sparse.map", map.as_bytes());
        self.header.set_size(pieces.iter().map(|(_, length)| length).sum());
    }

    fn record(&mut self, key: &str, value: &[u8]) {
        self.records.push((key.to_owned(), value.to_vec()));
    }

    fn write(mut self, archive: &mut Builder<impl Write>, contents: impl Read) -> io::Result<()> {
        archive.append_pax_extensions(self.records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
        self.header.set_cksum();
        archive.append(&self.header, contents)
    }
}

/// What fits, which is all there is to it unless a record says the rest.
fn copy_into(field: &mut [u8; NAME_MAX], value: &[u8]) {
    let length = value.len().min(NAME_MAX);
    field[..length].copy_from_slice(&value[..length]);
}

/// A decimal fraction: a quarter second before second -1 is `-1.25`.
fn timestamp(seconds: i64, nanoseconds: i64) -> String {
    if seconds < 0 && nanoseconds != 0 {
        let whole = (seconds + 1).unsigned_abs();
        return format!("-{whole}.{:09}", 1_000_000_000 - nanoseconds);
    }
    format!("{seconds}.{nanoseconds:09}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn what_tar_reads_is_what_there_was() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        let long = "n".repeat(150);
        fs::create_dir_all(at("etc/deep")).unwrap();
        fs::write(at("etc/file"), "content").unwrap();
        fs::set_permissions(at("etc/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(at("etc/file"), at("etc/second")).unwrap();
        symlink(format!("/{long}"), at("link")).unwrap();
        fs::write(at(&long), vec![7; 700]).unwrap();
        drop(std::os::unix::net::UnixListener::bind(at("socket")).unwrap());
        let mut bytes = Vec::new();
        write(root.path(), &mut bytes).unwrap();

        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            let path = entry.path().unwrap().display().to_string();
            seen.push((path, entry.header().entry_type(), entry.header().mode().unwrap(), content, link));
        }
        let paths: Vec<&str> = seen.iter().map(|(path, ..)| path.as_str()).collect();
        assert_eq!(paths, ["./", "./etc", "./etc/deep", "./etc/file", "./etc/second", "./link", &format!("./{long}")]);
        assert_eq!((seen[3].2, seen[3].3.as_slice()), (0o4751, b"content".as_slice()));
        assert_eq!((seen[4].1, seen[4].4.as_deref()), (EntryType::Link, Some("etc/file")));
        assert_eq!((seen[5].1, seen[5].4.clone()), (EntryType::Symlink, Some(format!("/{long}"))));
        assert_eq!(seen[6].3, vec![7; 700]);
    }

    #[test]
    fn holes_stay_holes() {
        use std::os::unix::fs::FileExt as _;
        const LENGTH: u64 = 64 << 20;
        let (root, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let some: &[(u64, &[u8])] = &[(5 << 20, b"in the middle"), (LENGTH - 10, b"at the end")];
        for (name, data) in [("empty", &[][..]), ("some", some)] {
            let file = fs::File::create(root.path().join(name)).unwrap();
            file.set_len(LENGTH).unwrap();
            data.iter().for_each(|(offset, bytes)| file.write_all_at(bytes, *offset).unwrap());
        }
        let archive = out.path().join("archive");
        write(root.path(), &mut fs::File::create(&archive).unwrap()).unwrap();
        assert!(archive.metadata().unwrap().len() < 1 << 20, "{:?}", archive.metadata());
        let tar =
            std::process::Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(out.path()).output().unwrap();
        assert!(tar.status.success() && tar.stderr.is_empty(), "{tar:?}");
        for name in ["empty", "some"] {
            let (before, after) = (root.path().join(name), out.path().join(name));
            assert!(fs::read(before).unwrap() == fs::read(&after).unwrap(), "{name}");
            assert!(after.metadata().unwrap().blocks() * 512 < 1 << 20, "{name}");
        }
    }

    #[test]
    fn times_before_the_epoch_are_negative_fractions() {
        assert_eq!(timestamp(-2, 750_000_000), "-1.250000000");
        assert_eq!(timestamp(-1, 500_000_000), "-0.500000000");
        assert_eq!(timestamp(-5, 0), "-5.000000000");
        assert_eq!(timestamp(7, 1), "7.000000001");
    }

    #[test]
    fn links_of_any_length_come_back_whole() {
        let root = tempfile::tempdir().unwrap();
        // Around a thousand, where the length of a record grows a digit.
        for length in [1, 99, 100, 101, 980, 981, 982, 983, 984, 985, 986, 990, 4000] {
            symlink("t".repeat(length), root.path().join(format!("link-{length}"))).unwrap();
        }
        let mut bytes = Vec::new();
        write(root.path(), &mut bytes).unwrap();
        let mut links = 0;
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let Some(target) = entry.link_name().unwrap() else { continue };
            let name = entry.path().unwrap().display().to_string();
            assert_eq!(name, format!("./link-{}", target.as_os_str().len()));
            links += 1;
        }
        assert_eq!(links, 13);
    }
}
