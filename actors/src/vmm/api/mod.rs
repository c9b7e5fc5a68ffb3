//! The Firecracker API over a Unix socket: typed calls in, typed errors out. Knows no policy and starts no process.

mod bodies;
mod client;
#[cfg(test)]
mod tests;

pub use bodies::{
    ActionType, BootSource, CacheType, Call, Drive, EntropyDevice, HugePages, InstanceActionInfo, InstanceInfo,
    InstanceState, IoEngine, LogLevel, Logger, MachineConfiguration, MemoryBackend, MemoryBackendType, Metrics,
    NetworkInterface, NetworkOverride, RateLimiter, SerialDevice, SnapshotCreateParams, SnapshotLoadParams,
    SnapshotType, TokenBucket, Verb, Vm, VmRunState, Vsock, VsockOverride,
};
pub(crate) use client::clean;
pub use client::{ApiError, CallLimits, Driver};
