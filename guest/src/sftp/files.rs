//! What each SFTP request does to the file system.

use super::wire::{self, Answer, Attributes, DATA_MAX, Packet, Status};
use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions, Permissions, ReadDir};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{self as unix, DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What is open at once at most; a client that wants more is told so.
const OPEN_MAX: usize = 512;
/// The names of one answer to a READDIR.
const NAMES_MAX: usize = 128;
/// Section 6.3.
const OPEN_READ: u32 = 1;
const OPEN_WRITE: u32 = 2;
const OPEN_APPEND: u32 = 4;
const OPEN_CREATE: u32 = 8;
const OPEN_TRUNCATE: u32 = 16;
const OPEN_EXCLUSIVE: u32 = 32;
/// OpenSSH's extensions that are here, with their versions (its PROTOCOL file).
const EXTENSIONS: [(&str, &str); 3] =
    [("posix-rename@openssh.com", "1"), ("hardlink@openssh.com", "1"), ("fsync@openssh.com", "1")];

enum Open {
    File { file: File, append: bool },
    Directory { path: PathBuf, entries: ReadDir },
}

/// What a client has open.
#[derive(Default)]
pub(super) struct Files {
    open: BTreeMap<u32, Open>,
    next: u32,
}

type Done = io::Result<Answer>;

fn done(id: u32) -> Answer {
    Answer::status(id, Status::Ok, "")
}

fn bad_handle() -> io::Error {
    io::Error::other("no such handle")
}

impl Files {
    /// Does what a packet asks for. `None` where it is malformed.
    pub(super) fn answer(&mut self, packet: &mut Packet<'_>) -> Option<Answer> {
        let kind = packet.byte()?;
        if kind == wire::INIT {
            packet.u32()?;
            let version = Answer::new(wire::VERSION).u32(3);
            return Some(
                EXTENSIONS
                    .iter()
                    .fold(version, |answer, (name, version)| answer.string(name.as_bytes()).string(version.as_bytes())),
            );
        }
        let id = packet.u32()?;
        let result = self.request(kind, id, packet)?;
        Some(result.unwrap_or_else(|error| Answer::error(id, &error)))
    }

    fn request(&mut self, kind: u8, id: u32, packet: &mut Packet<'_>) -> Option<Done> {
        Some(match kind {
            wire::OPEN => {
                let (path, flags) = (packet.path()?, packet.u32()?);
                let attributes = packet.attributes()?;
                self.open_file(id, &path, flags, attributes)
            }
            wire::OPENDIR => {
                let path = packet.path()?;
                fs::read_dir(&path).and_then(|entries| self.keep(id, Open::Directory { path, entries }))
            }
            wire::CLOSE => self.close(id, handle(packet)?),
            wire::READ => {
                let (handle, offset, length) = (handle(packet)?, packet.u64()?, packet.u32()?);
                self.read(id, handle, offset, length)
            }
            wire::WRITE => {
                let (handle, offset, data) = (handle(packet)?, packet.u64()?, packet.string()?);
                self.write(id, handle, offset, data)
            }
            wire::READDIR => self.read_directory(id, handle(packet)?),
            wire::FSTAT => {
                let handle = handle(packet)?;
                self.file(handle).and_then(File::metadata).map(|it| Answer::new(wire::ATTRS).u32(id).metadata(&it))
            }
            wire::FSETSTAT => {
                let (handle, attributes) = (handle(packet)?, packet.attributes()?);
                self.file(handle).and_then(|file| set_open(file, attributes)).map(|()| done(id))
            }
            wire::EXTENDED => match packet.string()? {
                b"posix-rename@openssh.com" => fs::rename(packet.path()?, packet.path()?).map(|()| done(id)),
                b"hardlink@openssh.com" => fs::hard_link(packet.path()?, packet.path()?).map(|()| done(id)),
                b"fsync@openssh.com" => {
                    let handle = handle(packet)?;
                    self.file(handle).and_then(File::sync_all).map(|()| done(id))
                }
                _ => Err(io::ErrorKind::Unsupported.into()),
            },
            _ => return by_path(kind, id, packet),
        })
    }

    fn keep(&mut self, id: u32, open: Open) -> Done {
        if self.open.len() >= OPEN_MAX {
            return Err(io::Error::other("too many open files"));
        }
        self.next = self.next.wrapping_add(1);
        self.open.insert(self.next, open);
        Ok(Answer::new(wire::HANDLE).u32(id).string(&self.next.to_be_bytes()))
    }

    fn open_file(&mut self, id: u32, path: &Path, flags: u32, attributes: Attributes) -> Done {
        let has = |flag: u32| flags & flag != 0;
        let writes = has(OPEN_WRITE) || has(OPEN_APPEND);
        let mut options = OpenOptions::new();
        options.read(has(OPEN_READ) || !writes).write(has(OPEN_WRITE)).append(has(OPEN_APPEND));
        if writes {
            options.create(has(OPEN_CREATE)).create_new(has(OPEN_CREATE) && has(OPEN_EXCLUSIVE));
            options.truncate(has(OPEN_TRUNCATE) && !has(OPEN_APPEND));
        }
        options.mode(attributes.permissions.unwrap_or(0o666));
        let file = options.open(path)?;
        self.keep(id, Open::File { file, append: has(OPEN_APPEND) })
    }

    fn file(&self, handle: u32) -> io::Result<&File> {
        match self.open.get(&handle) {
            Some(Open::File { file, .. }) => Ok(file),
            Some(Open::Directory { .. }) | None => Err(bad_handle()),
        }
    }

    fn close(&mut self, id: u32, handle: u32) -> Done {
        self.open.remove(&handle).map(|_| done(id)).ok_or_else(bad_handle)
    }

    fn read(&self, id: u32, handle: u32, offset: u64, length: u32) -> Done {
        let mut buffer = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(DATA_MAX)];
        match self.file(handle)?.read_at(&mut buffer, offset)? {
            0 if !buffer.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(Answer::new(wire::DATA).u32(id).string(&buffer[..read])),
        }
    }

    fn write(&self, id: u32, handle: u32, offset: u64, data: &[u8]) -> Done {
        match self.open.get(&handle) {
            Some(Open::File { file, append: true }) => io::Write::write_all(&mut &*file, data)?,
            Some(Open::File { file, append: false }) => file.write_all_at(data, offset)?,
            Some(Open::Directory { .. }) | None => return Err(bad_handle()),
        }
        Ok(done(id))
    }

    fn read_directory(&mut self, id: u32, handle: u32) -> Done {
        let Some(Open::Directory { path, entries }) = self.open.get_mut(&handle) else { return Err(bad_handle()) };
        let (mut count, mut names) = (0, Answer::new(0));
        while count < NAMES_MAX && names.len() < DATA_MAX / 2 {
            let Some(entry) = entries.next() else { break };
            let name = entry?.file_name();
            // One that was removed meanwhile is not there.
            let Ok(metadata) = fs::symlink_metadata(path.join(&name)) else { continue };
            names = names.string(name.as_bytes()).string(&long_name(&metadata, name.as_bytes())).metadata(&metadata);
            count += 1;
        }
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Answer::new(wire::NAME).u32(id).u32(u32::try_from(count).unwrap_or(u32::MAX)).append(&names))
    }
}

