//! QEMU as a child: starting it so that it dies with us, telling it what to do, hearing its last words.

use super::accelerator::Accelerator;
use super::command_line::{Descriptors, Origin, arguments};
use super::kernel_args;
use super::qmp::{Qmp, QmpError};
use super::{End, Machine, MachineError, Started};
use crate::emu::resources::Resources;
use crate::emu::sys;
use crate::emu::tsc::Reading;
use serde_json::json;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Names another QEMU than the one on the path.
pub const QEMU_ENV: &str = "BANGER_QEMU";
const QEMU: &str = "qemu-system-x86_64";
/// How long QEMU may take to build its machine. It needs 0.2 s; a host may be loaded or out of memory.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How much of what QEMU says is kept for an error, in bytes.
const WORDS_MAX: usize = 4096;
/// A saved machine is written at the disk's speed: QEMU's own limit is meant for networks. In bytes per second.
const MIGRATION_BANDWIDTH: u64 = 1 << 40;

/// How QEMU runs its guest.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Whether QEMU's seccomp filter is on.
    pub sandbox: bool,
    pub accelerator: Accelerator,
}

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    qmp: Qmp,
    words: Words,
    ended: Option<End>,
}

/// What QEMU wrote to its standard error, for errors and the log.
#[derive(Debug)]
struct Words {
    text: watch::Receiver<String>,
    reader: JoinHandle<()>,
}

impl Words {
    fn listen(stderr: ChildStderr) -> Self {
        let (sender, text) = watch::channel(String::new());
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                tracing::warn!(%line, "QEMU");
                sender.send_modify(|text| {
                    if text.len() + line.len() < WORDS_MAX {
                        text.push_str(if text.is_empty() { "" } else { "; " });
                        text.push_str(line.trim_start_matches(QEMU).trim_start_matches(": "));
                    }
                });
            }
        });
        Self { text, reader }
    }

    /// Everything it said; to be asked once it is dead.
    async fn all(&mut self) -> String {
        // The pipe ends with the process, unless something inherited it: don't wait for that.
        drop(tokio::time::timeout(Duration::from_secs(1), &mut self.reader).await);
        self.text.borrow().clone()
    }
}

/// Starts QEMU and waits until it has built its machine, which is when the vCPUs start.
///
/// # Errors
/// [`MachineError`], with QEMU's own words where it has any. No process is left then.
pub async fn start(
    resources: &Resources,
    tsc: Reading,
    incoming: Option<File>,
    manner: Manner,
) -> Result<Started, MachineError> {
    let command_line = match (&resources.boot_source, &incoming) {
        (_, Some(_)) => None,
        (Some(source), None) => {
            let khz = match manner.accelerator {
                Accelerator::Tcg => Some(tsc.khz().await),
                Accelerator::Kvm => None,
            };
            Some(kernel_args::for_qemu(source, resources.root_drive(), khz))
        }
        (None, None) => return Err(MachineError::NoKernel),
    };
    let origin = command_line.as_deref().map_or(Origin::Snapshot, Origin::Kernel);
    let (our_qmp, qmp) = pair()?;
    let (our_link, link) = resources.vsock.is_some().then(pair).transpose()?.unzip();
    let (our_console, console) = resources.serial.rate_limiter.is_some().then(pair).transpose()?.unzip();
    let descriptors = Descriptors {
        qmp: qmp.as_raw_fd(),
        link: link.as_ref().map(AsRawFd::as_raw_fd),
        console: console.as_ref().map(AsRawFd::as_raw_fd),
    };
    let program = std::env::var_os(QEMU_ENV).unwrap_or_else(|| OsString::from(QEMU));
    let mut command = Command::new(&program);
    command.args(arguments(resources, descriptors, origin, manner)).stderr(Stdio::piped()).kill_on_drop(true);
    if resources.serial.serial_out_path.is_some() || console.is_some() {
        command.stdin(Stdio::null()).stdout(Stdio::null());
    }
    tracing::debug!(command = ?command.as_std(), "starting QEMU");
    let inherited: Vec<&OwnedFd> = [Some(&qmp), link.as_ref(), console.as_ref()].into_iter().flatten().collect();
    sys::bind_to_parent(&mut command, &inherited);
    let spawned = command.spawn().map_err(|source| MachineError::Spawn {
        program: program.to_string_lossy().into_owned(),
        hint: if source.kind() == std::io::ErrorKind::NotFound {
            "; Debian and Ubuntu have it in the package `qemu-system-x86`"
        } else {
            ""
        },
        source,
    });
    // QEMU has its copies now; ours would keep the sockets open past its death.
    drop((qmp, link, console));
    let mut child = spawned?;
    let mut words = Words::listen(child.stderr.take().expect("stderr was piped"));
    let qmp = match tokio::time::timeout(START_DEADLINE, Qmp::connect(our_qmp)).await {
        Ok(Ok(qmp)) => qmp,
        Ok(Err(error)) => return Err(last_words(child, &mut words, error).await),
        Err(_) => return Err(MachineError::Slow(START_DEADLINE.as_secs())),
    };
    let mut qemu = Qemu { child, qmp, words, ended: None };
    if let Some(memory) = incoming {
        qemu.restore(memory).await?;
    }
    Ok(Started { machine: Machine::Qemu(Box::new(qemu)), link: our_link, console: our_console })
}

