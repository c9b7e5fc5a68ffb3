//! Bundles: an image or a kernel in one file, to be carried to another host or published. A tar archive, packed with zstd.
//!
//! `docs/image-catalog.md` has the format. What comes in is hostile: every size is bounded, no path of an archive becomes one of
//! this host, and nothing counts before all of it was read.

pub mod error;
pub mod manifest;
pub mod pack;
pub mod sparse;
pub mod unpack;

pub use error::BundleError;
pub use manifest::{ImageManifest, KernelManifest, Kind};
pub use pack::pack;
pub use unpack::{ImageBundle, UnpackedImage};

/// The members of an image's bundle, in their order.
pub const MANIFEST: &str = "manifest.json";
pub const ROOTFS: &str = "rootfs.ext4";
pub const CHECKSUMS: &str = "SHA256SUMS";

#[cfg(test)]
mod tests;
