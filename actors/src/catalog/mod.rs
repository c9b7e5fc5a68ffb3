//! What can be pulled by name: the entries built in, those of the user's files, and the look-up with suggestions. Reads no
//! network.

mod entry;

pub use entry::{
    Catalog, CatalogError, DebianImage, DebianKernel, ImageEntry, ImageSource, KernelEntry, KernelSource, OciImage,
    nearest, suggestion,
};
