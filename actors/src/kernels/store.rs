//! The kernels of this host: one directory each, with `vmlinux`, `modules.cpio`, `modules.ext4` and `manifest.json`.

use crate::artifacts::shelf::{Record, Shelf, ShelfError};
use messages::ids::KernelName;
use messages::image::{KernelDetails, KernelView};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(super) const VMLINUX: &str = "vmlinux";
pub(super) const MODULES_CPIO: &str = "modules.cpio";
pub(super) const MODULES_EXT4: &str = "modules.ext4";

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
    /// What its options were checked by; none where they could not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_by: Option<String>,
}

impl Record for KernelRecord {
    const WHAT: &'static str = "kernel";

    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn is_name(text: &str) -> bool {
        text.parse::<KernelName>().is_ok()
    }
}

/// The kernels below one directory.
pub type KernelStore = Shelf<KernelRecord>;

impl KernelStore {
    /// As it is told to a client.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn view(&self, record: &KernelRecord, used_by: Vec<String>) -> Result<KernelView, ShelfError> {
        Ok(KernelView {
            name: record.name.clone(),
            version: record.version.clone(),
            digest: record.digest.clone(),
            disk_bytes: self.disk_bytes(record.name.as_str())?,
            source: record.source.clone(),
            created_at_ms: record.created_at_ms,
            used_by,
        })
    }

    /// As it is told to a client that asks for it by name.
    ///
    /// # Errors
    /// When its directory cannot be read.
    pub fn details(&self, record: &KernelRecord, used_by: Vec<String>) -> Result<KernelDetails, ShelfError> {
        Ok(KernelDetails {
            kernel: self.view(record, used_by)?,
            command_line: record.command_line.clone(),
            checked_by: record.checked_by.clone(),
        })
    }
}
