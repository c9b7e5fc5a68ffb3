//! The command line: Firecracker's flags, and those that choose another machine than QEMU.

use crate::emu::log::Level;
use crate::emu::machine::Kind;
use crate::emu::machine::accelerator::Choice;
use clap::{Parser, ValueEnum};
use std::path::PathBuf;

/// Firecracker's `--id` where none is given.
const DEFAULT_ID: &str = "anonymous-instance";
/// Firecracker's limit of a request's body, in bytes.
const PAYLOAD_MAX: usize = 51200;
const ID_MAX: usize = 64;

/// A drop-in for the firecracker binary over QEMU.
#[derive(Debug, Parser)]
#[command(name = "banger-emu", disable_version_flag = true)]
pub struct Args {
    /// Path to unix domain socket used by the API
    #[arg(long, default_value = "/run/firecracker.socket")]
    pub api_sock: PathBuf,
    /// `MicroVM` unique identifier: letters, digits and hyphens
    #[arg(long, default_value = DEFAULT_ID, value_parser = parse_id)]
    pub id: String,
    /// Path to a file that contains the microVM configuration in JSON format
    #[arg(long)]
    pub config_file: Option<PathBuf>,
    /// Start without an active API socket
    #[arg(long, requires = "config_file")]
    pub no_api: bool,
    /// Path to a fifo or a file used for configuring the logger on startup
    #[arg(long)]
    pub log_path: Option<PathBuf>,
    /// Set the logger level: Off, Error, Warning, Info, Debug, Trace
    #[arg(long)]
    pub level: Option<Level>,
    /// Set the logger module filter
    #[arg(long)]
    pub module: Option<String>,
    /// Output the level in the logs
    #[arg(long)]
    pub show_level: bool,
    /// Include the file path and line number of the log's origin
    #[arg(long)]
    pub show_log_origin: bool,
    /// Path to a fifo or a file used for configuring the metrics on startup
    #[arg(long)]
    pub metrics_path: Option<PathBuf>,
    /// Taken and without effect: there is no boot timer device
    #[arg(long)]
    pub boot_timer: bool,
    /// Run QEMU without its seccomp filter
    #[arg(long)]
    pub no_seccomp: bool,
    /// Refused: the filter is QEMU's own
    #[arg(long, conflicts_with = "no_seccomp")]
    pub seccomp_filter: Option<PathBuf>,
    /// Refused: there is no MMDS
    #[arg(long)]
    pub metadata: Option<PathBuf>,
    /// Refused: microvm has no PCI
    #[arg(long)]
    pub enable_pci: bool,
    /// Process start time (wall clock, microseconds); logged
    #[arg(long)]
    pub start_time_us: Option<u64>,
    /// Process start CPU time (microseconds); logged
    #[arg(long)]
    pub start_time_cpu_us: Option<u64>,
    /// Parent process CPU time (microseconds); logged
    #[arg(long)]
    pub parent_cpu_time_us: Option<u64>,
    /// Http API request payload max size, in bytes
    #[arg(long, default_value_t = PAYLOAD_MAX)]
    pub http_api_max_payload_size: usize,
    /// Taken and without effect: there is no MMDS
    #[arg(long)]
    pub mmds_size_limit: Option<usize>,
    /// Print the version
    #[arg(long)]
    pub version: bool,
    /// Print the supported data format version
    #[arg(long)]
    pub snapshot_version: bool,
    /// Print the data format version of a snapshot's state file
    #[arg(long)]
    pub describe_snapshot: Option<PathBuf>,
    /// What runs behind the API (banger-emu's own)
    #[arg(long, value_enum, default_value_t = MachineKind::Microvm)]
    pub machine: MachineKind,
    /// What runs the guest's code (banger-emu's own)
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    pub accel: Choice,
    /// The agent's binary, for `--machine process` (banger-emu's own)
    #[arg(long, required_if_eq("machine", "process"))]
    pub agent: Option<PathBuf>,
    /// Faults to play, as JSON or TOML (banger-emu's own)
    #[arg(long)]
    pub script: Option<PathBuf>,
}

/// `--machine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MachineKind {
    /// QEMU's microvm
    Microvm,
    /// The agent as a host process
    Process,
    /// Nothing: every call is answered at once
    Scripted,
}

impl Args {
    /// The machine that was chosen.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match (self.machine, &self.agent) {
            (MachineKind::Process, Some(agent)) => {
                Kind::Process { agent: agent.clone(), beside: self.api_sock.clone() }
            }
            (MachineKind::Scripted, _) => Kind::Scripted,
            (MachineKind::Microvm | MachineKind::Process, _) => {
                Kind::Microvm { sandbox: !self.no_seccomp, accelerator: self.accel }
            }
        }
    }

    /// The first flag that Firecracker has and this cannot honour.
    #[must_use]
    pub fn unsupported(&self) -> Option<&'static str> {
        [
            (self.seccomp_filter.is_some(), "--seccomp-filter"),
            (self.metadata.is_some(), "--metadata"),
            (self.enable_pci, "--enable-pci"),
        ]
        .into_iter()
        .find_map(|(given, flag)| given.then_some(flag))
    }
}

fn parse_id(id: &str) -> Result<String, String> {
    if id.is_empty() || id.len() > ID_MAX {
        return Err(format!("Invalid len ({});  the length must be between 1 and {ID_MAX}", id.len()));
    }
    if let Some((at, c)) = id.chars().enumerate().find(|(_, c)| !(*c == '-' || c.is_alphanumeric())) {
        return Err(format!("Invalid char ({c}) at position {at}"));
    }
    Ok(id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_flags_are_consistent() {
        Args::command().debug_assert();
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        assert!(parse("e --id a_b").is_err());
        assert!(parse("e --no-api").is_err());
        assert!(parse("e --machine process").is_err());
        assert!(parse("e --level loud").is_err());
        let args = parse("e --api-sock a --id 12-3 --log-path l --level Debug --show-level --no-seccomp").unwrap();
        assert!(matches!(args.kind(), Kind::Microvm { sandbox: false, .. }));
    }
}
