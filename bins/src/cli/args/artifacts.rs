//! Flags of `banger image` and `banger kernel`.

use crate::cli::completion;
use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCandidates;
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
        #[arg(add = ArgValueCandidates::new(completion::images))]
        image: Reference,
    },
    /// Delete images that no VM uses.
    Delete {
        /// Their names.
        #[arg(required = true, value_name = "IMAGE", add = ArgValueCandidates::new(completion::images))]
        images: Vec<Reference>,
    },
    /// Remove the layers of container images that are kept for the next pull; images stay.
    Prune,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PullImageArgs {
    /// A name from `banger image catalog`, or a container image: docker.io/library/alpine:3.20.
    #[arg(value_name = "REF", add = ArgValueCandidates::new(completion::image_catalog))]
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
        #[arg(value_name = "REF", add = ArgValueCandidates::new(completion::kernel_catalog))]
        reference: Reference,
    },
    /// List the kernels on this host.
    List,
    /// Show everything about a kernel.
    Show {
        /// Its name.
        #[arg(add = ArgValueCandidates::new(completion::kernels))]
        kernel: Reference,
    },
    /// Delete kernels that no image and no VM uses.
    Delete {
        /// Their names.
        #[arg(required = true, value_name = "KERNEL", add = ArgValueCandidates::new(completion::kernels))]
        kernels: Vec<Reference>,
    },
}
