//! Messages to and from `banger-agent`. **Whatever comes out of a guest is hostile**: bounded, typed, timed.
//!
//! Two kinds of stream, both beginning with a [`crate::frame::Hello`] frame from each side:
//! * *control*: the agent dials [`CONTROL_PORT`] on the host (a listening socket `<uds_path>_<port>` of `bangerd`), and
//!   redials for ever. [`AgentFrame`] up, [`DaemonFrame`] down.
//! * *operation*: the host dials [`OPERATION_PORT`] in the guest. `bangerd` sends the [`OperationFrame::Open`], then hands the
//!   socket to the CLI, which speaks the rest. Only the host's side of an operation sends a hello; the agent answers with
//!   frames, the first of which is `Started` or `Failed`.

use crate::error::WireError;
use crate::ids::{BootNonce, OperationId, VmId, VmName};
use crate::image::ImageConfig;
use crate::vm::Readiness;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The vsock port on the host that the agent dials.
pub const CONTROL_PORT: u32 = 1024;
/// The vsock port in the guest that operations are opened on.
pub const OPERATION_PORT: u32 = 1025;
/// The vsock port in the guest that counts bytes, without frames: the dialler sends a `u64` (little endian), then so many
/// bytes; the agent drops them and answers how many came, as a `u64`.
pub const BENCH_PORT: u32 = 1026;
/// The vsock port in the guest where its SSH server answers: the image's, or else the agent's own. Bytes as they are, without
/// hello or frames: SSH says for itself when a connection begins and ends.
pub const SSH_PORT: u32 = 1027;
/// The name of banger-emu's virtio-serial port, in `/sys/class/virtio-ports/*/name`.
pub const SERIAL_PORT_NAME: &str = "banger.0";
/// The end of the one line of `/etc/hosts` that the agent writes at each boot: it belongs to a VM, and to no image of it.
pub const HOSTS_MARK: &str = "# banger";

/// Everything the guest is told at boot. Identity is always given, never baked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSpec {
    pub vm: VmId,
    pub name: VmName,
    /// 32 hex digits, for `/etc/machine-id`.
    pub machine_id: String,
    pub drives: Drives,
    pub network: Option<GuestNetwork>,
    pub authorized_keys: Vec<String>,
    pub ssh_host_keys: Vec<SshHostKey>,
    /// From the image; honoured by exec.
    pub config: ImageConfig,
    /// Nanoseconds since the Unix epoch, as the spec was sent.
    pub clock_unix_ns: u64,
    /// For the guest's entropy pool.
    pub entropy: [u8; 32],
    /// Of this boot.
    pub nonce: BootNonce,
}

/// The drives by file-system UUID, in its usual form with hyphens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drives {
    /// Read-only, shared by every VM of the image.
    pub image: String,
    /// The VM's own.
    pub disk: String,
    /// Read-only, mounted at `/usr/lib/modules/<version>`.
    pub modules: Option<String>,
}

/// The guest's one network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork {
    pub mac: [u8; 6],
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub mtu: Option<u16>,
    pub resolvers: Vec<Ipv4Addr>,
    /// Where the host has IPv6.
    pub ipv6: Option<GuestNetwork6>,
}

/// The IPv6 side of the interface. Nothing of it is asked for on the link: no router and no neighbour has to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork6 {
    /// Its own only: everything else, its neighbours included, goes by the gateway.
    pub address: Ipv6Addr,
    pub gateway: Ipv6Addr,
    pub gateway_mac: [u8; 6],
}

/// One of sshd's host keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshHostKey {
    /// OpenSSH private key file.
    pub private: String,
    /// One line, as in a `.pub` file.
    pub public: String,
}

