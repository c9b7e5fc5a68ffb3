//! What a VM actor needs from the rest of the daemon, as one trait: the real one wires the other actors, the tests' one is
//! scripted. Every call is bounded in time by its implementation.

use futures::future::BoxFuture;
use messages::WireError;
use messages::guest::{AgentFrame, DaemonFrame, ExecSpec, GuestAnswer, GuestNetwork, GuestQuestion};
use messages::ids::{BootNonce, ImageName, InterfaceName, KernelName, OperationId, VmId, VmName};
use messages::image::ImageConfig;
use messages::privileged::TapNumber;
use messages::vm::{NetAllow, SshPublicKey};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Files and facts of an image with its kernel, held for one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifacts {
    pub image: PathBuf,
    pub image_uuid: String,
    pub config: ImageConfig,
    pub vmlinux: PathBuf,
    pub initramfs: PathBuf,
    pub command_line: String,
    /// File and file-system UUID.
    pub modules: Option<(PathBuf, String)>,
}

/// A tap, and the network as its guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapGrant {
    pub number: TapNumber,
    pub name: InterfaceName,
    pub guest: GuestNetwork,
}

/// Everything that one boot is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    pub artifacts: Artifacts,
    pub tap: Option<TapGrant>,
    pub disk: PathBuf,
    pub disk_uuid: String,
    /// Lines for root's `authorized_keys`.
    pub authorized_keys: Vec<String>,
}

/// What a VMM is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchPlan {
    pub vm: VmId,
    pub vcpus: u8,
    pub memory_mib: u32,
    pub boot: Boot,
}

/// How a VMM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmmExit {
    /// It ended by itself and without a complaint: what a guest's reset looks like.
    pub clean: bool,
    pub reason: String,
}

/// A running VMM. Dropping it does not end the VMM.
pub trait Vmm: Send + Sync {
    /// Its process id, for people.
    fn pid(&self) -> u32;
    /// Resolves once it is gone, also if it is gone already.
    fn exited(&self) -> BoxFuture<'static, VmmExit>;
    /// SIGKILL. Gone already is fine.
    fn kill(&self);
    /// Asks the guest's ACPI to end it.
    fn ctrl_alt_del(&self) -> BoxFuture<'static, Result<(), WireError>>;
}

/// What comes from a guest's agent. Hostile.
#[derive(Clone, Debug, PartialEq)]
pub enum LinkEvent {
    Frame(AgentFrame),
    /// The control stream broke; the agent redials.
    Down,
    /// The answer to [`Link::drain`]: all that the guest said has been told.
    Drained,
}

/// The control stream to a guest's agent, whether or not it is up. Dropping it closes the listener.
pub trait Link: Send + Sync {
    /// Queues a frame; lost while the stream is down, for the agent asks again.
    fn send(&self, frame: DaemonFrame);
    /// From now on only an agent that knows this nonce is let in: on Firecracker any program in the guest can dial the host.
    fn pin(&self, nonce: BootNonce);
    /// Asks for [`LinkEvent::Drained`] behind the last frame. For a VMM that has ended.
    fn drain(&self);
    /// Asks and waits for the answer.
    fn call(&self, question: GuestQuestion, limit: Duration) -> BoxFuture<'static, Result<GuestAnswer, WireError>>;
}

/// What became of a search for a VMM that outlived its daemon.
pub type Adopted = Option<Arc<dyn Vmm>>;

/// The rest of the daemon.
pub trait Ports: Send + Sync + 'static {
    /// Takes the image and kernel for this VM, which people know by this name; again is fine.
    fn artifacts(
        &self,
        vm: VmId,
        name: VmName,
        image: ImageName,
        kernel: KernelName,
    ) -> BoxFuture<'static, Result<Artifacts, WireError>>;
    /// Lets image and kernel go; not taken is fine.
    fn release_artifacts(&self, vm: VmId, image: ImageName, kernel: KernelName) -> BoxFuture<'static, ()>;
    /// Leases a tap, the wanted one if it is free; again gives the same. What is allowed is open before it answers.
    fn lease_tap(
        &self,
        vm: VmId,
        wanted: Option<TapNumber>,
        allow: Vec<NetAllow>,
    ) -> BoxFuture<'static, Result<TapGrant, WireError>>;
    /// Gives the tap back; none is fine.
    fn return_tap(&self, vm: VmId) -> BoxFuture<'static, ()>;
    /// Makes the VM's directory.
    fn make_dir(&self, vm: VmId) -> BoxFuture<'static, Result<(), WireError>>;
    /// Makes the VM's disk unless it is there. Path and file-system UUID.
    fn ensure_disk(&self, vm: VmId, bytes: u64) -> BoxFuture<'static, Result<(PathBuf, String), WireError>>;
    /// Starts a VMM and its guest. On an error nothing of it is alive.
    fn launch(&self, plan: LaunchPlan) -> BoxFuture<'static, Result<Arc<dyn Vmm>, WireError>>;
    /// Finds the VMM of this VM, if one lives.
    fn adopt(&self, vm: VmId) -> BoxFuture<'static, Result<Adopted, WireError>>;
    /// Listens for the agent of this VM.
    fn listen(&self, vm: VmId, events: mpsc::Sender<LinkEvent>)
    -> BoxFuture<'static, Result<Arc<dyn Link>, WireError>>;
    /// Opens an operation in the guest: the descriptor speaks guest frames.
    fn operation(
        &self,
        vm: VmId,
        operation: OperationId,
        exec: ExecSpec,
    ) -> BoxFuture<'static, Result<OwnedFd, WireError>>;
    /// The keys that open every VM, as lines for `authorized_keys`.
    fn authorized_keys(&self) -> BoxFuture<'static, Result<Vec<String>, WireError>>;
    /// Connects to the guest's SSH server.
    fn ssh(&self, vm: VmId) -> BoxFuture<'static, Result<OwnedFd, WireError>>;
    /// Tries whether the guest's SSH server has this host key and takes the managed key. Again later where the answer is
    /// [`ErrorKind::Unavailable`](messages::error::ErrorKind::Unavailable).
    fn ssh_answers(&self, vm: VmId, host: SshPublicKey) -> BoxFuture<'static, Result<(), WireError>>;
    /// Removes the VM's directory with everything in it; none is fine.
    fn remove_files(&self, vm: VmId) -> BoxFuture<'static, Result<(), WireError>>;
    /// Bounds the VM's console log.
    fn trim_logs(&self, vm: VmId);
    /// Notes how long the VM's logs are now, where they have grown.
    fn note_logs(&self, vm: VmId);
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64;
    /// Called between any two steps that change something outside: fault tests stop the world here.
    fn at_step(&self, _vm: VmId, _step: &'static str) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}
