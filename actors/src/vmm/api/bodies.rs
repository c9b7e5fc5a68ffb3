//! What is sent to the Firecracker API, field by field as its OpenAPI file has it (`tests` hold every body against it), and
//! which method and path each belongs to.
//!
//! Fields that the daemon has no use for are left out: the VMM refuses unknown fields but not absent optional ones.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How a body reaches the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Get,
    Put,
    Patch,
}

/// A body that belongs to one route.
pub trait Call: Serialize {
    const VERB: Verb;
    /// As the OpenAPI file writes it, with `{name}` for what [`Call::key`] gives.
    const ROUTE: &'static str;

    /// The path's own parameter, where the route has one.
    fn key(&self) -> Option<&str> {
        None
    }
}

macro_rules! calls {
    ($($body:ty => $verb:ident $route:literal $(by $key:ident)?;)*) => {
        $(impl Call for $body {
            const VERB: Verb = Verb::$verb;
            const ROUTE: &'static str = $route;
            $(fn key(&self) -> Option<&str> { Some(&self.$key) })?
        })*
    };
}

calls! {
    BootSource => Put "/boot-source";
    Drive => Put "/drives/{drive_id}" by drive_id;
    NetworkInterface => Put "/network-interfaces/{iface_id}" by iface_id;
    Vsock => Put "/vsock";
    MachineConfiguration => Put "/machine-config";
    EntropyDevice => Put "/entropy";
    SerialDevice => Put "/serial";
    Logger => Put "/logger";
    Metrics => Put "/metrics";
    InstanceActionInfo => Put "/actions";
    Vm => Patch "/vm";
    SnapshotCreateParams => Put "/snapshot/create";
    SnapshotLoadParams => Put "/snapshot/load";
}

/// Kernel, initramfs and command line.
#[derive(Clone, Debug, Serialize)]
pub struct BootSource {
    pub kernel_image_path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

/// Whether the guest's flushes reach the host's disk.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum CacheType {
    /// A flush is not even offered.
    Unsafe,
    /// A flush of the guest's is an fsync here.
    Writeback,
}

/// How the VMM does its disk I/O.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum IoEngine {
    Sync,
    /// io_uring.
    Async,
}

/// A virtio block device over a file.
#[derive(Clone, Debug, Serialize)]
pub struct Drive {
    pub drive_id: String,
    pub path_on_host: PathBuf,
    /// True has the VMM write `root=` to the kernel's command line. Never so here: `/init` finds its drives by UUID.
    pub is_root_device: bool,
    pub is_read_only: bool,
    pub cache_type: CacheType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<IoEngine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// A virtio network device over a tap.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkInterface {
    pub iface_id: String,
    pub host_dev_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// The vsock device, backed by Unix sockets on the host.
#[derive(Clone, Debug, Serialize)]
pub struct Vsock {
    /// 3 or more. Local to one VMM: every VM of a host may have the same.
    pub guest_cid: u32,
    pub uds_path: PathBuf,
}

/// How large pages back the guest's memory.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum HugePages {
    None,
    #[serde(rename = "2M")]
    TwoMiB,
}

/// CPUs and memory.
#[derive(Clone, Debug, Serialize)]
pub struct MachineConfiguration {
    /// 1 to 32.
    pub vcpu_count: u8,
    pub mem_size_mib: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
}

/// A virtio random number device.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EntropyDevice {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// Where the serial console goes.
#[derive(Clone, Debug, Serialize)]
pub struct SerialDevice {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<PathBuf>,
    /// Bytes over it are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucket>,
}

/// How much the VMM logs.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum LogLevel {
    Error,
    Warning,
    Info,
    Debug,
    Trace,
    Off,
}

/// The VMM's own log.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Logger {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
}

/// Where the VMM's counters go, as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Metrics {
    pub metrics_path: PathBuf,
}

/// What can be asked of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ActionType {
    FlushMetrics,
    InstanceStart,
    SendCtrlAltDel,
}

/// One action.
#[derive(Clone, Debug, Serialize)]
pub struct InstanceActionInfo {
    pub action_type: ActionType,
}

/// The states that a running VM can be put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum VmRunState {
    Paused,
    Resumed,
}

/// Pauses or resumes.
#[derive(Clone, Debug, Serialize)]
pub struct Vm {
    pub state: VmRunState,
}

/// Whether a snapshot holds all of the memory.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum SnapshotType {
    Full,
    /// Only what was written since the last one; needs `track_dirty_pages`.
    Diff,
}

/// Where a snapshot goes. The VM must be paused.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotCreateParams {
    pub mem_file_path: PathBuf,
    pub snapshot_path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_type: Option<SnapshotType>,
}

/// What serves the memory of a loaded snapshot.
#[derive(Clone, Copy, Debug, Serialize)]
pub enum MemoryBackendType {
    File,
    Uffd,
}

/// The memory of a loaded snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryBackend {
    pub backend_type: MemoryBackendType,
    pub backend_path: PathBuf,
}

/// Another tap than the snapshot's.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkOverride {
    pub iface_id: String,
    pub host_dev_name: String,
}

/// Another socket than the snapshot's.
#[derive(Clone, Debug, Serialize)]
pub struct VsockOverride {
    pub uds_path: PathBuf,
}

/// Loads a snapshot into a fresh VMM.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotLoadParams {
    pub snapshot_path: PathBuf,
    pub mem_backend: MemoryBackend,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_vm: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
}

/// Limits of a device: bytes and operations.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RateLimiter {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// `size` tokens every `refill_time` milliseconds, after a first `one_time_burst`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TokenBucket {
    pub size: u64,
    pub refill_time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
}

/// What a VMM says of itself. Unknown fields are ignored: a newer VMM may say more.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct InstanceInfo {
    pub id: String,
    pub app_name: String,
    pub vmm_version: String,
    pub state: InstanceState,
}

/// Where a VMM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum InstanceState {
    #[serde(rename = "Not started")]
    NotStarted,
    Running,
    Paused,
}

#[derive(Debug, Deserialize)]
pub(super) struct FirecrackerVersion {
    pub(super) firecracker_version: String,
}

/// Why a call was refused.
#[derive(Debug, Deserialize)]
pub(super) struct Fault {
    pub(super) fault_message: String,
}
