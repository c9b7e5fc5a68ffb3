//! The images of this host: one directory each, with `rootfs.ext4` and `manifest.json`.

use super::ImageError;
use crate::artifacts::shelf::{Record, Shelf, ShelfError};
use messages::ids::{ImageName, KernelName};
use messages::image::{ImageConfig, ImageView};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use uuid::Uuid;

pub(super) const ROOTFS: &str = "rootfs.ext4";

/// What is kept of an image, as `manifest.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    pub name: ImageName,
    /// `sha256:…` of `rootfs.ext4` or, for a container image, of its manifest: the same one always gives the same file system.
    pub digest: String,
    /// Length of `rootfs.ext4`.
    pub size_bytes: u64,
    /// Of the file system in `rootfs.ext4`.
    pub uuid: Uuid,
    /// The kernel that it is booted with.
    pub kernel: KernelName,
    /// What it was pulled from.
    pub source: String,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    pub config: ImageConfig,
    /// What the reference to a container image pointed to: its manifest, or the index of one for each platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulled_digest: Option<String>,
    /// The layers of a container image, the lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<String>,
    /// Digest of the image that it was made from by a commit or a build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The file that it is, where that is not ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<External>,
}

/// A user's file, as it was when it was registered. A VM's disk lies over it block for block: it must not change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    pub path: PathBuf,
    /// Its length, in bytes.
    pub length: u64,
    /// When it was last written to: seconds since the Unix epoch, and nanoseconds.
    pub modified: (i64, i64),
}

impl External {
    /// The file as it is now.
    ///
    /// # Errors
    /// When it is not there or no file.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        Ok(Self { path: path.to_owned(), length: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) })
    }
}

impl Record for ImageRecord {
    const WHAT: &'static str = "image";

    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn is_name(text: &str) -> bool {
        text.parse::<ImageName>().is_ok()
    }
}

/// The images below one directory.
pub type ImageStore = Shelf<ImageRecord>;

impl ImageStore {
    /// The image's file: attach it read-only.
    ///
    /// # Errors
    /// When it is a user's, and is not what was registered any more.
    pub fn rootfs(&self, record: &ImageRecord) -> Result<PathBuf, ImageError> {
        let Some(external) = &record.external else { return Ok(self.path(record.name.as_str()).join(ROOTFS)) };
        let changed =
            |problem: String| ImageError::Changed { name: record.name.clone(), path: external.path.clone(), problem };
        let now = External::of(&external.path).map_err(|error| changed(error.to_string()))?;
        if now != *external {
            return Err(changed("it was written to".to_owned()));
        }
        Ok(now.path)
    }

    /// As it is told to a client.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn view(&self, record: &ImageRecord, used_by: Vec<String>) -> Result<ImageView, ShelfError> {
        Ok(ImageView {
            name: record.name.clone(),
            digest: record.digest.clone(),
            size_bytes: record.size_bytes,
            disk_bytes: self.disk_bytes(record.name.as_str())?,
            kernel: record.kernel.clone(),
            source: record.source.clone(),
            created_at_ms: record.created_at_ms,
            used_by,
            config: record.config.clone(),
        })
    }
}
