//! Single files that a digest stands for, from the web or from this host: resumed by range, verified while they are read.
//!
//! The web's bytes take the way of a registry's blobs ([`crate::oci`]): the same cache, the same patience. What is in a file is
//! for others to know.

pub mod error;
pub mod location;
pub mod read;
pub mod web;

pub use error::DownloadError;
pub use location::{Location, Pinned};
pub use read::{Downloads, read};
