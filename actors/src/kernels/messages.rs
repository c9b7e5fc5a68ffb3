//! What the [`super::actor::Kernels`] actor is asked.

use super::BootFiles;
use actix::Message;
use messages::WireError;
use messages::ids::{KernelName, Reference, VmId};
use messages::image::{CatalogEntry, KernelDetails, KernelImport, KernelView};
use messages::reply::Progress;
use messages::request::Force;
use tokio::sync::mpsc;

/// Pulls a kernel. The caller waits as long as it keeps the receiver of `progress`.
#[derive(Debug, Message)]
#[rtype(result = "Result<KernelView, WireError>")]
pub struct PullKernel {
    pub reference: Reference,
    pub progress: mpsc::Sender<Progress>,
}

/// What can be pulled.
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<CatalogEntry>, WireError>")]
pub struct KernelCatalog;

/// What is on this host.
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<KernelView>, WireError>")]
pub struct ListKernels;

/// Makes a kernel of files of this host. The caller waits as long as it keeps the receiver of `progress`.
#[derive(Debug, Message)]
#[rtype(result = "Result<KernelDetails, WireError>")]
pub struct ImportKernel {
    pub wanted: KernelImport,
    pub progress: mpsc::Sender<Progress>,
}

/// One kernel of this host.
#[derive(Debug, Message)]
#[rtype(result = "Result<KernelDetails, WireError>")]
pub struct ShowKernel {
    pub name: String,
}

/// Removes a kernel, also one that is used if forced.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), WireError>")]
pub struct DeleteKernel {
    pub name: String,
    pub force: Force,
}

/// Takes a kernel for a VM, which users know as `label`. Again is fine. Held until [`ReleaseKernel`].
#[derive(Debug, Message)]
#[rtype(result = "Result<BootFiles, WireError>")]
pub struct AcquireKernel {
    pub kernel: KernelName,
    pub vm: VmId,
    pub label: String,
}

/// Tells of a VM that uses a kernel, without preparing its files: for the VMs that a new daemon finds in its store.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct NoteKernelUser {
    pub kernel: KernelName,
    pub vm: VmId,
    pub label: String,
}

/// Lets a kernel go. Not held is fine.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReleaseKernel {
    pub kernel: KernelName,
    pub vm: VmId,
}
