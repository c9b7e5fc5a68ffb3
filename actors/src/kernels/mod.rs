//! Kernels: fetched as Debian packages or bundles, or made of a user's files; kept as `vmlinux` + module initramfs + `modules.ext4`.
//!
//! [`KernelStore`] is the library; everything in it may block.

pub mod actor;
mod assemble;
pub mod boot;
pub mod bundle;
pub mod depmod;
pub mod elf;
pub mod embedded;
pub mod error;
mod fixtures;
pub mod import;
pub mod index;
pub mod initramfs;
mod initrd;
pub mod messages;
pub mod modules;
pub mod pull;
pub mod requirements;
pub mod store;
pub mod vmlinux;

pub use actor::{Kernels, KernelsConfig};
pub use assemble::COMMAND_LINE;
pub use boot::BootFiles;
pub use error::KernelError;
pub use requirements::GuestLink;
pub use store::{KernelRecord, KernelStore};
