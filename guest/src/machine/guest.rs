//! A guest: the boot from the initramfs to the image's init, and the end from the first wish to the reset.
//!
//! ```text
//!   spec ─▶ clock, entropy ─▶ drives, overlay ─▶ chroot ─▶ /proc … /run ─▶ identity ─▶ network ─▶ PID 1 moves ─▶ exec works
//!                                                                                                    └─▶ systemd settles
//! ```
//! What a restarted agent must know lies in `/run/banger`; it enters the root that PID 1 is in and goes on from there.

use super::ending::Ending;
use crate::agent::{Agent, Running};
use crate::exec::plan::Place;
use crate::exec::session::World;
use crate::identity::{self, RUNTIME_DIRECTORY};
use crate::mounts::{self, MountError};
use crate::network::{self, NetworkError};
use crate::ssh::setup::Keys;
use crate::systemd::{self, Init, Settled};
use crate::{init, serial_port, sys, transport};
use link::mux::Attach;
use messages::error::{ErrorKind, WireError};
use messages::frame;
use messages::guest::{BootSpec, SERIAL_PORT_NAME, StopKind};
use messages::ids::{BootNonce, VmId};
use messages::image::ImageConfig;
use messages::limits::GUEST_FRAME_MAX;
use messages::vm::Readiness;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The root of whatever PID 1 is now.
const ROOT_OF_PID_1: &str = "/proc/1/root";
const LINK_POLL: Duration = Duration::from_millis(2);
/// The host's context id.
const HOST_CID: u32 = 2;

/// Says which step of a boot failed.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("failed to hand over to the image's init")]
    HandOver(#[source] io::Error),
    #[error("failed to record the boot")]
    Record(#[source] io::Error),
    #[error("the boot was interrupted")]
    Interrupted,
}

impl From<BootError> for WireError {
    fn from(error: BootError) -> Self {
        Self::from_error(ErrorKind::Guest, &error)
    }
}

/// What a later agent must know.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    vm: VmId,
    nonce: BootNonce,
    config: ImageConfig,
    init: Init,
    readiness: Option<Readiness>,
    warning: Option<String>,
}

/// The guest around this agent.
#[derive(Debug)]
pub struct GuestMachine {
    /// To PID 1, until it has moved.
    pid_1: OwnedFd,
    record: Mutex<Option<Record>>,
    ending: Ending,
}

/// Runs as the agent of a guest, for ever.
///
/// # Errors
/// There is no link to be had.
pub async fn run(pid_1: OwnedFd, restarts: u32) -> io::Result<()> {
    init::survive_signals();
    // A command that the kernel must kill for its memory goes before the agent: see `sys::become_session`.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-999") {
        tracing::warn!(%error, "the agent is not preferred when memory runs out");
    }
    let machine = GuestMachine { pid_1, record: Mutex::default(), ending: Ending::default() };
    let agent = Agent::new(super::Machine::Guest(Box::new(machine)), restarts);
    let super::Machine::Guest(machine) = agent.machine() else { unreachable!("made above") };
    machine.resume(&agent);
    let attach = if restarts == 0 { Attach::Fresh } else { Attach::Resumed };
    let (dialer, acceptor) = open_link(attach).await?;
    tokio::spawn(crate::control::run(agent.clone(), dialer));
    tokio::spawn(super::ending::hear_verbs(agent.clone()));
    tokio::spawn(watch_shutdown(agent.clone()));
    agent.serve(acceptor).await;
    Err(io::Error::other("the link has ended"))
}

/// AF_VSOCK where a transport to a host is loaded, else banger-emu's port; waits for whichever comes up.
async fn open_link(attach: Attach) -> io::Result<(transport::Dialer, transport::Acceptor)> {
    loop {
        if let Ok(vsock) = File::open("/dev/vsock")
            && sys::vsock_context_id(vsock.as_fd()).is_some()
        {
            return transport::over_vsock(HOST_CID);
        }
        if let Some(path) = serial_port::find(SERIAL_PORT_NAME) {
            match serial_port::SerialPort::open(&path) {
                Ok(port) => return Ok(transport::over_port(port, attach, || sys::exit_now(1))),
                // An agent that was killed a moment ago may still have it.
                Err(error) => tracing::debug!(%error, "the port cannot be opened yet"),
            }
        }
        tokio::time::sleep(LINK_POLL).await;
    }
}

async fn watch_shutdown(agent: Arc<Agent>) {
    if let Err(error) = super::ending::watch_shutdown(agent).await {
        tracing::warn!(%error, "a shutdown of the guest's that hangs will not be ended");
    }
}

impl GuestMachine {
    /// Boots as the spec says.
    ///
    /// # Errors
    /// [`BootError`].
    pub async fn boot(&self, agent: &Arc<Agent>, spec: BootSpec) -> Result<(), BootError> {
        identity::wake(spec.clock_unix_ns, &spec.entropy)?;
        let drives = spec.drives.clone();
        let below = tokio::task::spawn_blocking(move || mounts::build(&drives)).await;
        let below = below.map_err(|_| BootError::Interrupted)??;
        mounts::enter(init::NEW_ROOT)?;
        mounts::furnish(&below)?;
        let warning = identity::assume(&spec)?.warning();
        let image_init = systemd::find_init(&spec.config);
        match &image_init {
            Init::Systemd(_) => {
                mounts::furnish_for_systemd();
                systemd::prepare(spec.network.as_ref())?;
            }
            Init::Other(_) | Init::None => mounts::furnish_without_init(),
        }
        network::configure(spec.network.as_ref()).await?;
        self.ending.keep_disk(below.disk);
        let record =
            Record { vm: spec.vm, nonce: spec.nonce, config: spec.config, init: image_init, readiness: None, warning };
        save(&record).map_err(BootError::Record)?;
        init::hand_over(&self.pid_1, record.init.program()).map_err(BootError::HandOver)?;
        self.take_up(agent, record).map_err(BootError::Record)
    }