fn handle(packet: &mut Packet<'_>) -> Option<u32> {
    // One that is not ours is as good as one that is closed.
    Some(packet.string()?.try_into().map_or(0, u32::from_be_bytes))
}

fn by_path(kind: u8, id: u32, packet: &mut Packet<'_>) -> Option<Done> {
    let attributes = |metadata: Metadata| Answer::new(wire::ATTRS).u32(id).metadata(&metadata);
    let name = |path: &Path| {
        let bytes = path.as_os_str().as_bytes();
        Answer::new(wire::NAME).u32(id).u32(1).string(bytes).string(bytes).no_attributes()
    };
    let path = packet.path()?;
    Some(match kind {
        wire::STAT => fs::metadata(path).map(attributes),
        wire::LSTAT => fs::symlink_metadata(path).map(attributes),
        wire::SETSTAT => set_path(&path, packet.attributes()?).map(|()| done(id)),
        wire::REMOVE => fs::remove_file(path).map(|()| done(id)),
        wire::MKDIR => {
            let mode = packet.attributes()?.permissions.unwrap_or(0o777);
            fs::DirBuilder::new().mode(mode).create(path).map(|()| done(id))
        }
        wire::RMDIR => fs::remove_dir(path).map(|()| done(id)),
        wire::REALPATH => real_path(&path).map(|real| name(&real)),
        wire::RENAME => {
            let to = packet.path()?;
            // Version 3 refuses to replace; a hard link is the way that cannot race, where it is one.
            match to.symlink_metadata() {
                Ok(_) => Err(io::Error::other("the new name is taken")),
                Err(_) => fs::rename(path, to).map(|()| done(id)),
            }
        }
        wire::READLINK => fs::read_link(path).map(|target| name(&target)),
        // OpenSSH has the arguments the other way round than the draft, and so has everybody since.
        wire::SYMLINK => unix::symlink(path, packet.path()?).map(|()| done(id)),
        _ => Err(io::ErrorKind::Unsupported.into()),
    })
}