fn pair() -> Result<(UnixStream, OwnedFd), MachineError> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(MachineError::Setup)?;
    ours.set_nonblocking(true).map_err(MachineError::Setup)?;
    Ok((UnixStream::from_std(ours).map_err(MachineError::Setup)?, theirs.into()))
}

/// Ends a QEMU that failed and gathers why.
async fn last_words(mut child: Child, words: &mut Words, error: QmpError) -> MachineError {
    // It closed its monitor because it exits, with the reason on stderr; if not, it is of no use any more.
    let exited = tokio::time::timeout(Duration::from_secs(5), child.wait()).await;
    if exited.is_err() && child.start_kill().is_err() {
        tracing::warn!("QEMU ended while it was being killed");
    }
    let said = words.all().await;
    match exited {
        _ if !said.is_empty() => MachineError::Qemu(said),
        Ok(Ok(status)) => MachineError::Qemu(format!("{error} ({status})")),
        _ => MachineError::Qmp(error),
    }
}

impl Qemu {
    /// Waits for its exit.
    pub async fn ended(&mut self) -> End {
        if let Some(end) = &self.ended {
            return end.clone();
        }
        let status = self.child.wait().await;
        let end = match status {
            Ok(status) if status.success() => End::Guest,
            Ok(status) => {
                let said = self.words.all().await;
                let colon = if said.is_empty() { "" } else { ": " };
                End::Failed(format!("QEMU ended ({status}){colon}{said}"))
            }
            Err(error) => End::Failed(format!("QEMU's end cannot be waited for: {error}")),
        };
        self.ended = Some(end.clone());
        end
    }

    pub(super) async fn pause(&mut self) -> Result<(), MachineError> {
        Ok(self.qmp.execute("stop", json!({})).await.map(drop)?)
    }

    pub(super) async fn resume(&mut self) -> Result<(), MachineError> {
        Ok(self.qmp.execute("cont", json!({})).await.map(drop)?)
    }

    pub(super) async fn power_down(&mut self) -> Result<(), MachineError> {
        Ok(self.qmp.execute("system_powerdown", json!({})).await.map(drop)?)
    }

    pub(super) async fn save(&mut self, file: File) -> Result<(), MachineError> {
        self.prepare_migration().await?;
        self.qmp.send_descriptor("save", file.as_fd()).await?;
        self.qmp.execute("migrate", json!({"uri": "fd:save"})).await?;
        self.migrated("query-migrate").await
    }

    async fn restore(&mut self, memory: File) -> Result<(), MachineError> {
        self.prepare_migration().await?;
        self.qmp.send_descriptor("load", memory.as_fd()).await?;
        self.qmp.execute("migrate-incoming", json!({"uri": "fd:load"})).await?;
        match self.migrated("query-migrate").await {
            Ok(()) => Ok(()),
            // A stream that cannot be loaded ends QEMU, which says why on its way out.
            Err(error) => {
                self.kill().await;
                let said = self.words.all().await;
                Err(if said.is_empty() { error } else { MachineError::Qemu(said) })
            }
        }
    }

    async fn prepare_migration(&mut self) -> Result<(), MachineError> {
        let events = json!({"capabilities": [{"capability": "events", "state": true}]});
        self.qmp.execute("migrate-set-capabilities", events).await?;
        let bandwidth = json!({"max-bandwidth": MIGRATION_BANDWIDTH});
        self.qmp.execute("migrate-set-parameters", bandwidth).await?;
        self.qmp.expect_migration();
        Ok(())
    }

    async fn migrated(&mut self, query: &'static str) -> Result<(), MachineError> {
        match self.qmp.migrated().await {
            Ok(()) => Ok(()),
            Err(QmpError::Migration(status)) => {
                let reply = self.qmp.execute(query, json!({})).await.unwrap_or_default();
                let why = reply["error-desc"].as_str().map_or(status, str::to_owned);
                Err(QmpError::Migration(why).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Kills it and waits.
    pub async fn kill(&mut self) {
        if self.ended.is_none() && self.child.kill().await.is_err() {
            tracing::warn!("QEMU ended while it was being killed");
        }
    }
}