    /// Whoever is here now has a root and an identity: commands can run.
    fn take_up(&self, agent: &Arc<Agent>, record: Record) -> io::Result<()> {
        let Record { vm, nonce, readiness, .. } = record;
        agent.run_as(Running { vm, nonce, readiness, warning: record.warning.clone() });
        let lost = agent.executor.registry.adopt(&Path::new(RUNTIME_DIRECTORY).join("operations"))?;
        if !lost.is_empty() {
            tracing::warn!(count = lost.len(), "operations were lost with an earlier agent");
        }
        agent.executor.enter(World { place: Place::Guest, config: record.config.clone(), keys: Keys::default() });
        let image_init = record.init.clone();
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = Some(record);
        self.reached(agent, Readiness::Agent, None);
        if readiness < Some(Readiness::System) {
            tokio::spawn(settle(agent.clone(), image_init));
        }
        Ok(())
    }

    fn reached(&self, agent: &Agent, level: Readiness, mut warning: Option<String>) {
        if let Some(record) = &mut *self.record.lock().unwrap_or_else(PoisonError::into_inner) {
            record.readiness = record.readiness.max(Some(level));
            // What was said at an earlier level is still true.
            warning = match (warning, record.warning.take()) {
                (Some(new), Some(old)) if !old.contains(&new) => Some(format!("{old}; {new}")),
                (new, old) => old.or(new),
            };
            record.warning.clone_from(&warning);
            if let Err(error) = save(record) {
                tracing::warn!(%error, "a restart of the agent will forget how ready the guest is");
            }
        }
        agent.ready(level, warning);
    }

    /// Goes on after an earlier agent, where there was one that had come to the end of the boot.
    fn resume(&self, agent: &Arc<Agent>) {
        let identity = |path: &str| fs::metadata(path).map(|it| (it.dev(), it.ino())).ok();
        if identity(ROOT_OF_PID_1) == identity("/") {
            // PID 1 still waits: whatever was begun is begun anew.
            mounts::clean_up();
            return;
        }
        let disk = mounts::reopen_disk();
        if let Err(error) = mounts::enter(ROOT_OF_PID_1) {
            return tracing::error!(%error, "the guest's root is out of reach");
        }
        if let Some(disk) = disk {
            self.ending.keep_disk(disk);
        }
        match load() {
            Ok(record) => {
                if let Err(error) = self.take_up(agent, record) {
                    tracing::error!(%error, "the earlier agent's records cannot be read");
                }
            }
            Err(error) => tracing::error!(%error, "the record of the boot cannot be read"),
        }
    }

    /// Takes over another identity while running.
    ///
    /// # Errors
    /// [`BootError`].
    pub async fn identify_anew(&self, spec: BootSpec) -> Result<(), BootError> {
        identity::wake(spec.clock_unix_ns, &spec.entropy)?;
        // What is lacking has been logged; who looks at the VM is told at the next boot.
        identity::assume(&spec)?;
        network::configure(spec.network.as_ref()).await?;
        let record = &mut *self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = record else { return Err(BootError::Interrupted) };
        (record.vm, record.nonce) = (spec.vm, spec.nonce);
        save(record).map_err(BootError::Record)
    }

    /// The image's init, once it is known.
    #[must_use]
    pub fn image_init(&self) -> Option<Init> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|record| record.init.clone())
    }

    /// The way down.
    #[must_use]
    pub fn ending(&self) -> &Ending {
        &self.ending
    }

    /// Stops the image's init as it wants to be stopped, and resets the machine at the latest by `deadline`.
    pub async fn stop(&self, agent: &Arc<Agent>, kind: StopKind, deadline: Duration) {
        self.ending.ask(kind);
        match self.image_init() {
            Some(Init::Systemd(_)) => super::ending::ask_systemd(super::ending::own_share(deadline)).await,
            Some(Init::Other(_)) => {
                super::ending::run_reboot_program(agent, kind).await;
                tokio::time::sleep(super::ending::own_share(deadline)).await;
            }
            Some(Init::None) | None => return self.ending.finish(agent, kind, deadline).await,
        }
        tracing::warn!("the image's init did not end in time");
        self.ending.finish(agent, kind, Duration::ZERO).await;
    }
}

async fn settle(agent: Arc<Agent>, image_init: Init) {
    let warning = match image_init {
        Init::Systemd(_) => match systemd::settled().await {
            Settled::Running => None,
            Settled::Degraded(warning) => Some(warning),
        },
        Init::Other(_) | Init::None => None,
    };
    if let super::Machine::Guest(machine) = agent.machine() {
        machine.reached(&agent, Readiness::System, warning);
    }
}

fn record_path() -> std::path::PathBuf {
    Path::new(RUNTIME_DIRECTORY).join("boot")
}

/// Written beside and renamed: an agent killed in the middle leaves the old one.
fn save(record: &Record) -> io::Result<()> {
    let bytes = frame::encode(record, GUEST_FRAME_MAX).map_err(io::Error::other)?;
    let path = record_path();
    let draft = path.with_extension("new");
    fs::write(&draft, &bytes[frame::HEADER_LEN..])?;
    fs::rename(draft, path)
}

fn load() -> io::Result<Record> {
    frame::decode(&fs::read(record_path())?).map_err(io::Error::other)
}
