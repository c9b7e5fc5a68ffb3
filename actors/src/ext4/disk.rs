//! VM disks: an empty file system of each size is made once, then copied for every VM, holes left out.
//!
//! The templates are a cache: the few that were used last are kept. Any of them may be removed at any time, by hand too; a copy
//! under way holds the file open, and one that has not begun has a new template made.
//!
//! A disk has its name only once it is whole: what a daemon that was killed left of one is never booted from. It is not synced,
//! for a create waits for one sync only, that of its record: what a power cut takes of a new disk is what it takes of any file.

use super::Ext4Error;
use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// Less holds no journal and nothing worth booting for, in bytes.
pub const SIZE_MIN: u64 = 64 << 20;
/// The most that a file system of 4 KiB blocks may have without ext4's 64-bit feature, in bytes.
pub const SIZE_MAX: u64 = 16 << 40;
/// Part of a template's file name: change it when what mke2fs is told changes, and old templates are ignored until they go.
const TEMPLATE_GENERATION: u32 = 1;
/// How many templates are kept. Each takes a few MiB, and an installation has a handful of sizes at most.
pub(super) const TEMPLATES_MAX: usize = 8;
/// What is left of a template whose making was cut off is removed after so long; making one takes a second.
const PARTIAL_LIFETIME: Duration = Duration::from_secs(3600);
/// The end of the name of a disk that is being copied, in the directory of the disk. It begins with a dot and the disk's name.
const UNFINISHED: &str = ".partial";
/// How often a template may vanish between being found and being opened: with each, another create has made more of them.
const ATTEMPTS: usize = 8;
/// One inode for this many bytes. Twice mke2fs's own ratio: 262,144 files on 8 GiB, and half the tables that could be written.
const BYTES_PER_INODE: u32 = 32768;
/// What the agent finds on the disk: an overlay's two directories, and what must not lie on an overlay.
const DIRECTORIES: [&str; 5] = ["upper", "work", "docker", "containerd", "containers"];

/// Makes a disk of `size_bytes` (rounded up to whole MiB) at `path`, which must not be there, and returns the UUID of its file
/// system. It is that of the template: VMs never see each other's disks, and a new one would mean to rewrite every checksum.
///
/// # Errors
/// When the size is absurd, something is at `path`, the disk is full or mke2fs fails; nothing more is there then.
pub fn create_disk(templates: &Path, path: &Path, size_bytes: u64) -> Result<Uuid, Ext4Error> {
    let mut attempt = 1;
    loop {
        let template = template(templates, size_bytes)?;
        match File::open(&template.path) {
            Ok(source) => {
                // What was used last is kept longest; a cache that cannot be kept in order still serves.
                drop(source.set_modified(SystemTime::now()));
                place(&source, path)?;
                return Ok(template.uuid);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => attempt += 1,
            Err(source) => return Err(Ext4Error::write(&template.path, source)),
        }
    }
}

/// Copies a template to `path`, which has it all or nothing.
fn place(source: &File, path: &Path) -> Result<(), Ext4Error> {
    let failed = |error| Ext4Error::write(path, error);
    let directory = path.parent().unwrap_or(Path::new("."));
    let prefix = format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy());
    sweep(directory, &prefix).map_err(failed)?;
    let unfinished =
        tempfile::Builder::new().prefix(&prefix).suffix(UNFINISHED).tempfile_in(directory).map_err(failed)?;
    copy_extents(source, unfinished.as_file()).map_err(failed)?;
    unfinished.persist_noclobber(path).map(drop).map_err(|error| failed(error.error))
}

/// Removes what a daemon that was killed left of a disk. A copy that still goes on, for an actor that has died, fails by it.
fn sweep(directory: &Path, prefix: &str) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(prefix) && name.ends_with(UNFINISHED) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// Refuses sizes that make no sense.
///
/// # Errors
/// When it is too small or too large.
pub fn check_size(size_bytes: u64) -> Result<(), Ext4Error> {
    let problem = match size_bytes {
        ..SIZE_MIN => "too small",
        SIZE_MIN..=SIZE_MAX => return Ok(()),
        _ => "too large",
    };
    Err(Ext4Error::DiskSize { asked: size_bytes, problem })
}

struct Template {
    path: PathBuf,
    uuid: Uuid,
}

fn template(directory: &Path, size_bytes: u64) -> Result<Template, Ext4Error> {
    check_size(size_bytes)?;
    let mebibytes = size_bytes.div_ceil(1 << 20);
    let prefix = format!("disk-v{TEMPLATE_GENERATION}-{mebibytes}M-");
    if let Some(found) = existing(directory, &prefix)? {
        return Ok(found);
    }
    fs::create_dir_all(directory).map_err(|source| Ext4Error::write(directory, source))?;
    let uuid = Uuid::new_v4();
    // Removed when dropped; two that race each make one, and either serves.
    let fresh = tempfile::Builder::new()
        .prefix("disk.")
        .suffix(".partial")
        .tempfile_in(directory)
        .map_err(|source| Ext4Error::write(directory, source))?;
    format(fresh.path(), uuid, mebibytes)?;
    fresh.as_file().sync_all().map_err(|source| Ext4Error::write(fresh.path(), source))?;
    let path = directory.join(format!("{prefix}{uuid}.ext4"));
    fresh.persist(&path).map_err(|error| Ext4Error::write(&path, error.error))?;
    if let Err(error) = trim(directory, &path, SystemTime::now()) {
        tracing::warn!(directory = %directory.display(), %error, "cannot bound the templates of disks");
    }
    Ok(Template { path, uuid })
}

