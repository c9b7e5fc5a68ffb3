//! Every ext4 file that banger makes: images and module drives from a tree in memory, VM disks from templates; and files inside
//! of those that nobody has mounted. No root, no mount; `e2fsck -fn` judges the results in the tests.

pub(crate) mod archive;
pub mod build;
pub mod disk;
pub mod error;
pub mod files;
pub mod image_file;
pub mod layer;
mod path;
pub mod spool;
pub mod superblock;
pub mod tarball;
pub mod tree;
pub mod writer;

pub(crate) use build::is_zero;
pub use build::{Built, Label, build, build_as};
pub use error::Ext4Error;
pub use image_file::{ImageFile, Limits};
pub use spool::{Hashes, Spool};
pub use superblock::{Superblock, SuperblockError};
pub use tree::{Meta, Tree};

#[cfg(test)]
mod differential;
#[cfg(test)]
mod model;
#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
