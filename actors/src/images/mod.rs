//! Images: a read-only ext4 file each, shared by every VM that uses it.

pub mod actor;
pub mod bundle;
pub mod commit;
pub mod details;
pub mod error;
mod handlers;
pub mod identity;
mod make;
pub mod messages;
pub mod oci;
pub mod pull;
pub mod register;
pub mod store;

pub use actor::{Images, ImagesConfig};
pub use error::ImageError;
pub use oci::{OciPull, Registries};
pub use store::{External, ImageRecord, ImageStore};
