//! The blobs that this host has fetched, by digest: a file each, and a `.partial` one for each download that was cut short.
//!
//! A blob is only ever read through its digest again: what a power cut or a bad disk made of it is noticed, thrown away and
//! fetched anew.

use super::OciError;
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

const PARTIAL: &str = ".partial";

/// Held while a blob is fetched.
#[expect(
    clippy::disallowed_types,
    reason = "held by tasks, across a download, so no actor's to hand out; a dropped pull lets go by itself"
)]
type Turn = tokio::sync::Mutex<()>;

/// One directory of blobs. Clones are the same one.
#[derive(Debug, Clone)]
pub struct BlobCache {
    directory: PathBuf,
    /// Most bytes that are kept; no bound where absent.
    max_bytes: Option<u64>,
    /// Whoever fetches a blob holds its turn: two pulls that share a layer fetch it once.
    locks: Arc<Mutex<HashMap<String, Weak<Turn>>>>,
}

/// A blob's file.
#[derive(Debug)]
pub(super) enum Slot {
    /// All of it, as far as the file's name tells.
    Whole(File),
    /// The beginning of it, open for more; maybe nothing.
    Partial(File),
}

impl BlobCache {
    /// That below `directory`, which is made when it is first needed.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, max_bytes: Option<u64>) -> Self {
        Self { directory: directory.into(), max_bytes, locks: Arc::default() }
    }

    pub(super) fn lock(&self, digest: &str) -> Arc<Turn> {
        // A map of names: a panic elsewhere cannot have left it half-changed.
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(Turn::new(()));
        locks.insert(digest.to_owned(), Arc::downgrade(&lock));
        lock
    }

    /// The length of a blob that is here whole, as far as its file's name tells.
    pub(crate) fn whole_length(&self, digest: &str) -> Option<u64> {
        fs::metadata(self.path(digest)).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len())
    }

    /// True if some of a blob is here, or all.
    pub(crate) fn holds_some(&self, digest: &str) -> bool {
        [self.path(digest), self.partial(digest)]
            .iter()
            .any(|path| fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0))
    }

    /// Opens a blob's file. Its digest has been found well-formed: it is a file's name.
    pub(super) fn open(&self, digest: &str) -> Result<Slot, OciError> {
        let path = self.path(digest);
        match File::open(&path) {
            Ok(file) => {
                // The age of a blob is when it was last of use.
                drop(file.set_modified(SystemTime::now()));
                return Ok(Slot::Whole(file));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(OciError::cache(&path, source)),
        }
        let failed = |source| OciError::cache(&self.directory, source);
        fs::create_dir_all(&self.directory).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(self.partial(digest)).map(Slot::Partial).map_err(failed)
    }

    /// Makes the partial file the blob.
    pub(super) fn keep(&self, digest: &str) -> Result<(), OciError> {
        let path = self.path(digest);
        fs::rename(self.partial(digest), &path).map_err(|source| OciError::cache(&path, source))
    }

    /// Throws away what is there of a blob.
    pub(super) fn forget(&self, digest: &str) {
        for path in [self.path(digest), self.partial(digest)] {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove a blob");
            }
        }
    }

    /// Bytes of a blob that is here whole.
    #[must_use]
    pub fn size(&self, digest: &str) -> Option<u64> {
        fs::metadata(self.path(digest)).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len())
    }

    /// Removes the blobs that were of no use for longest until the rest fits the bound.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn trim(&self) -> Result<u64, OciError> {
        self.max_bytes.map_or(Ok(0), |most| self.shrink(most))
    }

    /// Removes every blob that is not being fetched. Returns the bytes that were freed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn prune(&self) -> Result<u64, OciError> {
        self.shrink(0)
    }

    fn shrink(&self, most: u64) -> Result<u64, OciError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(source) => return Err(OciError::cache(&self.directory, source)),
        };
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in entries.flatten() {
            if let Ok(meta) = entry.metadata() {
                files.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len(), entry.path()));
            }
        }
        files.sort();
        let mut kept: u64 = files.iter().map(|(_, length, _)| length).sum();
        let mut freed = 0;
        for (_, length, path) in files {
            if kept <= most {
                break;
            }
            if !self.is_busy(&path) && fs::remove_file(&path).is_ok() {
                kept -= length;
                freed += length;
            }
        }
        Ok(freed)
    }

    fn is_busy(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let digest = format!("sha256:{}", name.trim_end_matches(PARTIAL));
        let locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.get(&digest).is_some_and(|lock| lock.strong_count() > 0)
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.directory.join(digest.trim_start_matches("sha256:"))
    }

    fn partial(&self, digest: &str) -> PathBuf {
        self.directory.join(format!("{}{PARTIAL}", digest.trim_start_matches("sha256:")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_oldest_go_first_and_the_busy_stay() {
        let directory = tempfile::tempdir().unwrap();
        let cache = BlobCache::new(directory.path(), Some(250));
        let digest = |index: u8| format!("sha256:{}", hex::encode([index; 32]));
        for index in 0..4_u8 {
            let path = cache.path(&digest(index));
            fs::write(&path, [0; 100]).unwrap();
            let age = Duration::from_secs(1000 - u64::from(index));
            File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
        }
        let busy = cache.lock(&digest(0));
        assert_eq!(cache.trim().unwrap(), 200);
        let left = |index: u8| cache.path(&digest(index)).exists();
        assert!(left(0) && !left(1) && !left(2) && left(3));
        assert!(Arc::ptr_eq(&busy, &cache.lock(&digest(0))));
        drop(busy);
        assert_eq!(cache.prune().unwrap(), 200);
        assert_eq!(BlobCache::new(directory.path().join("none"), None).prune().unwrap(), 0);
    }
}
