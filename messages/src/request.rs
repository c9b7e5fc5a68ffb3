//! The one message that a client sends to `bangerd`.

use crate::guest::ExecSpec;
use crate::ids::{HostPath, ImageName, KernelName, Reference, RequestId, VmName, VmRef};
use crate::image::{ImageConfig, KernelImport};
use crate::vm::{Readiness, VmSpec};
use serde::{Deserialize, Serialize};

/// A request. Repeating one with the same id never does its work twice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "actor", derive(actix::Message), rtype(result = "()"))]
pub struct Request {
    pub id: RequestId,
    pub body: RequestBody,
}

/// Whether to give the guest a chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Force {
    No,
    Yes,
}

/// Everything that can be asked. Append only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RequestBody {
    DaemonStatus,
    DaemonStop,
    /// Makes a VM and, unless told otherwise, starts it. Reply: `Vm`.
    CreateVm {
        spec: VmSpec,
        start: bool,
        wait: Option<Readiness>,
    },
    /// Makes and starts a VM and runs a command in it. Reply: `Attached`, with the data-plane socket.
    RunVm {
        spec: VmSpec,
        wait: Option<Readiness>,
        exec: ExecSpec,
        timeout_ms: Option<u64>,
    },
    /// Reply: `Outcomes`.
    StartVms {
        vms: Vec<VmRef>,
        wait: Option<Readiness>,
    },
    /// Reply: `Outcomes`.
    StopVms {
        vms: Vec<VmRef>,
        timeout_ms: Option<u64>,
        force: Force,
    },
    /// Reply: `Outcomes`.
    RestartVms {
        vms: Vec<VmRef>,
        timeout_ms: Option<u64>,
        wait: Option<Readiness>,
    },
    /// SIGKILL to the VMM. Reply: `Outcomes`.
    KillVms {
        vms: Vec<VmRef>,
    },
    /// Reply: `Outcomes`. Without force a running VM is refused. `only_ephemeral` is the client's own end of `--rm`.
    DeleteVms {
        vms: Vec<VmRef>,
        force: Force,
        only_ephemeral: bool,
    },
    /// Reply: `Vms`.
    ListVms,
    /// Reply: `Vm`.
    ShowVm {
        vm: VmRef,
    },
    /// Reply: `Log`, with a read-only descriptor of the console log.
    VmLogs {
        vm: VmRef,
        log: LogKind,
    },
    /// Reply: `Attached`, with the data-plane socket.
    ExecVm {
        vm: VmRef,
        exec: ExecSpec,
        wait: Option<Readiness>,
    },
    /// Reply: `Vm`.
    RenameVm {
        vm: VmRef,
        name: VmName,
    },
    /// Reply: `Stats`.
    VmStats {
        vm: VmRef,
    },
    /// Reply: `Ports`.
    VmPorts {
        vm: VmRef,
    },
    /// Reply: `Catalog`.
    ImageCatalog,
    /// Reply: `Image`.
    PullImage {
        reference: Reference,
        name: Option<ImageName>,
    },
    /// Reply: `Images`.
    ListImages,
    /// Reply: `Image`.
    ShowImage {
        image: Reference,
    },
    /// Reply: `Done`.
    DeleteImage {
        image: Reference,
        force: Force,
    },
    /// Reply: `Catalog`.
    KernelCatalog,
    /// Reply: `Kernel`.
    PullKernel {
        reference: Reference,
    },
    /// Reply: `Kernels`.
    ListKernels,
    /// Reply: `KernelDetails`.
    ShowKernel {
        kernel: Reference,
    },
    /// Reply: `Done`.
    DeleteKernel {
        kernel: Reference,
        force: Force,
    },
    /// Reply: `Done`, once the VM has reached the level in its present boot.
    WaitVm {
        vm: VmRef,
        level: Readiness,
        timeout_ms: Option<u64>,
    },
    /// Reply: `Connected`, with a socket to the guest's SSH server.
    ConnectSsh {
        vm: VmRef,
    },
    /// Reply: `Pruned`. Removes layers that were kept for the next pull; no image.
    PruneImages,
    /// [`RequestBody::PullImage`], for the image to be booted with a certain kernel. Reply: `Image`.
    PullImageFor {
        reference: Reference,
        name: Option<ImageName>,
        kernel: KernelName,
    },
    /// Makes an image of a file that stays where it is. Reply: `Image`.
    RegisterImage {
        name: ImageName,
        rootfs: HostPath,
        kernel: Option<KernelName>,
    },
    /// Copies a registered image's file into banger's own storage. Reply: `Image`.
    PromoteImage {
        image: Reference,
    },
    /// Makes an image of what a VM's root is now. Reply: `Image`.
    CommitImage {
        vm: VmRef,
        name: ImageName,
        /// How programs are run in it; as in the VM's own image where absent.
        config: Option<ImageConfig>,
        /// What `image show` names as its origin; the VM where absent.
        source: Option<String>,
    },
    /// Reply: `ImageDetails`.
    InspectImage {
        image: Reference,
    },
    /// Reply: `LogSince`, with a read-only descriptor of the log.
    VmLogsSince {
        vm: VmRef,
        log: LogKind,
        /// Milliseconds since the Unix epoch.
        since_ms: u64,
    },
    /// Reply: `KernelDetails`.
    ImportKernel(KernelImport),
    /// Reply: `ImageExport`, with a read-only descriptor of `rootfs.ext4`.
    ExportImage {
        image: Reference,
    },
    /// Reply: `Image`. Makes an image of a bundle, which the daemon reads.
    ImportImage {
        file: HostPath,
        /// The bundle's own where absent.
        name: Option<ImageName>,
    },
}

/// Which log of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogKind {
    /// The guest's serial console.
    Console,
    /// The VMM's own log.
    Vmm,
}
