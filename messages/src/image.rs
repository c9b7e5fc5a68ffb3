//! What is told about images, kernels and the catalogs they come from.

use crate::ids::{HostPath, ImageName, KernelCommandLine, KernelName};
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

/// Everything about an image: what it is, where it came from, what it has in common with others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDetails {
    pub image: ImageView,
    /// What the reference to a container image pointed to when it was pulled.
    pub pulled_digest: Option<String>,
    /// Digest of the image that it was made from by a commit or a build.
    pub parent: Option<String>,
    /// The file of a registered image, which is not banger's.
    pub external: Option<String>,
    /// Of a container image, the lowest first.
    pub layers: Vec<LayerView>,
    /// Bytes of the kept layers that another image of this host has too.
    pub shared_bytes: u64,
    /// Bytes of the kept layers that no other has.
    pub own_bytes: u64,
}

/// A layer of a container image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerView {
    pub digest: String,
    /// Its size as it was fetched; `None` where it is not kept any more.
    pub bytes: Option<u64>,
    /// Other images of this host that have it.
    pub shared_with: Vec<ImageName>,
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

impl ImageConfig {
    /// The most that one may have, in bytes: it goes to the guest in one frame with other things, and to those who list images. An
    /// image's author rarely needs one.
    pub const BYTES_MAX: usize = 64 << 10;

    /// Checks that programs can be run as it says.
    ///
    /// # Errors
    /// Why they cannot.
    pub fn check(&self) -> Result<(), String> {
        let texts =
            || [&self.env, &self.entrypoint, &self.cmd].into_iter().flatten().chain(&self.workdir).chain(&self.user);
        // Each takes a pointer in the guest, and a length on its way there.
        let bytes: usize = texts().map(|text| text.len() + size_of::<u64>()).sum();
        if bytes > Self::BYTES_MAX {
            return Err(format!("they have more than {} KiB", Self::BYTES_MAX >> 10));
        }
        if texts().any(|text| text.contains('\0')) {
            return Err("there is a NUL in them".to_owned());
        }
        Ok(())
    }
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

/// A kernel present on this host, and what a list has no room for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelDetails {
    pub kernel: KernelView,
    /// What a guest is booted with, before the VMM adds its own.
    pub command_line: String,
    /// What its options were checked by; none where they could not be.
    pub checked_by: Option<String>,
}

/// A kernel to be made of a user's files, which the daemon reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelImport {
    pub name: KernelName,
    /// An ELF kernel, or a bzImage.
    pub vmlinux: HostPath,
    /// `lib/modules/VERSION`, or the directory that holds it.
    pub modules: Option<HostPath>,
    /// The configuration that the kernel was built with.
    pub config: Option<HostPath>,
    /// The default one where absent.
    pub command_line: Option<KernelCommandLine>,
}

/// An image whose file system a client is given to pack into a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageExport {
    pub name: ImageName,
    pub kernel: KernelName,
    /// Bytes of the file system.
    pub size_bytes: u64,
    pub source: String,
    pub config: ImageConfig,
}

/// What can be pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogEntry {
    pub name: String,
    /// `debian`, `bundle` or `oci`.
    pub kind: String,
    pub description: String,
    pub present: bool,
    /// The file or address that the entry was read from; `built-in` for our own.
    pub origin: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_a_size_that_fits_a_boot_and_a_list() {
        let of = |env: Vec<String>| ImageConfig { env, cmd: vec!["run".to_owned()], ..ImageConfig::default() };
        assert_eq!(of(vec!["A=b".to_owned()]).check(), Ok(()));
        assert!(of(vec!["x".repeat(ImageConfig::BYTES_MAX)]).check().unwrap_err().contains("64 KiB"));
        assert!(of(vec![String::new(); 10_000]).check().is_err(), "many empty ones are as long");
        assert!(of(vec!["A=\0".to_owned()]).check().unwrap_err().contains("NUL"));
    }
}
