//! Flags of `banger image` and `banger kernel`.

use super::bundles::{ExportImageArgs, ImportImageArgs, ImportKernelArgs};
use clap::{Args, Subcommand};
use messages::ids::{ImageName, Reference};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ImageCommand {
    /// List what can be pulled.
    Catalog,
    /// Fetch or build an image, and the kernel that it names.
    Pull(PullImageArgs),
    /// List the images on this host.
    List,
    /// Show everything about an image.
    Show {
        /// Its name.
        image: Reference,
    },
    /// Delete images that no VM uses.
    Delete {
        /// Their names.
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<Reference>,
    },
    /// Remove the layers of container images that are kept for the next pull; images stay.
    Prune,
    /// Pack an image into one file, for another host or a catalog.
    Export(ExportImageArgs),
    /// Make an image of a file that `export` wrote.
    Import(ImportImageArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PullImageArgs {
    /// A name from `banger image catalog`, or a container image: docker.io/library/alpine:3.20.
    #[arg(value_name = "REF")]
    pub(in crate::cli) reference: Reference,
    /// The name to keep it under. The catalog's when absent, or made of the reference's: alpine-3.20.
    #[arg(long)]
    pub(in crate::cli) name: Option<ImageName>,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum KernelCommand {
    /// List what can be pulled.
    Catalog,
    /// Fetch a kernel.
    Pull {
        /// A name from `banger kernel catalog`.
        #[arg(value_name = "REF")]
        reference: Reference,
    },
    /// List the kernels on this host.
    List,
    /// Show everything about a kernel.
    Show {
        /// Its name.
        kernel: Reference,
    },
    /// Delete kernels that no image and no VM uses.
    Delete {
        /// Their names.
        #[arg(required = true, value_name = "KERNEL")]
        kernels: Vec<Reference>,
    },
    /// Make a kernel of one that you built, and of its modules.
    Import(ImportKernelArgs),
}
