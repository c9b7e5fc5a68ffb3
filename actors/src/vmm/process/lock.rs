//! The lock file: held by a VMM for life through an inherited descriptor, so that a daemon that was killed between any two
//! steps still finds it. The kernel drops the lock with the last holder; nothing has to be remembered.
//!
//! Inside: the VM's id, the VMM's process id and that process's start time. They are a short cut; where they are missing
//! or wrong (the daemon died before it wrote them) the holder is found through `/proc`.

use messages::ids::VmId;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The longest record, in bytes: an id, two numbers and the gaps.
const RECORD_MAX: u64 = 128;

/// Who holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) vm: VmId,
    pub(super) pid: u32,
    /// Clock ticks after the host's boot, from `/proc/PID/stat`: no two processes of one id share it.
    pub(super) start_time: u64,
}

/// A lock that this process holds. Dropping it closes the file: where a child has inherited it, the child holds on.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

/// What trying to take the lock found.
#[derive(Debug)]
pub(super) enum Attempt {
    Taken(Lock),
    /// Somebody lives. The file is theirs, open for reading.
    Held(File),
}

impl Lock {
    /// Takes the lock if nobody holds it.
    pub(super) fn attempt(path: &Path) -> io::Result<Attempt> {
        loop {
            let mut options = OpenOptions::new();
            // Not truncated: the record in it may be a living VMM's.
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(path)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(Attempt::Held(file)),
                Err(TryLockError::Error(error)) => return Err(error),
                Ok(()) => {}
            }
            // Its last holder may have removed it between our open and our lock: then this is the lock of nothing.
            if same_file(&file, path)? {
                file.set_len(0)?;
                return Ok(Attempt::Taken(Self { file, path: path.to_owned() }));
            }
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Notes who has it.
    pub(super) fn record(&self, record: Record) -> io::Result<()> {
        let text = format!("{} {} {}\n", record.vm, record.pid, record.start_time);
        self.file.write_all_at(text.as_bytes(), 0)
    }

    /// Removes the file, which only its holder may do.
    pub(super) fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// The record in a lock file, if there is a whole one.
pub(super) fn read_record(file: &File) -> Option<Record> {
    let mut text = String::new();
    file.take(RECORD_MAX).read_to_string(&mut text).ok()?;
    let mut words = text.strip_suffix('\n')?.split(' ');
    let record = Record {
        vm: words.next()?.parse().ok()?,
        pid: words.next()?.parse().ok()?,
        start_time: words.next()?.parse().ok()?,
    };
    words.next().is_none().then_some(record)
}

/// When a process started, or `None` where there is none (a zombie counts as none).
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may have spaces and parentheses of its own.
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// The living processes that hold the lock on `file`.
pub(super) fn holders(file: &File) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if pid != std::process::id() && holds(pid, file)? == Held::Yes {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Whether a process has a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Yes,
    No,
    /// Its descriptors may not be looked at.
    Unknown,
}

/// Whether this process has the lock, not merely the file open.
pub(super) fn holds(pid: u32, file: &File) -> io::Result<Held> {
    let ours = file.metadata()?;
    let descriptors = match std::fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(descriptors) => descriptors,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(Held::Unknown),
        // It has gone.
        Err(_) => return Ok(Held::No),
    };
    let held = descriptors.flatten().any(|descriptor| {
        let info = Path::new("/proc").join(pid.to_string()).join("fdinfo").join(descriptor.file_name());
        // The file itself is looked at last: one on a file system that hangs would take us along, and it is none of ours.
        std::fs::read_to_string(info).is_ok_and(|info| is_locked(&info, ours.ino()))
            && std::fs::metadata(descriptor.path())
                .is_ok_and(|theirs| theirs.ino() == ours.ino() && theirs.dev() == ours.dev())
    });
    Ok(if held { Held::Yes } else { Held::No })
}

/// Whether a descriptor has a lock on a file of this number (`lock:` in proc_pid_fdinfo(5): `1: FLOCK ADVISORY WRITE PID MAJ:MIN:INODE
/// START END`).
fn is_locked(info: &str, inode: u64) -> bool {
    let of_file = |word: &str| word.rsplit_once(':').is_some_and(|(_, number)| number.parse() == Ok(inode));
    info.lines()
        .filter_map(|line| line.strip_prefix("lock:"))
        .any(|line| line.contains("FLOCK") && line.split_ascii_whitespace().any(of_file))
}

/// A VMM leads its session; its helpers do not.
pub(super) fn leads_session(pid: u32) -> bool {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    nix::unistd::getsid(Some(pid)).is_ok_and(|session| session == pid)
}

fn same_file(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(theirs) => Ok(ours.ino() == theirs.ino() && ours.dev() == theirs.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_of_a_descriptor_is_known_by_its_file() {
        let info = "pos:\t0\nflags:\t02100002\nmnt_id:\t27\nino:\t4711\nlock:\t1: FLOCK  ADVISORY  WRITE 99 fd:01:4711 0 EOF\n";
        assert!(is_locked(info, 4711));
        assert!(!is_locked(info, 711));
        assert!(!is_locked(&info.replace("FLOCK", "POSIX"), 4711));
        assert!(!is_locked("pos:\t0\nino:\t4711\n", 4711));
    }
}
