//! A disk that is ours for a moment: locked, with a directory of its own beside it, and replaced by a changed copy or not at
//! all. What a kill leaves is that directory, which the next claim of the same disk removes.

use super::FilesError;
use crate::ext4::Ext4Error;
use crate::ext4::disk::copy_sparse;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

/// What the disk is called in the work directory, whatever it is called elsewhere: tools take options and offsets in names.
pub(super) const DISK: &str = "disk";
/// Free space that a copy leaves alone, in bytes; of a small file system a twentieth.
const ROOM_LEFT: u64 = 1 << 30;

/// The claim. Dropping it gives the disk back, as it was or as it was made by [`Claim::replace`].
#[derive(Debug)]
pub(super) struct Claim {
    disk: PathBuf,
    /// Locked for as long as it is open.
    file: File,
    work: WorkDirectory,
}

/// Removed when dropped.
#[derive(Debug)]
struct WorkDirectory(PathBuf);

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(directory = %self.0.display(), %error, "cannot remove a work directory");
        }
    }
}

impl Claim {
    /// Takes a disk, unless somebody else has it.
    pub(super) fn take(disk: &Path) -> Result<Self, FilesError> {
        let failed = |source| FilesError::disk(disk, source);
        let file = locked(disk)?;
        let work = work_directory(disk).ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
        match fs::remove_dir_all(&work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        DirBuilder::new().mode(0o700).create(&work).map_err(failed)?;
        Ok(Self { disk: disk.to_owned(), file, work: WorkDirectory(work) })
    }

    /// Where tools run.
    pub(super) fn directory(&self) -> &Path {
        &self.work.0
    }

    /// The disk's own path, for errors.
    pub(super) fn disk(&self) -> &Path {
        &self.disk
    }

    /// Shows tools the disk itself.
    pub(super) fn show(&self) -> Result<(), FilesError> {
        let disk = fs::canonicalize(&self.disk).map_err(|source| FilesError::disk(&self.disk, source))?;
        symlink(disk, self.work.0.join(DISK)).map_err(|source| FilesError::disk(&self.disk, source))
    }

    /// Shows tools a copy of the disk, holes as holes. Blocks are shared where the host's file system can.
    pub(super) fn copy(&self) -> Result<(), FilesError> {
        self.leave_room()?;
        let copy = self.work.0.join(DISK);
        copy_sparse(&self.disk, &copy).map_err(|source| FilesError::copy(&self.disk, source))?;
        let permissions = self.file.metadata().map(|metadata| metadata.permissions());
        let given = permissions.and_then(|permissions| fs::set_permissions(&copy, permissions));
        given.map_err(|source| FilesError::disk(&self.disk, source))
    }

    /// Puts the copy in the disk's place. Until the rename is on the host's disk, a crash leaves the one or the other.
    pub(super) fn replace(&self) -> Result<(), FilesError> {
        let failed = |source| FilesError::copy(&self.disk, Ext4Error::write(&self.disk, source));
        let copy = self.work.0.join(DISK);
        File::open(&copy).and_then(|copy| copy.sync_all()).map_err(failed)?;
        fs::rename(&copy, &self.disk).map_err(failed)?;
        let parent = self.disk.parent().unwrap_or(Path::new("/"));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)
    }

    fn leave_room(&self) -> Result<(), FilesError> {
        let failed = |source| FilesError::disk(&self.disk, source);
        let taken = self.file.metadata().map_err(failed)?.blocks() * 512;
        let stat = nix::sys::statvfs::fstatvfs(&self.file).map_err(|error| failed(error.into()))?;
        let (free, whole) = (stat.blocks_available() * stat.fragment_size(), stat.blocks() * stat.fragment_size());
        if free < taken.saturating_add(ROOM_LEFT.min(whole / 20)) {
            return Err(FilesError::copy(&self.disk, Ext4Error::NoSpace { path: self.disk.clone() }));
        }
        Ok(())
    }
}

/// `DISK.work`, beside it.
fn work_directory(disk: &Path) -> Option<PathBuf> {
    let mut name = disk.file_name().filter(|_| disk.is_absolute())?.to_owned();
    name.push(".work");
    Some(disk.with_file_name(name))
}

/// Opens and locks the disk's file. The lock is of the open file description, as QEMU's are, so that they see each other.
fn locked(disk: &Path) -> Result<File, FilesError> {
    let failed = |source| FilesError::disk(disk, source);
    let file = File::options().read(true).write(true).open(disk).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
    }
    let whole = nix::libc::flock {
        l_type: i16::try_from(nix::libc::F_WRLCK).expect("0, 1 or 2"),
        l_whence: i16::try_from(nix::libc::SEEK_SET).expect("0, 1 or 2"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => {}
        Err(Errno::EAGAIN | Errno::EACCES) => return Err(FilesError::InUse { disk: disk.to_owned() }),
        Err(error) => return Err(failed(error.into())),
    }
    // Whoever had it before may have put another file in its place: then this is the lock of nothing.
    let now = fs::metadata(disk).map_err(failed)?;
    if (now.dev(), now.ino()) != (metadata.dev(), metadata.ino()) {
        return Err(FilesError::InUse { disk: disk.to_owned() });
    }
    Ok(file)
}
