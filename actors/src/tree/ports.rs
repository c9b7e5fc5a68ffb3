//! The real [`Ports`]: wires a VM actor to the other actors, to VMMs and to agents. Decides nothing.

use super::sources::{ArtifactSource, TapSource};
use super::sweep;
use crate::agent_link::{self, AgentLink};
use crate::ext4::{Superblock, disk};
use crate::paths::Paths;
use crate::ssh::{KeyPlace, probe};
use crate::vm::ports::{Adopted, Artifacts, LaunchPlan, Link, LinkEvent, Ports, TapGrant, Vmm as VmmHandle, VmmExit};
use crate::vmm::{self, Driver, Exit, Process, Tap, VmFiles, VmmConfig};
use futures::future::BoxFuture;
use messages::error::{ErrorKind, WireError};
use messages::guest::{AgentFrame, DaemonFrame, ExecSpec, GuestAnswer, GuestQuestion, SSH_PORT};
use messages::ids::{BootNonce, ImageName, KernelName, OperationId, VmId, VmName};
use messages::privileged::TapNumber;
use messages::vm::{NetAllow, SshPublicKey};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

/// The name of a VM's disk in its directory.
const DISK: &str = "disk.ext4";
/// How much of a console is kept, in bytes.
const CONSOLE_KEEP: u64 = 4 << 20;

/// From the first byte to the proof of the managed key. Generous: a guest that is just starting its sshd makes us wait.
const SSH_HANDSHAKE: Duration = Duration::from_secs(60);
/// For the guest's agent to take a connection.
const SSH_DIAL: Duration = Duration::from_secs(15);

async fn dial_ssh(files: &VmFiles) -> Result<UnixStream, WireError> {
    agent_link::dial(&files.vsock(), SSH_PORT, SSH_DIAL)
        .await
        .map_err(|error| error.to_wire().context("the guest takes no SSH connection"))
}

/// The rest of the daemon, as a VM sees it.
pub(super) struct HostPorts {
    pub(super) paths: Arc<Paths>,
    pub(super) vmm: PathBuf,
    pub(super) artifacts: Arc<dyn ArtifactSource>,
    pub(super) taps: Arc<dyn TapSource>,
    pub(super) ssh_key: KeyPlace,
}

pub(super) fn host_error(what: &str, error: &(dyn std::error::Error + 'static)) -> WireError {
    WireError::from_error(ErrorKind::Host, error).context(what)
}

/// Runs what may block on a thread for that.
pub(super) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, WireError> + Send + 'static,
) -> Result<T, WireError> {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(WireError::from_error(ErrorKind::Internal, &error).context(what)))
}

impl HostPorts {
    fn files(&self, vm: VmId) -> Result<VmFiles, WireError> {
        VmFiles::new(vm, self.paths.vm_dir(vm)).map_err(|error| WireError::from_error(ErrorKind::Host, &error))
    }
}

