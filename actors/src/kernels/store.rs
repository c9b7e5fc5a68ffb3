//! The kernels of this host: one directory each, with `vmlinux`, `modules.cpio`, `modules.ext4` and `manifest.json`.
//!
//! Knows nothing of who uses them: that is the actor's. Everything here may block.

use super::KernelError;
use crate::artifacts::staging;
use crate::catalog::nearest;
use messages::ids::KernelName;
use messages::image::KernelView;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use uuid::Uuid;

pub(super) const VMLINUX: &str = "vmlinux";
pub(super) const MODULES_CPIO: &str = "modules.cpio";
pub(super) const MODULES_EXT4: &str = "modules.ext4";
pub(super) const MANIFEST: &str = "manifest.json";

/// What is kept of a kernel, as `manifest.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    pub name: KernelName,
    /// `uname -r`.
    pub version: String,
    /// `sha256:…` of `vmlinux`.
    pub digest: String,
    /// What it was pulled from.
    pub source: String,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// Of the file system in `modules.ext4`.
    pub modules_uuid: Uuid,
    pub command_line: String,
}

/// The kernels below one directory.
#[derive(Debug, Clone)]
pub struct KernelStore {
    directory: PathBuf,
}

impl KernelStore {
    /// Those below `directory`, which is made by the first pull.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Where they are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where one of them is, or would be.
    #[must_use]
    pub fn path(&self, name: &KernelName) -> PathBuf {
        self.directory.join(name.as_str())
    }

    /// Removes what interrupted pulls left. Only before the first pull.
    ///
    /// # Errors
    /// When the directory cannot be read or a leftover not be removed.
    pub fn sweep(&self) -> Result<usize, KernelError> {
        staging::sweep(&self.directory).map_err(|source| KernelError::io("clean", &self.directory, source))
    }

    /// One kernel's record.
    ///
    /// # Errors
    /// When there is none of that name, or its record is damaged.
    pub fn show(&self, name: &str) -> Result<KernelRecord, KernelError> {
        let record = name.parse().ok().map(|name| self.read(&name)).transpose()?.flatten();
        record.ok_or_else(|| {
            let names: Vec<String> = self.names().unwrap_or_default().iter().map(KernelName::to_string).collect();
            KernelError::NotFound { name: name.to_owned(), nearest: nearest(name, names.iter().map(String::as_str)) }
        })
    }

    /// All of them, by name. A damaged one is left out with a warning: it must not hide the others.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<KernelRecord>, KernelError> {
        let mut records = Vec::new();
        for name in self.names()? {
            match self.read(&name) {
                Ok(record) => records.extend(record),
                Err(error) => tracing::warn!(%name, %error, "a kernel was left out of the list"),
            }
        }
        Ok(records)
    }

    /// Removes one. That nobody uses it is for the caller to know.
    ///
    /// # Errors
    /// When there is none of that name or it cannot be removed.
    pub fn delete(&self, name: &str) -> Result<(), KernelError> {
        let known: Option<KernelName> = name.parse().ok().filter(|name| self.path(name).is_dir());
        let Some(known) = known else {
            return self.show(name).map(drop);
        };
        let path = self.path(&known);
        let doomed = self.directory.join(format!("{known}.deleted.partial"));
        // Gone in one step: a half-removed kernel would look whole. The sweep finishes what a crash leaves.
        let outcome = match fs::remove_dir_all(&doomed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::rename(&path, &doomed).and_then(|()| fs::remove_dir_all(&doomed)),
        };
        outcome.map_err(|source| KernelError::io("delete", &path, source))
    }

    /// As it is told to a client.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn view(&self, record: &KernelRecord, used_by: Vec<String>) -> Result<KernelView, KernelError> {
        let path = self.path(&record.name);
        let disk_bytes = staging::disk_bytes(&path).map_err(|source| KernelError::io("measure", &path, source))?;
        Ok(KernelView {
            name: record.name.clone(),
            version: record.version.clone(),
            digest: record.digest.clone(),
            disk_bytes,
            source: record.source.clone(),
            created_at_ms: record.created_at_ms,
            used_by,
        })
    }

    fn names(&self) -> Result<Vec<KernelName>, KernelError> {
        let failed = |source| KernelError::io("read", &self.directory, source);
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            // Staging directories parse as names too, but have no manifest until they lose that name.
            names.extend(name.to_str().filter(|name| !name.ends_with(".partial")).and_then(|name| name.parse().ok()));
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, name: &KernelName) -> Result<Option<KernelRecord>, KernelError> {
        let path = self.path(name).join(MANIFEST);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(KernelError::io("read", &path, source)),
        };
        let record =
            serde_json::from_slice(&bytes).map_err(|source| KernelError::Damaged { name: name.to_string(), source })?;
        Ok(Some(record))
    }
}