/// Removes all templates but `fresh` and those used last, and what an earlier daemon left unfinished.
fn trim(directory: &Path, fresh: &Path, now: SystemTime) -> io::Result<()> {
    let mut templates = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        let ours = name.starts_with("disk-v") && name.ends_with(".ext4");
        let partial = name.starts_with("disk.") && name.ends_with(".partial");
        if path == fresh || !(ours || partial) {
            continue;
        }
        let used = match entry.metadata().and_then(|metadata| metadata.modified()) {
            Ok(used) => used,
            // Another create's trim was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if ours {
            templates.push((used, path));
        } else if now.duration_since(used).is_ok_and(|age| age > PARTIAL_LIFETIME) {
            remove_if_there(&path)?;
        }
    }
    templates.sort_unstable_by(|one, other| other.cmp(one));
    templates.iter().skip(TEMPLATES_MAX - 1).try_for_each(|(_, path)| remove_if_there(path))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The UUID is in the name: no superblock has to be read.
fn existing(directory: &Path, prefix: &str) -> Result<Option<Template>, Ext4Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Ext4Error::write(directory, source)),
    };
    for entry in entries {
        let entry = entry.map_err(|source| Ext4Error::write(directory, source))?;
        let name = entry.file_name();
        let uuid = name.to_str().and_then(|name| name.strip_prefix(prefix)?.strip_suffix(".ext4")?.parse().ok());
        if let Some(uuid) = uuid {
            return Ok(Some(Template { path: entry.path(), uuid }));
        }
    }
    Ok(None)
}

fn format(path: &Path, uuid: Uuid, mebibytes: u64) -> Result<(), Ext4Error> {
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", "banger-disk"])
        .args(["-i", &BYTES_PER_INODE.to_string()])
        // A journal that wraps early: what it has touched stays allocated on the host for the VM's life.
        .args(["-J", if mebibytes < 512 { "size=4" } else { "size=16" }])
        .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"])
        .args(["-U", &uuid.to_string()])
        .arg(path)
        .arg(format!("{mebibytes}M"));
    run("mke2fs", mke2fs, "")?;
    // `mke2fs -d` would give the directories this user's uid, and the overlay shows upper's owner as that of `/`.
    let mut debugfs = Command::new("debugfs");
    debugfs.args(["-w", "-f", "-"]).arg(path);
    let script: String = DIRECTORIES.iter().map(|directory| format!("mkdir {directory}\n")).collect();
    run("debugfs", debugfs, &script)
}

fn run(program: &'static str, mut command: Command, input: &str) -> Result<(), Ext4Error> {
    let said = |said: String| Ext4Error::Tool { program, said };
    // In /usr/sbin, which an ordinary user's PATH may lack.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin")).env("LC_ALL", "C");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound { Ext4Error::NoMke2fs } else { said(error.to_string()) }
        })?;
    // A few dozen bytes: they fit the pipe whatever the program does.
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(|error| said(error.to_string()))?;
    let talk = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if !output.status.success() || matches!(written, Some(Err(_))) {
        return Err(said(if talk.is_empty() { output.status.to_string() } else { talk }));
    }
    // debugfs exits 0 whatever went wrong; its banner is one line, everything after it is a complaint.
    match talk.lines().find(|line| !line.starts_with("debugfs 1.")) {
        Some(complaint) if program == "debugfs" => Err(said(complaint.to_owned())),
        _ => Ok(()),
    }
}

/// Copies a file, its holes as holes. `to` must not be there, and is not if this fails.
///
/// # Errors
/// When either file system refuses; a full one is told apart.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<(), Ext4Error> {
    copy_from(&File::open(from).map_err(|error| Ext4Error::write(from, error))?, to)
}

/// Copies a file, its holes as holes. `to` must not be there, and is not if this fails; a full file system is told apart.
pub(super) fn copy_from(source: &File, to: &Path) -> Result<(), Ext4Error> {
    let target = File::options().write(true).create_new(true).open(to).map_err(|error| Ext4Error::write(to, error))?;
    copy_extents(source, &target)
        .inspect_err(|_| {
            drop(fs::remove_file(to));
        })
        .map_err(|error| Ext4Error::write(to, error))
}

/// `copy_file_range` shares the blocks where the file system can (btrfs, xfs) and copies in the kernel elsewhere.
fn copy_extents(source: &File, target: &File) -> io::Result<()> {
    let length = source.metadata()?.size();
    target.set_len(length)?;
    let length = offset(length)?;
    let mut at = 0;
    while at < length {
        let start = match lseek(source, at, Whence::SeekData) {
            Ok(start) => start,
            // No data from here on: the rest is one hole.
            Err(Errno::ENXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = lseek(source, start, Whence::SeekHole)?;
        copy_range(source, target, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(source: &File, target: &File, start: i64, end: i64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let left = usize::try_from(end - from).expect("from < end");
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::EINTR) => {}
            // Two file systems, or one that cannot: the long way round.
            Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                return copy_bytes(source, target, from, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_bytes(source: &File, target: &File, start: i64, end: i64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 256 << 10];
    let mut at = u64::try_from(start).expect("offsets are not negative");
    let end = u64::try_from(end).expect("offsets are not negative");
    while at < end {
        let most = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let count = source.read_at(&mut buffer[..most], at)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        target.write_all_at(&buffer[..count], at)?;
        at += count as u64;
    }
    Ok(())
}

fn offset(length: u64) -> io::Result<i64> {
    i64::try_from(length).map_err(io::Error::other)
}
