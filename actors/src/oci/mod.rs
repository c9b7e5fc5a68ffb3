//! Container images of registries, as far as their bytes: references, credentials, manifests, blobs that are verified while
//! they stream. What becomes of the layers is [`crate::images`]' and [`crate::ext4`]'s.

pub mod blobs;
pub mod credentials;
pub mod decompress;
mod document;
pub mod error;
pub mod fetch;
pub mod follow;
pub(crate) mod http;
pub mod reference;
pub mod registry;
mod session;
mod token;

pub use blobs::BlobCache;
pub use decompress::Decompressed;
pub use error::OciError;
pub use follow::Follower;
pub use reference::{canonical, image_name, is_reference};
pub use registry::{Access, Blob, Registry, Resolved};
pub use session::RequestError;

#[cfg(test)]
pub(crate) mod hub;
#[cfg(test)]
mod tests;
