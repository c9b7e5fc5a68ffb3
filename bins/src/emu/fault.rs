//! What the API refuses, in Firecracker's words where it has some. Every fault is a 400 with `{"fault_message": …}`.

use std::io;
use std::path::PathBuf;

/// Why a request failed. Displayed to the API's caller as it is.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Json(#[from] serde_json::Error),
    #[error("Invalid request method and/or path: {method} {path}.")]
    InvalidPathMethod { method: String, path: String },
    #[error("The ID cannot be empty.")]
    EmptyId,
    #[error("API Resource IDs can only contain alphanumeric characters and underscores.")]
    InvalidId,
    #[error("The id from the path does not match the id from the body!")]
    IdMismatch,
    #[error("The id from the path [{path}] does not match the id from the body [{body}]!")]
    InterfaceIdMismatch { path: String, body: String },
    #[error("Empty {0} request.")]
    EmptyBody(String),
    #[error("GET request cannot have a body.")]
    BodyOnGet,
    #[error("Request payload with size {size} is larger than the limit of {limit} allowed by server.")]
    PayloadTooLarge { size: usize, limit: usize },
    #[error("The requested operation is not supported after starting the microVM.")]
    PostBoot,
    #[error("The requested operation is not supported before starting the microVM.")]
    PreBoot,
    #[error("The requested operation is not supported: {0} is not supported by banger-emu")]
    NotSupported(&'static str),
    #[error("Machine config error: {0}")]
    MachineConfig(MachineConfigFault),
    #[error("Boot source error: {0}")]
    BootSource(BootSourceFault),
    #[error("Drive config error: {0}")]
    Drive(DriveFault),
    #[error("Network config error: {0}")]
    Network(NetworkFault),
    #[error("Vsock config error: {0}")]
    Vsock(VsockFault),
    #[error("Logger error: {0}")]
    Logger(io::Error),
    #[error("Metrics error: Cannot initialize the metrics system due to bad user input: {0}")]
    Metrics(String),
    #[error("Serial config error: cannot open `{}`: {source}", path.display())]
    Serial { path: PathBuf, source: io::Error },
    #[error("Start microvm error: {0}")]
    Start(String),
    #[error("Create snapshot error: {0}")]
    CreateSnapshot(String),
    #[error("Load snapshot error: {0}")]
    LoadSnapshot(String),
    #[error("Internal VMM error: {0}")]
    Internal(String),
    #[error("refused by the script at `{0}`")]
    Scripted(String),
}

/// What is wrong with a machine configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineConfigFault {
    #[error("The memory size (MiB) is either 0, or not a multiple of the configured page size.")]
    InvalidMemorySize,
    #[error(
        "The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled."
    )]
    InvalidVcpuCount,
}

/// What is wrong with a boot source.
#[derive(Debug, thiserror::Error)]
pub enum BootSourceFault {
    #[error("The kernel file cannot be opened: {0}")]
    Kernel(io::Error),
    #[error("The initrd file cannot be opened due to invalid path or invalid permissions. {0}")]
    Initrd(io::Error),
    #[error("The kernel command line is invalid: {0}")]
    CommandLine(String),
}

/// What is wrong with a drive.
#[derive(Debug, thiserror::Error)]
pub enum DriveFault {
    #[error("A root block device already exists!")]
    SecondRoot,
    #[error(
        "Unable to create the virtio block device: Virtio backend error: Error manipulating the backing file: {source} {}",
        path.display()
    )]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "Unable to create the virtio block device: Virtio backend error: the fields `path_on_host` and `is_read_only` are required"
    )]
    Missing,
    #[error("Unable to patch the block device: {0} Please verify the request arguments.")]
    Update(String),
}

/// What is wrong with a network interface.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkFault {
    #[error("The MAC address is already in use: {0}")]
    MacInUse(String),
    #[error("Cannot open/create the tap device: Invalid interface name: `{0}`")]
    InvalidName(String),
    #[error("Could not create the network device: MTU {0} is not between 68 and 65535")]
    InvalidMtu(u32),
    #[error("Unable to update the net device: no interface has the id `{0}`")]
    Unknown(String),
}

/// What is wrong with a vsock device.
#[derive(Debug, thiserror::Error)]
pub enum VsockFault {
    #[error("Cannot create backend for vsock device: Error binding to the host-side Unix socket: {0}")]
    Bind(io::Error),
    #[error("Cannot create vsock device: the guest's CID must be 3 or more, not {0}")]
    InvalidCid(u32),
}