/// Of what does not exist too, as far as it does: that is how clients begin.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if parent.as_os_str().is_empty() => {
                Ok(Path::new(".").canonicalize()?.join(name))
            }
            (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
            _ => Err(error),
        },
        result => result,
    }
}

fn time(seconds: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(seconds))
}

fn set_open(file: &File, wanted: Attributes) -> io::Result<()> {
    if let Some(size) = wanted.size {
        file.set_len(size)?;
    }
    if let Some((user, group)) = wanted.owner {
        unix::fchown(file, Some(user), Some(group))?;
    }
    if let Some(mode) = wanted.permissions {
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    if let Some((access, change)) = wanted.times {
        file.set_times(fs::FileTimes::new().set_accessed(time(access)).set_modified(time(change)))?;
    }
    Ok(())
}

fn set_path(path: &Path, wanted: Attributes) -> io::Result<()> {
    if let Some(size) = wanted.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if let Some((user, group)) = wanted.owner {
        unix::chown(path, Some(user), Some(group))?;
    }
    if let Some(mode) = wanted.permissions {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    if let Some((access, change)) = wanted.times {
        use nix::sys::stat::{UtimensatFlags, utimensat};
        use nix::sys::time::TimeSpec;
        let spec = |seconds: u32| TimeSpec::from(Duration::from_secs(u64::from(seconds)));
        utimensat(nix::fcntl::AT_FDCWD, path, &spec(access), &spec(change), UtimensatFlags::FollowSymlink)?;
    }
    Ok(())
}

/// A line as `ls -l` has it, which clients show as it is.
fn long_name(metadata: &Metadata, name: &[u8]) -> Vec<u8> {
    let kind = metadata.file_type();
    let letter = match kind {
        _ if kind.is_dir() => 'd',
        _ if kind.is_symlink() => 'l',
        _ if kind.is_fifo() => 'p',
        _ if kind.is_socket() => 's',
        _ if kind.is_char_device() => 'c',
        _ if kind.is_block_device() => 'b',
        _ => '-',
    };
    let bit = |(index, letter): (u32, char)| if metadata.mode() >> (8 - index) & 1 == 1 { letter } else { '-' };
    let bits: String = (0..).zip("rwxrwxrwx".chars()).map(bit).collect();
    let (year, month, day) = date(metadata.mtime().div_euclid(86_400));
    let line = format!(
        "{letter}{bits} {:>3} {:<8} {:<8} {:>8} {year}-{month:02}-{day:02} ",
        metadata.nlink(),
        metadata.uid(),
        metadata.gid(),
        metadata.size()
    );
    [line.as_bytes(), name].concat()
}

/// The date of a day since the Unix epoch (H. Hinnant, "chrono-compatible low-level date algorithms").
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    fn ask(files: &mut Files, kind: u8, parts: &[&[u8]]) -> (u8, Vec<u8>) {
        let packet = [&[kind][..], &7_u32.to_be_bytes(), &parts.concat()].concat();
        let answer = files.answer(&mut Packet::new(&packet)).unwrap().finish();
        assert_eq!(answer[..4], u32::try_from(answer.len() - 4).unwrap().to_be_bytes());
        assert_eq!(answer[5..9], 7_u32.to_be_bytes());
        (answer[4], answer[9..].to_vec())
    }

    fn status(answer: (u8, Vec<u8>)) -> u32 {
        assert_eq!(answer.0, wire::STATUS);
        u32::from_be_bytes(answer.1[..4].try_into().unwrap())
    }

    fn path(dir: &Path, name: &[u8]) -> Vec<u8> {
        string(&[dir.as_os_str().as_bytes(), b"/", name].concat())
    }

    const NO_ATTRIBUTES: [u8; 4] = [0; 4];

    #[test]
    fn a_file_goes_there_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::default();
        let name = path(dir.path(), b"not \xff utf-8");
        let flags = (OPEN_READ | OPEN_WRITE | OPEN_CREATE | OPEN_TRUNCATE).to_be_bytes();
        let (kind, handle) = ask(&mut files, wire::OPEN, &[&name, &flags, &NO_ATTRIBUTES]);
        assert_eq!(kind, wire::HANDLE);
        let at = |offset: u64| offset.to_be_bytes();
        assert_eq!(status(ask(&mut files, wire::WRITE, &[&handle, &at(2), &string(b"cdef")])), 0);
        assert_eq!(status(ask(&mut files, wire::WRITE, &[&handle, &at(0), &string(b"ab")])), 0);
        let read = |files: &mut Files, offset: u64, length: u32| {
            ask(files, wire::READ, &[&handle, &at(offset), &length.to_be_bytes()])
        };
        assert_eq!(read(&mut files, 1, 100), (wire::DATA, string(b"bcdef")));
        assert_eq!(status(read(&mut files, 6, 100)), Status::Eof as u32);
        assert_eq!(status(ask(&mut files, wire::CLOSE, &[&handle])), 0);
        assert_eq!(status(read(&mut files, 0, 1)), Status::Failure as u32);
        let (kind, listed) = {
            let (_, handle) = ask(&mut files, wire::OPENDIR, &[&string(dir.path().as_os_str().as_bytes())]);
            let listed = ask(&mut files, wire::READDIR, &[&handle]);
            assert_eq!(status(ask(&mut files, wire::READDIR, &[&handle])), Status::Eof as u32);
            listed
        };
        assert_eq!((kind, &listed[..4]), (wire::NAME, &1_u32.to_be_bytes()[..]));
        assert!(listed.windows(11).any(|part| part == b"not \xff utf-8"));
    }

    #[test]
    fn names_are_moved_linked_and_removed_and_errors_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::default();
        let of = |name: &[u8]| path(dir.path(), name);
        assert_eq!(status(ask(&mut files, wire::MKDIR, &[&of(b"d"), &NO_ATTRIBUTES])), 0);
        fs::write(dir.path().join("a"), "one").unwrap();
        fs::write(dir.path().join("b"), "two").unwrap();
        assert_eq!(status(ask(&mut files, wire::RENAME, &[&of(b"a"), &of(b"b")])), Status::Failure as u32);
        let rename = string(b"posix-rename@openssh.com");
        assert_eq!(status(ask(&mut files, wire::EXTENDED, &[&rename, &of(b"a"), &of(b"b")])), 0);
        assert_eq!(fs::read(dir.path().join("b")).unwrap(), b"one");
        assert_eq!(status(ask(&mut files, wire::SYMLINK, &[&string(b"b"), &of(b"link")])), 0);
        assert_eq!(fs::read_link(dir.path().join("link")).unwrap(), Path::new("b"));
        let mode = [PERMISSIONS.to_be_bytes(), 0o600_u32.to_be_bytes()].concat();
        assert_eq!(status(ask(&mut files, wire::SETSTAT, &[&of(b"b"), &mode])), 0);
        assert_eq!(fs::metadata(dir.path().join("b")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(ask(&mut files, wire::STAT, &[&of(b"link")]).0, wire::ATTRS);
        assert_eq!(status(ask(&mut files, wire::STAT, &[&of(b"none")])), Status::NoSuchFile as u32);
        assert_eq!(status(ask(&mut files, wire::REMOVE, &[&of(b"b")])), 0);
        assert_eq!(status(ask(&mut files, wire::RMDIR, &[&of(b"d")])), 0);
        assert_eq!(status(ask(&mut files, 99, &[&of(b"b")])), Status::Unsupported as u32);
        let (kind, real) = ask(&mut files, wire::REALPATH, &[&of(b"./new")]);
        assert!(kind == wire::NAME && real.windows(4).any(|part| part == b"/new"));
    }

    const PERMISSIONS: u32 = 4;

    #[test]
    fn short_packets_are_malformed_and_nothing_else() {
        let mut whole = vec![wire::OPEN, 0, 0, 0, 1];
        whole.extend(string(b"/no/such/file"));
        whole.extend([0, 0, 0, 1, 0, 0, 0, 0]);
        for length in 0..whole.len() {
            assert!(Files::default().answer(&mut Packet::new(&whole[..length])).is_none(), "{length}");
        }
        assert!(Files::default().answer(&mut Packet::new(&whole)).is_some());
        let huge = [&[wire::WRITE, 0, 0, 0, 1][..], &u32::MAX.to_be_bytes()].concat();
        assert!(Files::default().answer(&mut Packet::new(&huge)).is_none());
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!((date(0), date(-1)), ((1970, 1, 1), (1969, 12, 31)));
        assert_eq!((date(11_016), date(11_017), date(20_779)), ((2000, 2, 29), (2000, 3, 1), (2026, 11, 22)));
    }
}
