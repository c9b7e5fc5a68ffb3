//! Flags of `banger vm`.

use crate::cli::completion;
use crate::cli::parse::{self, KeyValue};
use clap::{Args, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCandidates;
use messages::ids::{Reference, VmName, VmRef};
use messages::vm::{NetAllow, NetworkMode, Readiness, RestartPolicy, VmState};
use std::ffi::OsString;
use std::time::{Duration, SystemTime};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum VmCommand {
    /// Make a VM and run a command or a shell in it.
    ///
    /// Pulls the image and its kernel when they are absent. Exits with the command's status. Without a command: a shell
    /// when there is a terminal, else the image's own command, else a shell that reads stdin. The VM is kept unless
    /// `--rm` is given.
    Run(Box<RunArgs>),
    /// Make a VM and start it.
    Create(Box<CreateArgs>),
    /// Start VMs that are stopped.
    Start(StartArgs),
    /// Stop VMs properly; those that do not stop in time are forced.
    Stop(StopArgs),
    /// Stop and start VMs.
    Restart(RestartArgs),
    /// End VMs at once, as if the power failed.
    Kill(VmsArgs),
    /// Delete VMs and their disks.
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
    /// List VMs.
    #[command(visible_alias = "ps")]
    List(ListArgs),
    /// Show everything about a VM.
    Show(VmArg),
    /// Run a command in a VM and exit with its status.
    ///
    /// Stdin is passed on when it is not a terminal, or with `-i`. Ctrl-C goes to the command; a second within a second
    /// detaches from it.
    Exec(Box<ExecArgs>),
    /// Log in to a VM with the `ssh` of this host, or run a command there.
    ///
    /// Works without a network and without the helper: the connection goes through the VM's own socket. One argument is a
    /// line for the guest's shell, several are the words of a command. Exits with the status of `ssh`.
    Ssh(Box<SshArgs>),
    // For ssh's ProxyCommand.
    #[command(hide = true)]
    Connect {
        /// A VM, or its name with `.vm` behind it.
        host: String,
    },
    /// Print a VM's console.
    Logs(LogsArgs),
    /// Give a VM another name.
    Rename(RenameArgs),
    /// Print a VM's counters: CPU, memory, disk, network.
    Stats(StatsArgs),
    /// List the ports that programs in a VM listen on.
    Ports(VmArg),
}

/// One VM.
#[derive(Debug, Args)]
pub(in crate::cli) struct VmArg {
    /// A name, an id or a unique prefix of an id.
    #[arg(add = ArgValueCandidates::new(completion::vms))]
    pub(in crate::cli) vm: VmRef,
}

/// Several VMs.
#[derive(Debug, Args)]
pub(in crate::cli) struct VmsArgs {
    /// Names, ids or unique prefixes of ids.
    #[arg(required = true, value_name = "VM", add = ArgValueCandidates::new(completion::vms))]
    pub(in crate::cli) vms: Vec<VmRef>,
}

/// What a VM is made from.
#[derive(Debug, Args)]
pub(in crate::cli) struct SpecArgs {
    /// Its name: a DNS label. Two random words when absent.
    #[arg(long)]
    pub(in crate::cli) name: Option<VmName>,
    /// The image: a catalog name or one on this host. The configured default when absent.
    #[arg(long, value_name = "REF", add = ArgValueCandidates::new(completion::image_references))]
    pub(in crate::cli) image: Option<Reference>,
    /// The kernel. The image's own when absent.
    #[arg(long, value_name = "REF", add = ArgValueCandidates::new(completion::kernel_references))]
    pub(in crate::cli) kernel: Option<Reference>,
    /// Virtual CPUs.
    #[arg(long, value_name = "N", value_parser = parse::vcpus)]
    pub(in crate::cli) vcpu: Option<u8>,
    /// Memory: `512M`, `2G`, `2GiB`; units are powers of 1024, a bare number is bytes.
    #[arg(long, value_name = "SIZE", value_parser = parse::memory_mib)]
    pub(in crate::cli) memory: Option<u32>,
    /// Size of the writable disk, which takes only the space that is used.
    #[arg(long, value_name = "SIZE", value_parser = parse::disk_bytes)]
    pub(in crate::cli) disk_size: Option<u64>,
    /// Network: `nat` reaches out through the host, `none` is no device at all.
    #[arg(long, value_name = "MODE", value_parser = parse::network, default_value = "nat")]
    pub(in crate::cli) net: NetworkMode,
    /// Lets the VM reach another (`vm:NAME`) or a port of the host (`host:PORT`, `host:PORT/udp`). May be repeated.
    #[arg(long, value_name = "WHAT")]
    pub(in crate::cli) net_allow: Vec<NetAllow>,
    /// A label, for `vm list --filter`. May be repeated.
    #[arg(long = "label", value_name = "K=V", value_parser = parse::key_value)]
    pub(in crate::cli) labels: Vec<KeyValue>,
}

/// How a command is run in the guest.
#[derive(Debug, Args)]
pub(in crate::cli) struct CommandArgs {
    /// A variable of the command's environment. `K` alone takes its value from here. May be repeated.
    #[arg(long = "env", value_name = "K=V", value_parser = parse::environment)]
    pub(in crate::cli) env: Vec<KeyValue>,
    /// The user to run as: `name`, `uid`, `name:group` or `uid:gid`.
    #[arg(long)]
    pub(in crate::cli) user: Option<String>,
    /// The directory to run in.
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) workdir: Option<String>,
}

