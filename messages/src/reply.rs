//! What `bangerd` answers: progress while it works, then one reply or one error.

use crate::error::WireError;
use crate::frame::{self, FrameError};
use crate::guest::{GuestPorts, GuestStats};
use crate::ids::{OperationId, VmId, VmName};
use crate::image::{CatalogEntry, ImageDetails, ImageExport, ImageView, KernelDetails, KernelView};
use crate::limits::CONTROL_FRAME_MAX;
use crate::vm::{VmSize, VmView};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One frame from `bangerd` to a client. Append only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ServerFrame {
    Progress(Progress),
    /// The last frame. With `descriptors` file descriptors in its ancillary data (0 or 1).
    Reply {
        reply: Box<Reply>,
        descriptors: u8,
    },
    /// The last frame.
    Error(WireError),
}

impl ServerFrame {
    /// [`frame::encode`] within [`CONTROL_FRAME_MAX`]. Not generic, so that the codec of the longest messages is compiled and
    /// optimised once, here.
    ///
    /// # Errors
    /// As [`frame::encode`].
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        frame::encode(self, CONTROL_FRAME_MAX)
    }

    /// [`frame::decode`].
    ///
    /// # Errors
    /// As [`frame::decode`].
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        frame::decode(payload)
    }
}

/// The steps a user can wait for. Append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// What was decided: `detail` is the `spec:` line.
    Spec,
    ImagePull,
    KernelPull,
    Admission,
    Disk,
    Network,
    Vmm,
    Boot,
    Agent,
    System,
    Ssh,
    Command,
    Stop,
    Delete,
}

impl Stage {
    /// The word users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Spec => "spec",
            Self::ImagePull => "image",
            Self::KernelPull => "kernel",
            Self::Admission => "admission",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::Vmm => "vmm",
            Self::Boot => "boot",
            Self::Agent => "agent",
            Self::System => "system",
            Self::Ssh => "ssh",
            Self::Command => "command",
            Self::Stop => "stop",
            Self::Delete => "delete",
        }
    }
}

/// What is being done. A stage may report many times; `finished` ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub stage: Stage,
    pub detail: String,
    /// Units done, and in all, where they are known (bytes for pulls).
    pub done: Option<u64>,
    pub total: Option<u64>,
    /// Microseconds since the stage began.
    pub elapsed_us: u64,
    pub finished: bool,
}

/// Everything that can be answered. Append only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Daemon(DaemonStatus),
    Vm(VmView),
    Vms(Vec<Arc<VmView>>),
    /// One for each VM named, in their order.
    Outcomes(Vec<VmOutcome>),
    /// The descriptor speaks guest frames ([`crate::guest`]) for this operation; its `Open` frame has been sent.
    Attached {
        vm: VmId,
        name: VmName,
        operation: OperationId,
        size: VmSize,
    },
    /// The descriptor is the log, open for reading. `running` says whether more may come.
    Log {
        running: bool,
    },
    Stats(GuestStats),
    Ports(GuestPorts),
    Catalog(Vec<CatalogEntry>),
    Images(Vec<ImageView>),
    Image(ImageView),
    Kernels(Vec<KernelView>),
    Kernel(KernelView),
    /// `exec --detach`: the operation runs, nobody is attached.
    Detached {
        vm: VmId,
        name: VmName,
        operation: OperationId,
    },
    /// The descriptor is a connection into the guest: bytes as they are.
    Connected {
        vm: VmId,
        name: VmName,
    },
    /// What a prune gave back, in bytes.
    Pruned {
        bytes: u64,
    },
    ImageDetails(Box<ImageDetails>),
    /// As `Log`; what was asked for begins at `offset`, in bytes. Up to a second before it may be there too, never less.
    LogSince {
        running: bool,
        offset: u64,
    },
    KernelDetails(KernelDetails),
    /// The descriptor is the image's file system, open for reading.
    ImageExport(ImageExport),
}

/// What became of one VM of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmOutcome {
    /// What the user typed.
    pub asked: String,
    pub result: Result<VmChange, WireError>,
}

/// What was done to one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmChange {
    pub id: VmId,
    pub name: VmName,
    /// False where it already was so.
    pub changed: bool,
    /// How it was done where that is worth saying: `halted`, `ctrl-alt-del`, `killed`.
    pub how: Option<String>,
}

/// What the daemon says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    pub pid: u32,
    pub build: String,
    pub generation: u32,
    pub socket: String,
    pub state_dir: String,
    pub uptime_ms: u64,
    pub instance: crate::ids::InstanceId,
    pub vms_running: u32,
    pub vms_total: u32,
    pub images: u32,
    pub kernels: u32,
    /// `firecracker` or `emulated`, and why.
    pub vmm: String,
    /// The helper's version, or why it cannot be reached.
    pub helper: Result<String, String>,
    pub dns: NamesView,
    /// Resident set size of the daemon, in KiB.
    pub rss_kib: u64,
}

/// Where `<vm>.vm` is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesView {
    /// How many VMs have a name.
    pub names: u32,
    /// The address and port on loopback, for programs of this host; or why there is none.
    pub loopback: Result<String, String>,
    /// The address and port on the bridge, for guests; or why there is none.
    pub bridge: Result<String, String>,
    /// Whether this host's own resolver sends `.vm` to the bridge; or why not.
    pub routed: Result<(), String>,
}
