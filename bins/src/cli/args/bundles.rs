//! Flags of `banger image export`, `banger image import` and `banger kernel import`.

use clap::Args;
use messages::ids::{ImageName, KernelCommandLine, KernelName, Reference};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(in crate::cli) struct ExportImageArgs {
    /// Its name.
    pub(in crate::cli) image: Reference,
    /// The bundle to write.
    pub(in crate::cli) file: PathBuf,
    /// Replace a file that is there.
    #[arg(long)]
    pub(in crate::cli) force: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ImportImageArgs {
    /// A bundle that `banger image export` wrote.
    pub(in crate::cli) file: PathBuf,
    /// The name to keep it under. The bundle's own when absent.
    #[arg(long)]
    pub(in crate::cli) name: Option<ImageName>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ImportKernelArgs {
    /// The name to keep it under.
    #[arg(long)]
    pub(in crate::cli) name: KernelName,
    /// The kernel: `vmlinux` of its build, or a bzImage.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) vmlinux: PathBuf,
    /// Its modules: `lib/modules/VERSION`, the directory that holds it, or an initramfs. None when absent: all is built in.
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) modules: Option<PathBuf>,
    /// The configuration that it was built with, to check what guests need. The one in the kernel when absent.
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) config: Option<PathBuf>,
    /// What guests are booted with instead of the default command line, which `banger kernel show` prints.
    #[arg(long, value_name = "LINE")]
    pub(in crate::cli) cmdline: Option<KernelCommandLine>,
}
