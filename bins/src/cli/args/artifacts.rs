//! Flags of `banger image` and `banger kernel`.

use super::bundles::{ExportImageArgs, ImportImageArgs, ImportKernelArgs};
use crate::cli::{completion, parse};
use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCandidates;
use messages::ids::{ImageName, KernelName, Reference, VmRef};
use messages::vm::NetworkMode;
use std::path::PathBuf;

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
    /// Use an ext4 file of your own as an image, where it is.
    ///
    /// VMs only read it. It must not be written to from then on: a VM's disk lies over it block for block, and a start refuses
    /// a file that has changed.
    Register(RegisterImageArgs),
    /// Copy a registered image's file into banger's own storage.
    Promote {
        /// Its name.
        #[arg(add = ArgValueCandidates::new(completion::images))]
        image: Reference,
    },
    /// Build an image: run a script or the steps of a Containerfile in a VM made from another one.
    ///
    /// Of a Containerfile: FROM, RUN, COPY, ENV, WORKDIR, USER, CMD and ENTRYPOINT. The VM is gone when the build ends, in
    /// whatever way.
    Build(BuildImageArgs),
    /// Make an image of what a VM's file system is now.
    ///
    /// A VM that runs keeps running, and files that are written meanwhile may be torn; one that is stopped is started for it
    /// and stopped again. What is mounted in the guest stays out, and so do the VM's name, keys and machine id.
    Commit {
        /// A name, an id or a unique prefix of an id.
        #[arg(add = ArgValueCandidates::new(completion::vms))]
        vm: VmRef,
        /// The image's name.
        #[arg(long)]
        name: ImageName,
    },
    /// Delete images that no VM uses.
    Delete(DeleteImagesArgs),
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
    #[arg(value_name = "REF", add = ArgValueCandidates::new(completion::image_catalog))]
    pub(in crate::cli) reference: Reference,
    /// The name to keep it under. The catalog's when absent, or made of the reference's: alpine-3.20.
    #[arg(long)]
    pub(in crate::cli) name: Option<ImageName>,
    /// The kernel to boot it with, pulled with it. The catalog's, or the default one, when absent.
    #[arg(long, value_name = "KERNEL", add = ArgValueCandidates::new(completion::kernels))]
    pub(in crate::cli) kernel_ref: Option<KernelName>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RegisterImageArgs {
    /// The image's name.
    #[arg(long)]
    pub(in crate::cli) name: ImageName,
    /// A file with an ext4 file system that nobody has mounted.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) rootfs: PathBuf,
    /// The kernel to boot it with. The default one when absent.
    #[arg(long, value_name = "KERNEL", add = ArgValueCandidates::new(completion::kernels))]
    pub(in crate::cli) kernel_ref: Option<KernelName>,
    /// A kernel of your own to boot it with, as `banger kernel import` takes it: it gets the image's name.
    #[arg(long, value_name = "FILE", conflicts_with = "kernel_ref")]
    pub(in crate::cli) kernel: Option<PathBuf>,
    /// That kernel's modules.
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub(in crate::cli) modules: Option<PathBuf>,
    /// That kernel's initramfs, for the modules in it where `--modules` is absent: guests boot banger's own.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(in crate::cli) initrd: Option<PathBuf>,
    /// That kernel's configuration.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(in crate::cli) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("recipe").required(true).args(["script", "file"])))]
pub(in crate::cli) struct BuildImageArgs {
    /// The new image's name.
    #[arg(long)]
    pub(in crate::cli) name: ImageName,
    /// The image to begin with. A Containerfile's FROM when absent.
    #[arg(long, value_name = "IMAGE", required_unless_present = "file", add = ArgValueCandidates::new(completion::images))]
    pub(in crate::cli) from: Option<Reference>,
    /// A script to run as root: by its `#!` line, else by `/bin/sh -e`.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) script: Option<PathBuf>,
    /// A Containerfile.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) file: Option<PathBuf>,
    /// The directory that COPY takes files from. The Containerfile's when absent.
    #[arg(long, value_name = "DIR", conflicts_with = "script")]
    pub(in crate::cli) context: Option<PathBuf>,
    /// Virtual CPUs of the VM that it is built in.
    #[arg(long, value_name = "N", value_parser = parse::vcpus)]
    pub(in crate::cli) vcpu: Option<u8>,
    /// Its memory: `512M`, `2G`.
    #[arg(long, value_name = "SIZE", value_parser = parse::memory_mib)]
    pub(in crate::cli) memory: Option<u32>,
    /// Size of its disk.
    #[arg(long, value_name = "SIZE", value_parser = parse::disk_bytes)]
    pub(in crate::cli) disk_size: Option<u64>,
    /// Its network: `nat` or `none`.
    #[arg(long, value_name = "MODE", value_parser = parse::network, default_value = "nat")]
    pub(in crate::cli) net: NetworkMode,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DeleteImagesArgs {
    /// Their names.
    #[arg(required = true, value_name = "IMAGE", add = ArgValueCandidates::new(completion::images))]
    pub(in crate::cli) images: Vec<Reference>,
    /// Also those that VMs use: such a VM runs on, and cannot be started again once it has stopped.
    #[arg(short, long)]
    pub(in crate::cli) force: bool,
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
    /// Make a kernel of one that you built, and of its modules.
    Import(ImportKernelArgs),
}
