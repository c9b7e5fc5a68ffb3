//! A directory of named artifacts, each a directory of its own with a `manifest.json`. Images and kernels are kept so.
//!
//! Knows nothing of who uses them: that is the actors'. Everything here may block.

use super::staging::Doomed;
use super::{Reporter, Staging, staging};
use crate::catalog::{nearest, suggestion};
use messages::{ErrorKind, WireError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::io::{self, Write as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

const MANIFEST: &str = "manifest.json";

/// What a manifest is read into.
pub trait Record: Serialize + DeserializeOwned {
    /// The word users see.
    const WHAT: &'static str;
    /// Its name, which is its directory's.
    fn name(&self) -> &str;
    /// True if the text may be a name, and so a directory.
    fn is_name(text: &str) -> bool;
}

/// Why an artifact could not be found, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    #[error("no {what} called `{name}` is on this host")]
    NotFound { what: &'static str, name: String, nearest: Vec<String> },
    #[error("{what} `{name}` is used by {}", users.join(", "))]
    InUse { what: &'static str, name: String, users: Vec<String> },
    #[error("the record of {what} `{name}` is damaged")]
    Damaged {
        what: &'static str,
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("failed to {action} `{}`", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl ShelfError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

impl From<&ShelfError> for WireError {
    fn from(error: &ShelfError) -> Self {
        match error {
            ShelfError::NotFound { what, nearest, .. } => Self::from_error(ErrorKind::NotFound, error)
                .hint(suggestion(nearest).unwrap_or_else(|| format!("`banger {what} list` lists those on this host"))),
            ShelfError::InUse { .. } => {
                Self::from_error(ErrorKind::Conflict, error).hint("delete them first, or add `--force`")
            }
            ShelfError::Damaged { what, name, .. } => Self::from_error(ErrorKind::Host, error)
                .hint(format!("remove it with `banger {what} delete {name}` and pull it again")),
            ShelfError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Self::from_error(ErrorKind::Resources, error)
            }
            ShelfError::Io { .. } => Self::from_error(ErrorKind::Host, error),
        }
    }
}

/// The artifacts below one directory.
#[derive(Debug)]
pub struct Shelf<R> {
    directory: PathBuf,
    records: PhantomData<fn() -> R>,
}

impl<R> Clone for Shelf<R> {
    fn clone(&self) -> Self {
        Self { directory: self.directory.clone(), records: PhantomData }
    }
}

impl<R: Record> Shelf<R> {
    /// Those below `directory`, which is made by the first pull.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), records: PhantomData }
    }

    /// Where they are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where one of them is, or would be.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Removes what interrupted pulls left. Only before the first pull.
    ///
    /// # Errors
    /// When the directory cannot be read or a leftover not be removed.
    pub fn sweep(&self) -> Result<usize, ShelfError> {
        staging::sweep(&self.directory).map_err(|source| ShelfError::io("clean", &self.directory, source))
    }

    /// One record; `None` where there is none of that name.
    ///
    /// # Errors
    /// When its record is damaged.
    pub fn find(&self, name: &str) -> Result<Option<R>, ShelfError> {
        if !R::is_name(name) || staging::is_staging(name) {
            return Ok(None);
        }
        let path = self.path(name).join(MANIFEST);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ShelfError::io("read", &path, source)),
        };
        let damaged = |source| ShelfError::Damaged { what: R::WHAT, name: name.to_owned(), source };
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    /// The record of one that need not be pulled; says so.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn present(&self, name: &str, reporter: &Reporter) -> Result<Option<R>, ShelfError> {
        let record = self.find(name)?;
        if let Some(record) = &record {
            reporter.finished(format!("{} is here already", record.name()));
        }
        Ok(record)
    }

    /// One record.
    ///
    /// # Errors
    /// When there is none of that name, or it is damaged.
    pub fn show(&self, name: &str) -> Result<R, ShelfError> {
        self.find(name)?.ok_or_else(|| self.not_found(name))
    }

    /// All records, by name. A damaged one is left out with a warning: it must not hide the others.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<R>, ShelfError> {
        let mut records = Vec::new();
        for name in self.names()? {
            match self.find(&name) {
                Ok(record) => records.extend(record),
                Err(error) => tracing::warn!(name, %error, "an artifact was left out of the list"),
            }
        }
        Ok(records)
    }

    /// Takes one away, damaged or not. That nobody uses it is for the caller to know, and so is when its files are removed.
    ///
    /// # Errors
    /// When there is none of that name or it cannot be taken away.
    pub fn delete(&self, name: &str) -> Result<Doomed, ShelfError> {
        let path = self.path(name);
        if !R::is_name(name) || staging::is_staging(name) || !path.is_dir() {
            return Err(self.not_found(name));
        }
        staging::doom(&self.directory, name).map_err(|source| ShelfError::io("delete", &path, source))
    }

    /// Writes the record into a staging directory and publishes that.
    ///
    /// # Errors
    /// When the name is taken or the file system refuses.
    pub fn publish(&self, staging: Staging, record: &R) -> Result<PathBuf, staging::StagingError> {
        let path = staging.path().join(MANIFEST);
        let json = serde_json::to_vec_pretty(record).expect("records are made of strings and numbers");
        fs::write(&path, json).map_err(|source| staging::StagingError::Sync { path, source })?;
        staging.publish(record.name())
    }

    /// Replaces the record of one that is there: whoever reads it has the old one or the new one, also after a power cut.
    ///
    /// # Errors
    /// When it is not there any more or the file system refuses.
    pub fn rewrite(&self, record: &R) -> Result<(), ShelfError> {
        let directory = self.path(record.name());
        let path = directory.join(MANIFEST);
        let failed = |source| ShelfError::io("write", &path, source);
        let json = serde_json::to_vec_pretty(record).expect("records are made of strings and numbers");
        let mut file = tempfile::NamedTempFile::new_in(&directory).map_err(failed)?;
        file.write_all(&json).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        staging::sync(&directory).map_err(failed)
    }

    /// Bytes that one takes on disk.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn disk_bytes(&self, name: &str) -> Result<u64, ShelfError> {
        let path = self.path(name);
        staging::disk_bytes(&path).map_err(|source| ShelfError::io("measure", &path, source))
    }

    /// Removes the files of one that was taken away.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn discard(&self, doomed: Doomed) -> Result<(), ShelfError> {
        doomed.remove().map_err(|source| ShelfError::io("clean", &self.directory, source))
    }

    fn not_found(&self, name: &str) -> ShelfError {
        let names = self.names().unwrap_or_default();
        let nearest = nearest(name, names.iter().map(String::as_str));
        ShelfError::NotFound { what: R::WHAT, name: name.to_owned(), nearest }
    }

    fn names(&self) -> Result<Vec<String>, ShelfError> {
        let failed = |source| ShelfError::io("read", &self.directory, source);
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name().into_string().unwrap_or_default();
            if R::is_name(&name) && !staging::is_staging(&name) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::KernelRecord;

    fn record(name: &str) -> KernelRecord {
        KernelRecord {
            name: name.parse().unwrap(),
            version: "6.12.1".to_owned(),
            digest: "sha256:00".to_owned(),
            source: "test".to_owned(),
            created_at_ms: 1,
            modules_uuid: uuid::Uuid::nil(),
            command_line: "quiet".to_owned(),
            checked_by: None,
        }
    }

    #[test]
    fn what_is_published_is_found_listed_and_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let shelf: Shelf<KernelRecord> = Shelf::new(directory.path().join("kernels"));
        assert!(shelf.list().unwrap().is_empty());
        let staging = Staging::create(shelf.directory(), "one").unwrap();
        assert!(shelf.list().unwrap().is_empty(), "a staging directory is not there yet");
        shelf.publish(staging, &record("one")).unwrap();
        assert_eq!(shelf.show("one").unwrap(), record("one"));
        assert_eq!(shelf.list().unwrap(), [record("one")]);
        let changed = KernelRecord { source: "elsewhere".to_owned(), ..record("one") };
        shelf.rewrite(&changed).unwrap();
        assert_eq!(shelf.list().unwrap(), [changed]);
        assert!(shelf.rewrite(&record("two")).is_err(), "there is none to replace");
        shelf.discard(shelf.delete("one").unwrap()).unwrap();
        assert!(matches!(shelf.delete("one"), Err(ShelfError::NotFound { .. })));
        assert_eq!(fs::read_dir(shelf.directory()).unwrap().count(), 0);
    }

    #[test]
    fn paths_are_no_names_and_a_damaged_record_can_be_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let shelf: Shelf<KernelRecord> = Shelf::new(directory.path());
        for name in ["..", "../kernels", "a/b", "", "x.partial"] {
            assert!(matches!(shelf.show(name), Err(ShelfError::NotFound { .. })), "{name}");
            assert!(matches!(shelf.delete(name), Err(ShelfError::NotFound { .. })), "{name}");
        }
        fs::create_dir(directory.path().join("broken")).unwrap();
        fs::write(directory.path().join("broken/manifest.json"), "{").unwrap();
        let staging = Staging::create(shelf.directory(), "whole").unwrap();
        shelf.publish(staging, &record("whole")).unwrap();
        assert!(matches!(shelf.show("broken"), Err(ShelfError::Damaged { .. })));
        assert_eq!(shelf.list().unwrap().len(), 1);
        shelf.discard(shelf.delete("broken").unwrap()).unwrap();
        let Err(ShelfError::NotFound { nearest, .. }) = shelf.show("whale") else { panic!() };
        assert_eq!(nearest, ["whole"]);
    }
}
