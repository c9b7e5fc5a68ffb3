//! What can be pulled by name: the entries built in and the look-up with suggestions. Reads no network and no disk.

mod entry;

pub use entry::{
    Catalog, CatalogError, DebianImage, DebianKernel, ImageEntry, ImageSource, KernelEntry, KernelSource, nearest,
    suggestion,
};
