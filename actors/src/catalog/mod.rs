//! What can be pulled by name: the entries built in, those of the user's own catalogs, and the look-up with suggestions.
//! Only `remote` knows the network.

mod entry;
mod remote;
mod source;

pub use entry::{
    Catalog, CatalogError, DebianImage, DebianKernel, ImageEntry, ImageSource, KernelEntry, KernelSource, OciImage,
    nearest, suggestion,
};
pub use remote::RemoteCatalogs;
pub use source::CatalogSource;