/// The UUID of the file system in a disk that is there already; `None` where there is no disk, or none any more.
fn disk_uuid(path: &Path) -> Result<Option<String>, WireError> {
    let unreadable = |error: &(dyn std::error::Error + 'static)| host_error("the VM's disk cannot be read", error);
    match std::fs::File::open(path) {
        Ok(file) => match Superblock::read(&file) {
            Ok(superblock) => Ok(Some(superblock.uuid.hyphenated().to_string())),
            // A power cut soon after the create: the file has its name and size, and nothing of it had been written.
            Err(_) if lseek(&file, 0, Whence::SeekData) == Err(Errno::ENXIO) => {
                tracing::warn!(path = %path.display(), "a disk is empty: it is made anew");
                std::fs::remove_file(path).map_err(|error| unreadable(&error))?;
                Ok(None)
            }
            Err(error) => Err(unreadable(&error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(&error)),
    }
}

impl Ports for HostPorts {
    fn artifacts(
        &self,
        vm: VmId,
        name: VmName,
        image: ImageName,
        kernel: KernelName,
    ) -> BoxFuture<'static, Result<Artifacts, WireError>> {
        self.artifacts.acquire(vm, name, image, kernel)
    }

    fn release_artifacts(&self, vm: VmId, image: ImageName, kernel: KernelName) -> BoxFuture<'static, ()> {
        self.artifacts.release(vm, image, kernel)
    }

    fn lease_tap(
        &self,
        vm: VmId,
        wanted: Option<TapNumber>,
        allow: Vec<NetAllow>,
    ) -> BoxFuture<'static, Result<TapGrant, WireError>> {
        self.taps.lease(vm, wanted, allow)
    }

    fn return_tap(&self, vm: VmId) -> BoxFuture<'static, ()> {
        self.taps.give_back(vm)
    }

    fn make_dir(&self, vm: VmId) -> BoxFuture<'static, Result<(), WireError>> {
        let dir = self.paths.vm_dir(vm);
        Box::pin(blocking("make the VM's directory", move || {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|error| host_error("failed to make the VM's directory", &error))
        }))
    }

    fn ensure_disk(&self, vm: VmId, bytes: u64) -> BoxFuture<'static, Result<(PathBuf, String), WireError>> {
        let path = self.paths.vm_dir(vm).join(DISK);
        let templates = self.paths.templates_dir();
        Box::pin(blocking("make the VM's disk", move || {
            let uuid = match disk_uuid(&path)? {
                Some(uuid) => uuid,
                None => disk::create_disk(&templates, &path, bytes)
                    .map_err(|error| host_error("failed to make the VM's disk", &error))?
                    .hyphenated()
                    .to_string(),
            };
            Ok((path, uuid))
        }))
    }

    fn launch(&self, plan: LaunchPlan) -> BoxFuture<'static, Result<Arc<dyn VmmHandle>, WireError>> {
        let config = self.files(plan.vm).map(|files| VmmConfig {
            files,
            binary: self.vmm.clone(),
            kernel: plan.boot.artifacts.vmlinux,
            initramfs: plan.boot.artifacts.initramfs,
            command_line: plan.boot.artifacts.command_line,
            vcpus: plan.vcpus,
            memory_mib: plan.memory_mib,
            image: plan.boot.artifacts.image,
            disk: plan.boot.disk,
            modules: plan.boot.artifacts.modules.map(|(path, _)| path),
            tap: plan.boot.tap.map(|tap| Tap { name: tap.name, mac: tap.guest.mac, mtu: tap.guest.mtu }),
        });
        Box::pin(async move {
            let running = vmm::launch(config?).await.map_err(|error| error.to_wire())?;
            // A daemon that holds a connection to each of its VMMs holds their buffers too.
            running.driver.rest();
            Ok(Arc::new(Running { process: running.process, driver: running.driver }) as Arc<dyn VmmHandle>)
        })
    }

    fn adopt(&self, vm: VmId) -> BoxFuture<'static, Result<Adopted, WireError>> {
        let files = self.files(vm);
        Box::pin(async move {
            let files = files?;
            let process = vmm::adopt(&files).await.map_err(|error| host_error("failed to look for the VMM", &error))?;
            Ok(process.map(|process| {
                Arc::new(Running { process, driver: Driver::new(files.api_socket()) }) as Arc<dyn VmmHandle>
            }))
        })
    }

    fn listen(
        &self,
        vm: VmId,
        events: mpsc::Sender<LinkEvent>,
    ) -> BoxFuture<'static, Result<Arc<dyn Link>, WireError>> {
        let files = self.files(vm);
        Box::pin(async move {
            let (link, mut heard) = AgentLink::listen(&files?.agent_socket())
                .map_err(|error| host_error("failed to listen for the guest's agent", &error))?;
            tokio::spawn(async move {
                while let Some(event) = heard.recv().await {
                    let Some(event) = translate(event) else { continue };
                    if events.send(event).await.is_err() {
                        break;
                    }
                }
            });
            Ok(Arc::new(RealLink(link)) as Arc<dyn Link>)
        })
    }

    fn operation(
        &self,
        vm: VmId,
        operation: OperationId,
        exec: ExecSpec,
    ) -> BoxFuture<'static, Result<OwnedFd, WireError>> {
        let files = self.files(vm);
        Box::pin(async move {
            let stream = agent_link::open_operation(&files?.vsock(), operation, &exec)
                .await
                .map_err(|error| error.to_wire().context("the guest's agent does not take the command"))?;
            let stream = stream.into_std().map_err(|error| host_error("failed to hand over the connection", &error))?;
            Ok(OwnedFd::from(stream))
        })
    }

    fn authorized_keys(&self) -> BoxFuture<'static, Result<Vec<String>, WireError>> {
        let place = self.ssh_key.clone();
        Box::pin(blocking("read the SSH key", move || Ok(vec![place.load()?.public])))
    }

    fn ssh(&self, vm: VmId) -> BoxFuture<'static, Result<OwnedFd, WireError>> {
        let files = self.files(vm);
        Box::pin(async move {
            let stream = dial_ssh(&files?).await?.into_std();
            Ok(OwnedFd::from(stream.map_err(|error| host_error("failed to hand over the connection", &error))?))
        })
    }

    fn ssh_answers(&self, vm: VmId, host: SshPublicKey) -> BoxFuture<'static, Result<(), WireError>> {
        let (files, place) = (self.files(vm), self.ssh_key.clone());
        Box::pin(async move {
            let key = blocking("read the SSH key", move || Ok(place.load()?)).await?;
            let stream = dial_ssh(&files?).await?;
            let shaken = tokio::time::timeout(SSH_HANDSHAKE, probe::handshake(stream, &host, key)).await;
            match shaken {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) if error.is_final() => Err(error.to_wire()),
                Ok(Err(error)) => Err(WireError { kind: ErrorKind::Unavailable, ..error.to_wire() }),
                Err(_) => Err(WireError::new(ErrorKind::Unavailable, "the guest's SSH server did not answer in time")),
            }
        })
    }

    fn remove_files(&self, vm: VmId) -> BoxFuture<'static, Result<(), WireError>> {
        let files = self.files(vm);
        Box::pin(async move { sweep::remove(files?).await })
    }

    fn trim_logs(&self, vm: VmId) {
        let Ok(files) = self.files(vm) else { return };
        for path in [files.console(), files.log()] {
            if let Err(error) = vmm::logs::trim(&path, CONSOLE_KEEP)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::debug!(path = %path.display(), error = %error, "cannot bound a log");
            }
        }
    }

    fn note_logs(&self, vm: VmId) {
        let Ok(files) = self.files(vm) else { return };
        for path in [files.console(), files.log()] {
            if let Err(error) = vmm::marks::note(&path, || self.now_ms()) {
                tracing::debug!(path = %path.display(), error = %error, "cannot note when a log grew");
            }
        }
    }

    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

