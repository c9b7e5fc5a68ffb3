//! What is told about images, kernels and the catalogs they come from.

use crate::ids::{ImageName, KernelName};
use serde::{Deserialize, Serialize};

/// An image present on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    pub name: ImageName,
    /// `sha256:…` of `rootfs.ext4`.
    pub digest: String,
    /// Bytes of the file system.
    pub size_bytes: u64,
    /// Bytes taken on disk.
    pub disk_bytes: u64,
    pub kernel: KernelName,
    /// What it was pulled from.
    pub source: String,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// Names of the VMs that use it.
    pub used_by: Vec<String>,
    pub config: ImageConfig,
}

/// How programs are run in an image, as its author meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
}

/// A kernel present on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelView {
    pub name: KernelName,
    /// `uname -r` of it.
    pub version: String,
    /// `sha256:…` of `vmlinux`.
    pub digest: String,
    /// Bytes taken on disk.
    pub disk_bytes: u64,
    pub source: String,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// Names of the images and VMs that use it.
    pub used_by: Vec<String>,
}

/// What can be pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogEntry {
    pub name: String,
    /// `debian`, `bundle` or `oci`.
    pub kind: String,
    pub description: String,
    pub present: bool,
    /// The file that the entry was read from; `built-in` for our own.
    pub origin: String,
}