#[derive(Debug, Args)]
#[command(override_usage = "banger vm run [OPTIONS] [-- CMD...]")]
pub(in crate::cli) struct RunArgs {
    #[command(flatten)]
    pub(in crate::cli) spec: SpecArgs,
    #[command(flatten)]
    pub(in crate::cli) command: CommandArgs,
    /// The program that CMD is given to, in place of the image's entrypoint; empty for none.
    #[arg(long, value_name = "PROGRAM")]
    pub(in crate::cli) entrypoint: Option<OsString>,
    /// What to wait for before the command is run.
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "system")]
    pub(in crate::cli) wait: WaitLevel,
    /// How long the guest may take to become ready: `90s`, `5m`; a bare number is seconds.
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub(in crate::cli) timeout: Option<Duration>,
    /// Delete the VM when the command or shell has ended, in whatever way.
    #[arg(long = "rm")]
    pub(in crate::cli) remove: bool,
    /// Print the VM's name once the command runs, and leave it running.
    #[arg(long)]
    pub(in crate::cli) detach: bool,
    // Taken so that it can be refused with a sentence of its own.
    #[arg(hide = true, value_name = "PATH")]
    pub(in crate::cli) path: Option<OsString>,
    /// The command and its arguments.
    #[arg(last = true, value_name = "CMD")]
    pub(in crate::cli) argv: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct CreateArgs {
    #[command(flatten)]
    pub(in crate::cli) spec: SpecArgs,
    /// Whether the daemon starts the VM again after it ended by itself or the host rebooted.
    #[arg(long, value_name = "POLICY", value_parser = parse::restart, default_value = "no")]
    pub(in crate::cli) restart: RestartPolicy,
    /// Make it, but do not start it.
    #[arg(long, conflicts_with = "wait")]
    pub(in crate::cli) no_start: bool,
    /// What to wait for before returning. Nothing when absent.
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub(in crate::cli) wait: Option<WaitLevel>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StartArgs {
    #[command(flatten)]
    pub(in crate::cli) vms: VmsArgs,
    /// What to wait for before returning. Nothing when absent.
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub(in crate::cli) wait: Option<WaitLevel>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StopArgs {
    #[command(flatten)]
    pub(in crate::cli) vms: VmsArgs,
    /// How long the guest may take before it is forced: `30s`, `2m`; a bare number is seconds.
    #[arg(long, value_name = "TIME", value_parser = parse::duration)]
    pub(in crate::cli) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RestartArgs {
    #[command(flatten)]
    pub(in crate::cli) stop: StopArgs,
    /// What to wait for before returning. Nothing when absent.
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub(in crate::cli) wait: Option<WaitLevel>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DeleteArgs {
    #[command(flatten)]
    pub(in crate::cli) vms: VmsArgs,
    /// Also those that run.
    #[arg(short, long)]
    pub(in crate::cli) force: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    /// Only those with `label=K`, `label=K=V`, `state=STATE` or `image=NAME`. All of several must hold.
    #[arg(long = "filter", value_name = "FILTER", value_parser = parse::vm_filter)]
    pub(in crate::cli) filters: Vec<VmFilter>,
}

/// One condition of `vm list --filter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum VmFilter {
    Label { key: String, value: Option<String> },
    State(VmState),
    Image(String),
}

#[derive(Debug, Args)]
#[command(override_usage = "banger vm exec [OPTIONS] VM -- CMD...")]
pub(in crate::cli) struct ExecArgs {
    /// A name, an id or a unique prefix of an id.
    #[arg(add = ArgValueCandidates::new(completion::vms))]
    pub(in crate::cli) vm: VmRef,
    /// Pass stdin on, also from a terminal.
    #[arg(short, long)]
    pub(in crate::cli) interactive: bool,
    /// Give the command a terminal.
    #[arg(short, long, conflicts_with = "detach")]
    pub(in crate::cli) tty: bool,
    #[command(flatten)]
    pub(in crate::cli) command: CommandArgs,
    /// What to wait for before the command is run.
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "agent")]
    pub(in crate::cli) wait: WaitLevel,
    /// Print the operation's id once the command runs, and leave it running; its output is discarded.
    #[arg(long, conflicts_with = "interactive")]
    pub(in crate::cli) detach: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(in crate::cli) argv: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(override_usage = "banger vm ssh [OPTIONS] VM [-- CMD...]")]
pub(in crate::cli) struct SshArgs {
    /// A name, an id or a unique prefix of an id.
    #[arg(add = ArgValueCandidates::new(completion::vms))]
    pub(in crate::cli) vm: VmRef,
    /// Give the command a terminal.
    #[arg(short, long)]
    pub(in crate::cli) tty: bool,
    /// The command.
    #[arg(last = true, value_name = "CMD")]
    pub(in crate::cli) argv: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct LogsArgs {
    #[command(flatten)]
    pub(in crate::cli) vm: VmArg,
    /// Only what was written since: a time ago (`90s`, `2h`), or a time (`2026-01-31T12:00:00Z`, UTC). Exact to a second while the
    /// daemon ran; what was written while it did not counts as written when it looked again.
    #[arg(long, value_name = "TIME", value_parser = parse::since)]
    pub(in crate::cli) since: Option<SystemTime>,
    /// Print what is added until the VM stops.
    #[arg(short, long)]
    pub(in crate::cli) follow: bool,
    /// The log of the VM's VMM process in place of the guest's console.
    #[arg(long)]
    pub(in crate::cli) vmm: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StatsArgs {
    #[command(flatten)]
    pub(in crate::cli) vm: VmArg,
    /// Print them again every 2 seconds until the VM stops, with rates: on a terminal in place, with `--json` an object a line.
    #[arg(short, long)]
    pub(in crate::cli) watch: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RenameArgs {
    /// A name, an id or a unique prefix of an id.
    #[arg(add = ArgValueCandidates::new(completion::vms))]
    pub(in crate::cli) vm: VmRef,
    /// The new name: a DNS label.
    #[arg(value_name = "NAME")]
    pub(in crate::cli) name: VmName,
}

/// How far a guest has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum WaitLevel {
    /// Commands can be run.
    Agent,
    /// The image's init has settled.
    System,
    /// SSH answers.
    Ssh,
}

impl From<WaitLevel> for Readiness {
    fn from(level: WaitLevel) -> Self {
        match level {
            WaitLevel::Agent => Self::Agent,
            WaitLevel::System => Self::System,
            WaitLevel::Ssh => Self::Ssh,
        }
    }
}
