//! Kernels: fetched as Debian packages, kept as `vmlinux` + module initramfs + `modules.ext4`.
//!
//! [`KernelStore`] is the library; everything in it may block.

pub mod actor;
pub mod boot;
pub mod depmod;
pub mod elf;
pub mod error;
pub mod index;
pub mod initramfs;
pub mod messages;
pub mod modules;
pub mod pull;
pub mod store;
pub mod vmlinux;

pub use actor::{Kernels, KernelsConfig};
pub use boot::BootFiles;
pub use error::KernelError;
pub use store::{KernelRecord, KernelStore};
