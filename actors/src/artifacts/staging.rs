//! A directory that is not there until it is whole: made as `NAME.RANDOM.partial`, published by one rename.
//!
//! A pull that fails, panics or is dropped removes its own; what a kill -9 left is swept at the next start.

use messages::{ErrorKind, WireError};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The end of a staging directory's name. No artifact may have it: [`Staging::publish`] sees to that.
const SUFFIX: &str = ".partial";

/// What went wrong with a staging directory.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    #[error("failed to make a staging directory in `{}`", path.display())]
    Create {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to write `{}` to disk", path.display())]
    Sync {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to publish `{}`", path.display())]
    Publish {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is there already", path.display())]
    Taken { path: PathBuf },
}

impl From<&StagingError> for WireError {
    fn from(error: &StagingError) -> Self {
        let source = match error {
            StagingError::Taken { .. } => return Self::from_error(ErrorKind::Conflict, error),
            StagingError::Create { source, .. }
            | StagingError::Sync { source, .. }
            | StagingError::Publish { source, .. } => source,
        };
        let full = source.kind() == io::ErrorKind::StorageFull;
        Self::from_error(if full { ErrorKind::Resources } else { ErrorKind::Host }, error)
    }
}

/// A directory being filled. Dropping it removes it and everything in it.
#[derive(Debug)]
pub struct Staging {
    parent: PathBuf,
    directory: tempfile::TempDir,
}

impl Staging {
    /// Makes one below `parent`, which is made too.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(parent: &Path, name: &str) -> Result<Self, StagingError> {
        let failed = |source| StagingError::Create { path: parent.to_owned(), source };
        fs::create_dir_all(parent).map_err(failed)?;
        let directory =
            tempfile::Builder::new().prefix(&format!("{name}.")).suffix(SUFFIX).tempdir_in(parent).map_err(failed)?;
        Ok(Self { parent: parent.to_owned(), directory })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Makes it `NAME` in one step: after this returns it survives a power cut, before that nothing of it is seen.
    ///
    /// # Errors
    /// When `NAME` is taken, or the file system refuses; the staging directory is removed then.
    pub fn publish(self, name: &str) -> Result<PathBuf, StagingError> {
        let target = self.parent.join(name);
        // rename(2) replaces an empty directory silently. Two pulls of one name are excluded by their actor.
        if target.exists() || is_staging(name) {
            return Err(StagingError::Taken { path: target });
        }
        // Contents before the name: a name that survives a power cut must not point to holes.
        for entry in fs::read_dir(self.path()).map_err(|source| sync_failed(self.path(), source))? {
            let path = entry.map_err(|source| sync_failed(self.path(), source))?.path();
            sync(&path).map_err(|source| sync_failed(&path, source))?;
        }
        sync(self.path()).map_err(|source| sync_failed(self.path(), source))?;
        fs::rename(self.path(), &target).map_err(|source| StagingError::Publish { path: target.clone(), source })?;
        // It lives under another name now: there is nothing left to remove.
        drop(self.directory.keep());
        sync(&self.parent).map_err(|source| StagingError::Sync { path: self.parent.clone(), source })?;
        Ok(target)
    }
}

fn sync_failed(path: &Path, source: io::Error) -> StagingError {
    StagingError::Sync { path: path.to_owned(), source }
}

/// Writes a file or directory through to the disk.
///
/// # Errors
/// When it cannot be opened or written.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Removes what interrupted pulls left below `parent`. Returns how many there were. Call it before the first pull only:
/// it cannot tell a pull that runs from one that died.
///
/// # Errors
/// When the directory cannot be read or a leftover cannot be removed.
pub fn sweep(parent: &Path) -> io::Result<usize> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        if is_staging(&entry.file_name().to_string_lossy()) && entry.file_type()?.is_dir() {
            super::debian::clean(&entry.path());
            fs::remove_dir_all(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// True for the name of a staging directory: no artifact may have it.
#[must_use]
pub fn is_staging(name: &str) -> bool {
    name.ends_with(SUFFIX)
}

/// What nobody sees any more, and still takes its place on the disk.
#[derive(Debug)]
#[must_use = "its files are there until it is removed"]
pub struct Doomed(PathBuf);

impl Doomed {
    /// Removes its files: of an image gigabytes, which may take seconds. What a crash leaves of them the sweep removes.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.0)
    }
}

/// Takes the published `name` below `parent` away, in one short step: the name is free afterwards.
///
/// # Errors
/// When the file system refuses.
pub fn doom(parent: &Path, name: &str) -> io::Result<Doomed> {
    // Of its own name: one that was called the same may still be on its way out. A rename replaces an empty directory.
    let directory = tempfile::Builder::new().prefix(&format!("{name}.deleted.")).suffix(SUFFIX).tempdir_in(parent)?;
    fs::rename(parent.join(name), directory.path())?;
    Ok(Doomed(directory.keep()))
}

/// Bytes that a directory's files take on disk (not their length: images are sparse).
///
/// # Errors
/// When it cannot be read.
pub fn disk_bytes(directory: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut total = 0;
    for entry in fs::read_dir(directory)? {
        // st_blocks counts 512-byte units whatever the file system (stat(2)).
        total += entry?.metadata()?.blocks() * 512;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_directory_is_whole_and_a_dropped_one_is_gone() {
        let parent = tempfile::tempdir().unwrap();
        let staging = Staging::create(parent.path(), "thing").unwrap();
        fs::write(staging.path().join("file"), "x").unwrap();
        drop(staging);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);

        let staging = Staging::create(parent.path(), "thing").unwrap();
        fs::write(staging.path().join("file"), "x").unwrap();
        let target = staging.publish("thing").unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "x");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_taken_name_is_not_replaced() {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir(parent.path().join("thing")).unwrap();
        let staging = Staging::create(parent.path(), "thing").unwrap();
        assert!(matches!(staging.publish("thing"), Err(StagingError::Taken { .. })));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_doomed_is_out_of_the_way_at_once_and_swept_after_a_crash() {
        let parent = tempfile::tempdir().unwrap();
        let make = || {
            fs::create_dir(parent.path().join("thing")).unwrap();
            fs::write(parent.path().join("thing/file"), "x").unwrap();
        };
        make();
        let first = doom(parent.path(), "thing").unwrap();
        assert!(!parent.path().join("thing").exists());
        // The next of that name does not have to wait for the first one's files.
        make();
        let second = doom(parent.path(), "thing").unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 2);
        first.remove().unwrap();
        drop(second);
        assert_eq!(sweep(parent.path()).unwrap(), 1);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        assert!(doom(parent.path(), "thing").is_err(), "there is none");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_sweep_takes_leftovers_only() {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir_all(parent.path().join("a.123.partial/deep")).unwrap();
        fs::create_dir(parent.path().join("whole")).unwrap();
        assert_eq!(sweep(parent.path()).unwrap(), 1);
        assert!(parent.path().join("whole").exists());
        assert_eq!(sweep(&parent.path().join("absent")).unwrap(), 0);
    }
}
