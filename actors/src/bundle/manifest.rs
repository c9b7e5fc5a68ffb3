//! What a bundle says of itself, in the first of its members. Only what another host can use: no times, no paths of this host.

use super::BundleError;
use messages::ids::{ImageName, KernelCommandLine, KernelName};
use messages::image::{ImageConfig, ImageExport};
use serde::{Deserialize, Serialize};

/// The only format so far. Fields that are not known are passed over; what must not be passed over gets a new number.
pub const FORMAT: u32 = 1;
/// The longest manifest, in bytes.
pub const MANIFEST_MAX: u64 = 1 << 20;
/// The largest file system that is taken, in bytes.
pub const ROOTFS_MAX: u64 = 256 << 30;
/// The longest `source`, in bytes: it is shown in tables.
const SOURCE_MAX: usize = 512;

/// What a bundle is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Image,
    Kernel,
}

impl Kind {
    /// As a sentence has it.
    #[must_use]
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Image => "an image",
            Self::Kernel => "a kernel",
        }
    }
}

/// What every manifest has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Header {
    format: u32,
    kind: Kind,
}

/// The manifest of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageManifest {
    pub format: u32,
    pub kind: Kind,
    /// What it is called where it comes from, and on this host unless it is given another name.
    pub name: ImageName,
    /// The kernel that it is booted with.
    pub kernel: KernelName,
    /// Bytes of `rootfs.ext4`.
    pub size_bytes: u64,
    /// What it was made of there. Nobody vouches for it.
    pub source: String,
    #[serde(default)]
    pub config: ImageConfig,
}

/// The manifest of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelManifest {
    pub format: u32,
    pub kind: Kind,
    /// What it is booted with, where the catalog does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_line: Option<KernelCommandLine>,
}

impl From<&ImageExport> for ImageManifest {
    fn from(export: &ImageExport) -> Self {
        Self {
            format: FORMAT,
            kind: Kind::Image,
            name: export.name.clone(),
            kernel: export.kernel.clone(),
            size_bytes: export.size_bytes,
            source: export.source.clone(),
            config: export.config.clone(),
        }
    }
}

impl ImageManifest {
    /// Reads the manifest of the image that is `of` somewhere.
    ///
    /// # Errors
    /// When it is none, or of another format or kind, or says what cannot be.
    pub fn parse(bytes: &[u8], of: &str) -> Result<Self, BundleError> {
        let manifest: Self = parse(bytes, of, Kind::Image)?;
        if manifest.size_bytes > ROOTFS_MAX {
            return Err(not_one(of, format!("its file system is larger than {} GiB", ROOTFS_MAX >> 30)));
        }
        if manifest.source.len() > SOURCE_MAX || manifest.source.chars().any(char::is_control) {
            return Err(not_one(of, "its `source` is no line of text".to_owned()));
        }
        Ok(manifest)
    }
}

impl KernelManifest {
    /// Reads the manifest of the kernel that is `of` somewhere.
    ///
    /// # Errors
    /// When it is none, or of another format or kind.
    pub fn parse(bytes: &[u8], of: &str) -> Result<Self, BundleError> {
        parse(bytes, of, Kind::Kernel)
    }
}

fn parse<T: for<'a> Deserialize<'a>>(bytes: &[u8], of: &str, wanted: Kind) -> Result<T, BundleError> {
    let malformed = |error: serde_json::Error| not_one(of, format!("its manifest cannot be read, {error}"));
    // First what every format has: the rest may be of a later one.
    let header: Header = serde_json::from_slice(bytes).map_err(malformed)?;
    if header.format != FORMAT {
        return Err(BundleError::Format { of: of.to_owned(), found: header.format });
    }
    if header.kind != wanted {
        return Err(BundleError::OtherKind { of: of.to_owned(), found: header.kind, wanted });
    }
    serde_json::from_slice(bytes).map_err(malformed)
}

fn not_one(of: &str, why: String) -> BundleError {
    BundleError::NotOne { of: of.to_owned(), why }
}
