//! What a VM is asked to be, and what is told about one.

use crate::ids::{ImageName, KernelName, VmId, VmName, VmRef};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Where a VM's network goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// A tap on the instance's bridge, with NAT to the host's uplink. Needs `bangerd-root`.
    #[default]
    Nat,
    /// No network device at all.
    None,
}

/// What a VM may reach beyond what its network lets every VM reach. Append only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetAllow {
    /// Another VM of the same instance; answers come back, connections the other way do not.
    Vm(VmRef),
    /// A TCP port of the host, at the gateway's addresses.
    HostTcp(u16),
    /// A UDP port of the host, at the gateway's addresses.
    HostUdp(u16),
}

/// Says why a `--net-allow` was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is nothing that can be allowed: use `vm:NAME`, `host:PORT` or `host:PORT/udp`")]
pub struct InvalidNetAllow(String);

impl FromStr for NetAllow {
    type Err = InvalidNetAllow;
    fn from_str(text: &str) -> Result<Self, InvalidNetAllow> {
        let invalid = || InvalidNetAllow(text.chars().take(160).collect());
        if let Some(vm) = text.strip_prefix("vm:") {
            return vm.parse().map(Self::Vm).map_err(|_| invalid());
        }
        let port = text.strip_prefix("host:").ok_or_else(invalid)?;
        let (digits, udp) = match port.split_once('/') {
            None | Some((_, "tcp")) => (port.trim_end_matches("/tcp"), false),
            Some((digits, "udp")) => (digits, true),
            Some(_) => return Err(invalid()),
        };
        let number = digits.parse::<u16>().ok().filter(|n| *n != 0 && digits.bytes().all(|b| b.is_ascii_digit()));
        let number = number.ok_or_else(invalid)?;
        Ok(if udp { Self::HostUdp(number) } else { Self::HostTcp(number) })
    }
}

impl fmt::Display for NetAllow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(vm) => write!(f, "vm:{vm}"),
            Self::HostTcp(port) => write!(f, "host:{port}"),
            Self::HostUdp(port) => write!(f, "host:{port}/udp"),
        }
    }
}

/// What a caller waits for. Ordered: each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// The link is up and the root is mounted: exec works.
    Agent,
    /// The image's init has settled (or has been started, where it is not systemd).
    System,
    /// An SSH handshake with the managed key succeeded.
    Ssh,
}

/// Whether the daemon starts a VM again that ended by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    #[default]
    No,
    /// Also after a reboot of the host.
    Always,
}

/// Whether the VM outlives its command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifetime {
    #[default]
    Kept,
    /// Deleted when its command ends, or when its client vanishes (`--rm`).
    Ephemeral,
}

/// The published state of a VM; smaller than the state machine's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    Stopped,
    Starting,
    Running,
    Stopping,
    /// The VMM or the boot failed; `last_error` says how. Can be started again.
    Failed,
    Deleting,
}

impl VmState {
    /// The word users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }
}

/// Where a size came from, for the `spec:` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provenance {
    Flag,
    Config,
    Host,
    BuiltIn,
}

/// A VM's sizes, decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSize {
    pub vcpus: u8,
    /// MiB.
    pub memory_mib: u32,
    /// Bytes of the writable disk.
    pub disk_bytes: u64,
    pub vcpus_from: Provenance,
    pub memory_from: Provenance,
    pub disk_from: Provenance,
}

/// What a VM is made from. `None` leaves the choice to config, host or built-in floor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Two random words when absent.
    pub name: Option<VmName>,
    /// The configured default image when absent.
    pub image: Option<crate::ids::Reference>,
    /// The image's own kernel when absent.
    pub kernel: Option<crate::ids::Reference>,
    pub vcpus: Option<u8>,
    pub memory_mib: Option<u32>,
    pub disk_bytes: Option<u64>,
    pub network: NetworkMode,
    /// At most [`crate::limits::NET_ALLOW_MAX`].
    pub net_allow: Vec<NetAllow>,
    pub labels: Vec<(String, String)>,
    pub restart: RestartPolicy,
    pub lifetime: Lifetime,
}

impl Default for VmSpec {
    fn default() -> Self {
        Self {
            name: None,
            image: None,
            kernel: None,
            vcpus: None,
            memory_mib: None,
            disk_bytes: None,
            network: NetworkMode::Nat,
            net_allow: Vec::new(),
            labels: Vec::new(),
            restart: RestartPolicy::No,
            lifetime: Lifetime::Kept,
        }
    }
}

/// What is told about one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmView {
    pub id: VmId,
    pub name: VmName,
    pub state: VmState,
    /// The highest level reached in this boot.
    pub readiness: Option<Readiness>,
    pub image: ImageName,
    pub kernel: KernelName,
    pub size: VmSize,
    pub network: NetworkMode,
    /// VMs by the names that they have now; one that is gone by its id.
    pub net_allow: Vec<NetAllow>,
    pub address: Option<Ipv4Addr>,
    /// Where the host has IPv6.
    pub address6: Option<Ipv6Addr>,
    pub labels: Vec<(String, String)>,
    pub restart: RestartPolicy,
    pub lifetime: Lifetime,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// When the present boot began, in milliseconds since the Unix epoch.
    pub started_at_ms: Option<u64>,
    /// The VMM's process, while there is one.
    pub vmm_pid: Option<u32>,
    /// Operations running in the guest now.
    pub operations: u32,
    /// Why it failed, if it did.
    pub last_error: Option<String>,
    /// Something the user should know, such as a degraded systemd.
    pub warning: Option<String>,
    /// What its SSH server proves itself with; known before its first start. `None` for one that was never started.
    pub ssh_host_key: Option<SshPublicKey>,
}

/// The public half of an ed25519 key (RFC 8032). Text is made of it where people read it: lists are long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshPublicKey(pub [u8; 32]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_allowed_reads_as_it_prints() {
        for text in ["vm:web", "vm:00ff10a0b0c0d0e0", "host:8080", "host:1", "host:65535/udp"] {
            assert_eq!(text.parse::<NetAllow>().unwrap().to_string(), text);
        }
        assert_eq!("host:80/tcp".parse(), Ok(NetAllow::HostTcp(80)));
        for bad in [
            "",
            "vm:",
            "vm:A",
            "vm:a b",
            "web",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "host:80/sctp",
            "host:a/udp",
            "10.0.0.1:80",
        ] {
            assert!(bad.parse::<NetAllow>().is_err(), "{bad}");
        }
    }
}
