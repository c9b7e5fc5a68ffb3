//! Images: a read-only ext4 file each, shared by every VM that uses it.

pub mod error;
pub mod identity;
pub mod pull;
pub mod store;

pub use error::ImageError;
pub use store::{ImageRecord, ImageStore};
