//! The host's side of a run: a slot, a network namespace with an uplink, and the process that lives in it.
//!
//! Owns everything that a run puts into the host's own namespaces, and takes it away again; a run that was killed is swept
//! by the next one that gets its slot. Must not touch anything that does not bear the slot's name.

use crate::command::Program;
use crate::init::Inside;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Slots: each has its uid, subordinate uids, addresses and names, so that many runs live side by side.
const SLOTS: u8 = 32;
/// Holds the slots' lock files.
const LOCKS: &str = "/run/banger-smoke";
/// Where the base directories are made. Short, because socket paths are (`sun_path` holds 108 bytes); not /tmp, which may be
/// memory: disks and images are large.
const BASES: &str = "/var/tmp";
/// Marks that forwarding was off before a run switched it on.
const FORWARDING_MARK: &str = "/run/banger-smoke/forwarding-was-off";
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// Says why the namespace could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("this needs root: namespaces, a tap and the helper are made by it")]
    NotRoot,
    #[error("all {SLOTS} slots of {LOCKS} are taken")]
    NoSlot,
    #[error("failed to {step}")]
    Io {
        step: String,
        #[source]
        source: io::Error,
    },
    #[error("`{command}` failed: {said}")]
    Command { command: String, said: String },
}

fn io_error(step: impl Into<String>) -> impl FnOnce(io::Error) -> HostError {
    let step = step.into();
    move |source| HostError::Io { step, source }
}

/// A slot that is held, with its namespace.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) slot: u8,
    pub(crate) base: PathBuf,
    _lock: Flock<File>,
}

impl Host {
    /// Takes a free slot, sweeps what a killed run left in it, and makes its namespace.
    ///
    /// # Errors
    /// [`HostError`].
    pub(crate) fn open() -> Result<Self, HostError> {
        if !nix::unistd::Uid::effective().is_root() {
            return Err(HostError::NotRoot);
        }
        fs::create_dir_all(LOCKS).map_err(io_error(format!("create {LOCKS}")))?;
        let (slot, lock) = (0..SLOTS).find_map(take).ok_or(HostError::NoSlot)?;
        let host = Self { slot, base: PathBuf::from(format!("{BASES}/bsm{slot}")), _lock: lock };
        host.sweep();
        fs::create_dir_all(&host.base).map_err(io_error(format!("create {}", host.base.display())))?;
        host.connect()?;
        Ok(host)
    }

    fn name(&self) -> String {
        format!("bsm{}", self.slot)
    }

    /// An address of the slot's link to the host. The range is the one for benchmarks (RFC 2544): nobody routes it.
    fn address(&self, host: u8) -> String {
        format!("198.18.{}.{host}", self.slot)
    }

    fn connect(&self) -> Result<(), HostError> {
        let name = self.name();
        let veth = format!("{name}-h");
        let (here, there) = (self.address(1), self.address(2));
        let steps = [
            format!("ip netns add {name}"),
            format!("ip link add {veth} type veth peer name uplink0 netns {name}"),
            format!("ip address add {here}/30 dev {veth}"),
            format!("ip link set {veth} up"),
            format!("ip -n {name} link set lo up"),
            format!("ip -n {name} address add {there}/30 dev uplink0"),
            format!("ip -n {name} link set uplink0 up"),
            format!("ip -n {name} route add default via {here}"),
        ];
        for step in &steps {
            tool(step)?;
        }
        let table = format!(
            "table ip {name} {{\n\
             chain nat {{ type nat hook postrouting priority 100; ip saddr {there} oifname != \"{veth}\" masquerade; }}\n\
             chain forward {{ type filter hook forward priority -1; iifname \"{veth}\" accept; oifname \"{veth}\" accept; }}\n\
             }}\n"
        );
        let mut nft = Program::tool(&["nft", "-f", "-"]);
        nft.input = crate::command::Input::Bytes(table.into_bytes());
        checked(nft, "nft -f -")?;
        // Beside docker, forwarded packets are dropped unless its own chain accepts them.
        for direction in ["-i", "-o"] {
            quietly(&format!("iptables -I DOCKER-USER {direction} {veth} -j ACCEPT"));
        }
        if fs::read_to_string(FORWARDING).map_err(io_error(format!("read {FORWARDING}")))?.trim() == "0" {
            fs::write(FORWARDING_MARK, "").map_err(io_error(format!("write {FORWARDING_MARK}")))?;
            fs::write(FORWARDING, "1").map_err(io_error(format!("write {FORWARDING}")))?;
        }
        Ok(())
    }