fn translate(event: agent_link::LinkEvent) -> Option<LinkEvent> {
    match event {
        agent_link::LinkEvent::Connected { running, uptime_us, restarts, .. } => {
            Some(LinkEvent::Frame(AgentFrame::Identify { running, uptime_us, restarts }))
        }
        agent_link::LinkEvent::Frame { frame, .. } => Some(LinkEvent::Frame(frame)),
        agent_link::LinkEvent::Disconnected { why, .. } => {
            tracing::debug!(error = %why, "a control stream ended");
            Some(LinkEvent::Down)
        }
        agent_link::LinkEvent::Refused { why } => {
            // Not louder: a guest can have this said ten times a second, for ever.
            tracing::debug!(error = %why, "something in a guest was turned away");
            None
        }
        agent_link::LinkEvent::Drained => Some(LinkEvent::Drained),
    }
}

struct RealLink(AgentLink);

impl Link for RealLink {
    fn send(&self, frame: DaemonFrame) {
        let link = &self.0;
        // The connection of now: an answer to a question is worth nothing to the next one.
        let Some(connection) = link.connection() else { return };
        if let Err(error) = link.send(connection, &frame) {
            // One that is too long would be lost again and again; the others come anew with the next connection.
            match error {
                agent_link::CallError::Frame(_) => {
                    tracing::error!(error = %error, "a frame for the agent cannot be sent")
                }
                _ => tracing::debug!(error = %error, "a frame for the agent was lost"),
            }
        }
    }

    fn pin(&self, nonce: BootNonce) {
        self.0.pin(Some(nonce));
    }

    fn drain(&self) {
        self.0.drain();
    }

    fn call(&self, question: GuestQuestion, limit: Duration) -> BoxFuture<'static, Result<GuestAnswer, WireError>> {
        let link = self.0.clone();
        Box::pin(async move { link.call(question, limit).await.map_err(|error| error.to_wire()) })
    }
}

struct Running {
    process: Process,
    driver: Driver,
}

impl VmmHandle for Running {
    fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn exited(&self) -> BoxFuture<'static, VmmExit> {
        let process = self.process.clone();
        Box::pin(async move {
            let exit = process.wait().await;
            VmmExit { clean: matches!(exit, Exit::Code(0)), reason: exit.to_string() }
        })
    }

    fn kill(&self) {
        if let Err(error) = self.process.kill() {
            tracing::error!(pid = self.process.pid(), error = %error, "cannot kill a VMM");
        }
    }

    fn ctrl_alt_del(&self) -> BoxFuture<'static, Result<(), WireError>> {
        let driver = self.driver.clone();
        Box::pin(async move {
            driver.send_ctrl_alt_del().await.map_err(|error| WireError::from_error(ErrorKind::Guest, &error))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_of_which_nothing_was_written_is_none_and_a_damaged_one_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(DISK);
        assert!(disk_uuid(&path).unwrap().is_none());
        for length in [0, 1 << 20] {
            std::fs::File::create(&path).unwrap().set_len(length).unwrap();
            assert!(disk_uuid(&path).unwrap().is_none());
            assert!(!path.exists(), "room for a new one");
        }
        std::fs::write(&path, [7; 8192]).unwrap();
        assert!(disk_uuid(&path).is_err());
        assert!(path.exists(), "somebody may want to look at it");
    }
}