/// The private half is nobody's to read in a log.
impl std::fmt::Debug for SshHostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SshHostKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// From the agent, on the control stream. Append only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum AgentFrame {
    /// The first frame of a control stream.
    Identify {
        /// `None`: give me the boot spec.
        running: Option<RunningIdentity>,
        /// Microseconds since power-on.
        uptime_us: u64,
        /// How often the keeper had to restart the agent in this boot.
        restarts: u32,
    },
    /// A readiness level was reached.
    Ready {
        level: Readiness,
        warning: Option<String>,
        uptime_us: u64,
    },
    OperationStarted {
        operation: OperationId,
        pid: u32,
    },
    /// Sent again after each redial until it is acknowledged. Comes when the client has taken the last frame and closed its
    /// stream (or 10 s later), so that a VM made for one command can go on this word. Also for what failed to start, with the
    /// status that a shell has for it: 127 not found, 126 not to be run.
    OperationEnded {
        operation: OperationId,
        status: ExitStatus,
    },
    /// The guest is going down; the last words before the reset.
    Stopping {
        kind: StopKind,
    },
    /// The answer to a [`DaemonFrame::Call`].
    Answer {
        call: u32,
        result: Result<GuestAnswer, WireError>,
    },
    /// The boot failed for this reason; the guest waits on for a stop.
    BootFailed(WireError),
}

/// What a running agent says of itself when it (re)dials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningIdentity {
    pub vm: VmId,
    pub nonce: BootNonce,
    pub readiness: Option<Readiness>,
    pub warning: Option<String>,
    pub operations: Vec<OperationId>,
}

/// To the agent, on the control stream. Append only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DaemonFrame {
    /// Boot with this; also "identify yourself anew" after a fork or resume.
    Spec(Box<BootSpec>),
    /// The agent is known and runs on.
    Welcome,
    /// An [`AgentFrame::OperationEnded`] is on record.
    Acknowledge {
        operation: OperationId,
    },
    Call {
        call: u32,
        question: GuestQuestion,
    },
}

/// What can be asked of the agent. Append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestQuestion {
    /// Stops the init properly, syncs, freezes, resets. Answered `Done` at once.
    Stop {
        kind: StopKind,
        deadline_ms: u64,
    },
    Stats,
    Ports,
    SetClock {
        unix_ns: u64,
    },
    Ping,
    /// Signals an operation that nobody is attached to.
    SignalOperation {
        operation: OperationId,
        signal: i32,
    },
}

/// Answers to [`GuestQuestion`]. Append only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum GuestAnswer {
    Done,
    Stats(GuestStats),
    Ports(GuestPorts),
}

/// Why a guest goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopKind {
    /// The VM ends.
    Halt,
    /// The VM starts again.
    Reboot,
}

/// Linux' last real-time signal.
const SIGNAL_MAX: i32 = 64;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    Code(i32),
    Signal(i32),
    /// The agent died and was restarted while it ran.
    Unknown,
}

impl ExitStatus {
    /// As a shell has it: the code, or 128 + the signal. [`ExitStatus::Unknown`], and a signal that there is none of, is 255.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => u8::try_from(code & 0xff).unwrap_or(255),
            Self::Signal(signal @ 1..=SIGNAL_MAX) => u8::try_from(128 + signal).unwrap_or(255),
            Self::Signal(_) | Self::Unknown => 255,
        }
    }
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// What becomes of a command whose client vanished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDisconnect {
    /// SIGHUP, then SIGKILL after two seconds, to its process group.
    Kill,
    /// It runs on; its output is discarded.
    KeepRunning,
}

/// A command to run in a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    pub command: ExecCommand,
    /// Added to the image's and the user's environment.
    pub env: Vec<(String, String)>,
    /// The image's, or the user's home, when absent.
    pub workdir: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; the image's, or root, when absent.
    pub user: Option<String>,
    /// A pseudo-terminal of this size.
    pub terminal: Option<TerminalSize>,
    /// False: the command reads /dev/null.
    pub stdin: bool,
    pub on_disconnect: OnDisconnect,
}