    /// Runs `inside` in the namespaces of this slot: network, mounts and processes. Ends with the exit code of its main
    /// process; whatever else ran there is dead by then.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn run(&self, inside: &Inside) -> Result<u8, HostError> {
        let own = std::env::current_exe().map_err(io_error("find this program"))?;
        let own = own.to_string_lossy().into_owned();
        let name = self.name();
        let inside = serde_json::to_string(inside).map_err(|error| io_error("encode the task")(error.into()))?;
        // The death signal needs this to be the main thread, which lives as long as the program.
        let argv = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "ip",
            "netns",
            "exec",
            &name,
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--mount-proc",
            &own,
            "inside",
            &inside,
        ];
        let mut command = Program::tool(&argv).command();
        command.stdin(Stdio::inherit());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(io_error("start the runtime"))?;
        runtime.block_on(wait_through_signals(command)).map_err(io_error("run in the namespace"))
    }

    /// Takes away everything of this slot, and says what could not be.
    pub(crate) fn close(self, keep: bool) -> Vec<String> {
        if keep {
            self.disconnect();
            return self.remains(false);
        }
        self.sweep();
        self.remains(true)
    }

    fn disconnect(&self) {
        let name = self.name();
        for direction in ["-i", "-o"] {
            quietly(&format!("iptables -D DOCKER-USER {direction} {name}-h -j ACCEPT"));
        }
        quietly(&format!("nft delete table ip {name}"));
        quietly(&format!("ip netns delete {name}"));
        // A veth goes with its peer, but a namespace whose processes are only just dead takes it along later.
        quietly(&format!("ip link delete {name}-h"));
        let others = fs::read_dir("/run/netns").is_ok_and(|mut entries| entries.next().is_some());
        if !others && Path::new(FORWARDING_MARK).exists() {
            drop(fs::write(FORWARDING, "0"));
            drop(fs::remove_file(FORWARDING_MARK));
        }
    }

    fn sweep(&self) {
        self.disconnect();
        drop(fs::remove_dir_all(&self.base));
    }

    fn remains(&self, base_too: bool) -> Vec<String> {
        let name = self.name();
        let mut paths = vec![PathBuf::from(format!("/run/netns/{name}")), format!("/sys/class/net/{name}-h").into()];
        if base_too {
            paths.push(self.base.clone());
        }
        let mut remains: Vec<String> =
            paths.iter().filter(|path| path.exists()).map(|path| path.display().to_string()).collect();
        let table = format!("table ip {name}");
        let tables = Program::tool(&["nft", "list", "tables"]).run().map(|done| done.out()).unwrap_or_default();
        if tables.lines().any(|line| line.trim() == table) {
            remains.push(format!("nft {table}"));
        }
        let base = format!(" {}", self.base.display());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        remains.extend(mounts.lines().filter(|line| line.contains(&base)).map(|line| format!("mount {line}")));
        remains
    }
}

/// Runs a program and gives its exit code. Ctrl-C reaches the program too, which ends in its own order; a request to
/// terminate reaches this process only, and is carried out by killing the program.
pub(crate) async fn wait_through_signals(command: std::process::Command) -> io::Result<u8> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    let mut hangups = signal(SignalKind::hangup())?;
    let mut child = tokio::process::Command::from(command).spawn()?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            _ = interrupts.recv() => {}
            _ = terminations.recv() => child.start_kill()?,
            _ = hangups.recv() => child.start_kill()?,
        }
    };
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn take(slot: u8) -> Option<(u8, Flock<File>)> {
    let file = File::create(format!("{LOCKS}/slot-{slot}")).ok()?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).ok().map(|lock| (slot, lock))
}

fn tool(line: &str) -> Result<(), HostError> {
    let words: Vec<&str> = line.split(' ').collect();
    checked(Program::tool(&words), line)
}

fn checked(program: Program, line: &str) -> Result<(), HostError> {
    let done = program.run().map_err(io_error(format!("run `{line}`")))?;
    if done.code() == 0 {
        return Ok(());
    }
    Err(HostError::Command { command: line.to_owned(), said: done.err().trim().to_owned() })
}

/// Runs a step that is allowed to have nothing to do.
fn quietly(line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    drop(Program::tool(&words).run());
}