impl ExecSpec {
    /// A command with nothing of its own: no environment, stdin or terminal, and killed with its client.
    #[must_use]
    pub const fn new(command: ExecCommand) -> Self {
        Self {
            command,
            env: Vec::new(),
            workdir: None,
            user: None,
            terminal: None,
            stdin: false,
            on_disconnect: OnDisconnect::Kill,
        }
    }
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecCommand {
    /// argv, bytes as the client had them. The image's entrypoint is not put in front.
    Argv(Vec<ArgBytes>),
    /// The user's login shell (from /etc/passwd, else /bin/sh).
    LoginShell,
    /// The image's entrypoint (or this one) with this command (or the image's Cmd). With neither, the login shell. An entrypoint that
    /// is the image's init already runs as PID 1, and counts as none.
    Image { entrypoint: Option<Vec<ArgBytes>>, command: Vec<ArgBytes> },
    /// A tool of the agent's own: it needs no program of the image's. Runs as root; the image's settings mean nothing to it.
    Tool(AgentTool),
}

/// What the agent can do by itself, in a process of its own. Append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentTool {
    /// Writes the guest's root to stdout as a tar archive, without what is mounted on it (and with what lies beneath).
    Archive,
    /// Unpacks the tar archive on stdin.
    Unpack {
        /// Where; made if it is not there.
        at: ArgBytes,
        /// The archive's one file is to be `at` itself, unless a directory is there already.
        as_file: bool,
    },
    /// Reads stdin to its end: keeps a VM that lives as long as its command.
    Hold,
}

/// One argument: any bytes but NUL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArgBytes(#[serde(with = "serde_bytes")] pub Vec<u8>);

/// To an operation. Append only. Payloads borrow from the frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationFrame<'a> {
    /// The first frame, sent by `bangerd`.
    Open {
        operation: OperationId,
        exec: Box<ExecSpec>,
    },
    /// At most as many bytes as were granted by [`OutputFrame::StdinCredit`].
    Stdin(#[serde(with = "serde_bytes", borrow)] &'a [u8]),
    /// The end of stdin: a message, never a half-close.
    StdinEnd,
    Resize(TerminalSize),
    /// To the foreground process group of a terminal, else to the command's group.
    Signal(i32),
    /// The client leaves on purpose: the command runs on whatever its [`OnDisconnect`].
    Detach,
}

/// From an operation. Append only. Payloads borrow from the frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputFrame<'a> {
    /// The first frame, or [`OutputFrame::Failed`].
    Started {
        pid: u32,
    },
    Stdout(#[serde(with = "serde_bytes", borrow)] &'a [u8]),
    Stderr(#[serde(with = "serde_bytes", borrow)] &'a [u8]),
    /// So many more bytes of stdin may be sent. The first grant is [`crate::limits::STDIN_WINDOW`].
    StdinCredit(u32),
    /// The command closed its stdin: the rest can be dropped.
    StdinClosed,
    /// The last frame: all output came before it.
    Exited(ExitStatus),
    /// The last frame: the command could not be run.
    Failed(WireError),
}

/// Counters of a guest, since its boot where they grow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestStats {
    pub uptime_ms: u64,
    /// Milliseconds of all vCPUs not idle.
    pub cpu_busy_ms: u64,
    /// Milliseconds of all vCPUs.
    pub cpu_total_ms: u64,
    pub load_1m_percent: u32,
    pub memory_total_kib: u64,
    pub memory_available_kib: u64,
    pub disk_total_bytes: u64,
    pub disk_used_bytes: u64,
    pub net_rx_bytes: u64,
    pub net_tx_bytes: u64,
    pub processes: u32,
}

/// Listening sockets of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestPorts {
    pub ports: Vec<ListeningPort>,
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListeningPort {
    /// `tcp` or `udp`.
    pub protocol: String,
    pub address: std::net::IpAddr,
    pub port: u16,
    /// The program's name, where a process holds it.
    pub process: Option<String>,
    pub pid: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_status_has_a_shells_code() {
        for (status, code) in [
            (ExitStatus::Code(0), 0),
            (ExitStatus::Code(255), 255),
            (ExitStatus::Code(256), 0),
            (ExitStatus::Code(-1), 255),
            (ExitStatus::Code(i32::MAX), 255),
            (ExitStatus::Code(i32::MIN), 0),
            (ExitStatus::Signal(1), 129),
            (ExitStatus::Signal(9), 137),
            (ExitStatus::Signal(64), 192),
            (ExitStatus::Signal(65), 255),
            (ExitStatus::Signal(0), 255),
            (ExitStatus::Signal(-1), 255),
            // With these 128 more is no i32.
            (ExitStatus::Signal(i32::MAX - 127), 255),
            (ExitStatus::Signal(i32::MAX), 255),
            (ExitStatus::Signal(i32::MIN), 255),
            (ExitStatus::Unknown, 255),
        ] {
            assert_eq!(status.shell_code(), code, "{status:?}");
        }
    }
}
