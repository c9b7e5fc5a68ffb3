//! Starts one VM: each step is a type that the next step consumes, and whatever is not carried to the end kills the VMM.
//!
//! ```text
//!   VmmConfig ──spawn──▶ Spawned ──connect──▶ Connected ──configure──▶ Configured ──start──▶ Running
//!                            └──────────────────┴── failed or dropped ──┴──▶ killed, sockets removed
//! ```

use super::api::{
    ApiError, BootSource, CacheType, CallLimits, Drive, Driver, EntropyDevice, MachineConfiguration, NetworkInterface,
    SerialDevice, Vsock,
};
use super::files::VmFiles;
use super::logs::{self, CONSOLE_RATE};
use super::process::{self, Exit, Process, ProcessError};
use actors_sys::watched_fd::WatchedFd;
use futures::future::BoxFuture;
use messages::error::{ErrorKind, WireError};
use messages::ids::InterfaceName;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};

/// The guest's address on its vsock. The number means something only within one VMM.
pub const GUEST_CID: u32 = 3;
/// How long a killed VMM may take to be gone: its memory is freed, its I/O ends.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);
/// How much of the VMM's log goes into an error.
const EXCERPT_LINES: usize = 5;
const EXCERPT_BYTES: u64 = 4096;

/// How long the steps of a start may take.
#[derive(Clone, Copy, Debug)]
pub struct LaunchLimits {
    /// From the VMM's start until it listens. A few milliseconds; the default is for a host that swaps.
    pub listen: Duration,
    pub calls: CallLimits,
}

impl Default for LaunchLimits {
    fn default() -> Self {
        Self { listen: Duration::from_secs(20), calls: CallLimits::default() }
    }
}

/// A tap to give to a guest.
#[derive(Clone, Debug)]
pub struct Tap {
    pub name: InterfaceName,
    pub mac: [u8; 6],
    pub mtu: Option<u16>,
}

/// All that a VMM is told.
#[derive(Clone, Debug)]
pub struct VmmConfig {
    pub files: VmFiles,
    /// The VMM: see [`super::choose`].
    pub binary: PathBuf,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub command_line: String,
    pub vcpus: u8,
    pub memory_mib: u32,
    /// Read-only, shared.
    pub image: PathBuf,
    /// The VM's own.
    pub disk: PathBuf,
    /// Read-only.
    pub modules: Option<PathBuf>,
    pub tap: Option<Tap>,
}

/// A VM whose guest has been started.
#[derive(Clone, Debug)]
pub struct Running {
    pub process: Process,
    pub driver: Driver,
}

/// The steps of a start, as an error names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Spawn,
    Connect,
    Configure,
    Start,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Spawn => "start the VMM",
            Self::Connect => "reach the VMM",
            Self::Configure => "configure the VMM",
            Self::Start => "start the guest",
        })
    }
}

/// Says how a start failed. The VMM is dead and its sockets are gone.
#[derive(Debug, thiserror::Error)]
#[error("failed to {step}")]
pub struct LaunchError {
    pub step: Step,
    /// The last lines of `vmm.log`, fit for a terminal.
    pub log: Vec<String>,
    #[source]
    pub cause: Cause,
}

/// What stopped a step.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("the VMM ended with {0}")]
    Died(Exit),
    #[error("the VMM did not listen on its socket within {} ms", .0.as_millis())]
    NeverListened(Duration),
    #[error("failed to connect to the VMM's socket")]
    Socket(#[source] io::Error),
}

impl LaunchError {
    /// The error as it crosses a socket: its chain, then what the VMM's log says.
    #[must_use]
    pub fn to_wire(&self) -> WireError {
        let kind = match &self.cause {
            Cause::Process(_) | Cause::Socket(_) => ErrorKind::Host,
            Cause::NeverListened(_) | Cause::Api(ApiError::Timeout { .. }) => ErrorKind::Timeout,
            Cause::Api(_) | Cause::Died(_) => ErrorKind::Guest,
        };
        let mut wire = WireError::from_error(kind, self);
        if !self.log.is_empty() {
            wire.chain.push(format!("the VMM's log ends with: {}", self.log.join(" | ")));
        }
        wire
    }
}

/// Starts a VMM, configures it and starts the guest. Dropping the future kills the VMM.
///
/// # Errors
/// See [`LaunchError`].
pub async fn launch(config: VmmConfig) -> Result<Running, LaunchError> {
    launch_within(config, LaunchLimits::default()).await
}

/// [`launch`] with other limits.
///
/// # Errors
/// See [`LaunchError`].
pub async fn launch_within(config: VmmConfig, limits: LaunchLimits) -> Result<Running, LaunchError> {
    let files = config.files.clone();
    let spawned = Spawned::new(config, limits).await.map_err(|cause| failed(&files, Step::Spawn, cause))?;
    let connected = spawned.connect().await?;
    let configured = connected.configure().await?;
    configured.start().await
}

fn failed(files: &VmFiles, step: Step, cause: Cause) -> LaunchError {
    LaunchError { step, log: logs::tail(&files.log(), EXCERPT_LINES, EXCERPT_BYTES), cause }
}

/// Kills the VMM unless it is let go.
#[derive(Debug)]
struct Guard(Option<Process>);

impl Guard {
    fn process(&self) -> &Process {
        self.0.as_ref().expect("taken only by `release` and `fail`, which consume the guard")
    }

    fn release(mut self) -> Process {
        self.0.take().expect("taken only here and in `fail`, which consume the guard")
    }

    /// Kills the VMM, waits until nothing of it is left, and says why.
    async fn fail(self, files: &VmFiles, step: Step, cause: Cause) -> LaunchError {
        let process = self.release();
        if let Err(error) = process.kill_and_wait(KILL_TIMEOUT).await {
            tracing::error!(vm = %files.vm(), pid = process.pid(), %error, "cannot end a VMM that failed to start");
        }
        // If it died by itself, that is the reason, and the broken connection only its sign. (SIGKILL may have been ours.)
        let cause = match (cause, process.exit()) {
            (cause, Some(Exit::Signal(9) | Exit::Unknown) | None) => cause,
            (Cause::Api(ApiError::Broken { .. } | ApiError::Connect { .. }), Some(exit)) => Cause::Died(exit),
            (cause, Some(_)) => cause,
        };
        failed(files, step, cause)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(process) = self.0.take()
            && let Err(error) = process.kill()
        {
            tracing::error!(pid = process.pid(), %error, "cannot end a VMM that nobody waits for");
        }
    }
}

/// The process is there; whether it listens yet is not known.
#[derive(Debug)]
struct Spawned {
    config: VmmConfig,
    limits: LaunchLimits,
    guard: Guard,
    /// Says when something appears in the VM's directory. `None`: this host has no watches left.
    arrivals: Option<Arrivals>,
}

impl Spawned {
    async fn new(config: VmmConfig, limits: LaunchLimits) -> Result<Self, Cause> {
        let files = &config.files;
        let arrivals = Arrivals::watch(files.dir());
        let mut arguments: Vec<OsString> = vec!["--api-sock".into(), files.api_socket().into()];
        arguments.extend(["--id", &files.vm().to_string(), "--level", "Warning"].map(OsString::from));
        let process = process::spawn(files, &config.binary, arguments).await?;
        Ok(Self { config, limits, guard: Guard(Some(process)), arrivals })
    }

    async fn connect(self) -> Result<Connected, LaunchError> {
        let files = self.config.files.clone();
        let socket = files.api_socket();
        let driver = match reach(&socket, self.arrivals, self.guard.process(), self.limits.listen).await {
            Ok(stream) => Driver::over(&socket, stream, self.limits.calls).await.map_err(Cause::Api),
            Err(cause) => Err(cause),
        };
        match driver {
            Ok(driver) => Ok(Connected { config: self.config, guard: self.guard, driver }),
            Err(cause) => Err(self.guard.fail(&files, Step::Connect, cause).await),
        }
    }
}

/// Says when something appears in a directory.
#[derive(Debug)]
struct Arrivals(Option<WatchedFd>);

impl Arrivals {
    fn watch(dir: &Path) -> Option<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
        inotify.add_watch(dir, AddWatchFlags::IN_CREATE).ok()?;
        WatchedFd::new(OwnedFd::from(inotify)).ok().map(|watched| Self(Some(watched)))
    }

    /// Waits for something to appear, and forgets what it was: a look at the socket tells.
    async fn next(&self) {
        let Some(watched) = &self.0 else { return };
        let mut events = [0; 4096];
        let read = |fd: &OwnedFd| Ok(nix::unistd::read(fd, &mut events)?);
        if let Err(error) = watched.async_io(Interest::READABLE, read).await {
            tracing::debug!(%error, "cannot watch for the VMM's socket");
            sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Arrivals {
    /// The kernel closes an inotify descriptor once nobody can be looking at its marks any more (`synchronize_srcu`), which takes
    /// 5 to 20 ms: not on a thread that others wait for.
    fn drop(&mut self) {
        if let (Some(watched), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn_blocking(|| drop(watched));
        }
    }
}

/// How often a socket that is bound is tried at once: `listen` follows within microseconds, and a timer's least is a millisecond.
const LOOKS: u32 = 100;

/// Connects as soon as the VMM listens: woken by the socket's appearance, then often, for `bind` comes before `listen`.
async fn reach(
    socket: &Path,
    arrivals: Option<Arrivals>,
    process: &Process,
    limit: Duration,
) -> Result<UnixStream, Cause> {
    let deadline = Instant::now() + limit;
    let mut looks = 0;
    loop {
        let bound = match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => true,
            Err(error) => return Err(Cause::Socket(error)),
        };
        let look = looks;
        let sign = async {
            match &arrivals {
                Some(arrivals) if !bound => arrivals.next().await,
                _ if look < LOOKS => tokio::task::yield_now().await,
                _ => sleep(Duration::from_millis(1)).await,
            }
        };
        looks += u32::from(bound);
        tokio::select! {
            exit = process.wait() => return Err(Cause::Died(exit)),
            outcome = timeout_at(deadline, sign) => outcome.map_err(|_| Cause::NeverListened(limit))?,
        }
    }
}

/// The VMM answers; it has been told nothing.
#[derive(Debug)]
struct Connected {
    config: VmmConfig,
    guard: Guard,
    driver: Driver,
}

impl Connected {
    async fn configure(self) -> Result<Configured, LaunchError> {
        match settings(&self.driver, &self.config).await {
            Ok(()) => Ok(Configured { files: self.config.files, guard: self.guard, driver: self.driver }),
            Err(error) => Err(self.guard.fail(&self.config.files, Step::Configure, error.into()).await),
        }
    }
}

async fn settings(driver: &Driver, config: &VmmConfig) -> Result<(), ApiError> {
    let files = &config.files;
    let (machine, boot_source, drives) = (machine(config), boot_source(config), drives(config));
    let interface = config.tap.as_ref().map(network_interface);
    let vsock = Vsock { guest_cid: GUEST_CID, uds_path: files.vsock() };
    let entropy = EntropyDevice::default();
    let console = SerialDevice { serial_out_path: Some(files.console()), rate_limiter: Some(CONSOLE_RATE) };
    // All at once: none depends on another, and each alone would cost a round trip. A connection each, of which Firecracker
    // takes ten at a time (micro_http, MAX_CONNECTIONS).
    let mut puts: Vec<BoxFuture<'_, Result<(), ApiError>>> = vec![
        Box::pin(driver.put(&machine)),
        Box::pin(driver.put(&boot_source)),
        Box::pin(driver.put(&vsock)),
        Box::pin(driver.put(&entropy)),
        Box::pin(driver.put(&console)),
    ];
    puts.extend(drives.iter().map(|drive| Box::pin(driver.put(drive)) as BoxFuture<'_, _>));
    puts.extend(interface.iter().map(|interface| Box::pin(driver.put(interface)) as BoxFuture<'_, _>));
    futures::future::try_join_all(puts).await.map(drop)
}

fn machine(config: &VmmConfig) -> MachineConfiguration {
    MachineConfiguration {
        vcpu_count: config.vcpus,
        mem_size_mib: config.memory_mib,
        smt: None,
        track_dirty_pages: None,
        huge_pages: None,
    }
}

fn boot_source(config: &VmmConfig) -> BootSource {
    BootSource {
        kernel_image_path: config.kernel.clone(),
        initrd_path: Some(config.initramfs.clone()),
        boot_args: Some(config.command_line.clone()),
    }
}

/// The image, the disk, the modules. None is a root device: `/init` finds them by UUID.
fn drives(config: &VmmConfig) -> Vec<Drive> {
    let drive = |id: &str, path: &Path, is_read_only| Drive {
        drive_id: id.to_owned(),
        path_on_host: path.to_owned(),
        is_root_device: false,
        is_read_only,
        cache_type: CacheType::Writeback,
        io_engine: None,
        rate_limiter: None,
    };
    let mut drives = vec![drive("image", &config.image, true), drive("disk", &config.disk, false)];
    drives.extend(config.modules.as_ref().map(|path| drive("modules", path, true)));
    drives
}

fn network_interface(tap: &Tap) -> NetworkInterface {
    let mac = tap.mac.map(|byte| format!("{byte:02x}")).join(":");
    NetworkInterface {
        iface_id: "eth0".to_owned(),
        host_dev_name: tap.name.to_string(),
        guest_mac: Some(mac),
        mtu: tap.mtu,
        rx_rate_limiter: None,
        tx_rate_limiter: None,
    }
}

/// The VMM knows all that it needs.
#[derive(Debug)]
struct Configured {
    files: VmFiles,
    guard: Guard,
    driver: Driver,
}

impl Configured {
    async fn start(self) -> Result<Running, LaunchError> {
        let started = self.driver.start().await;
        // The next call may be days away.
        self.driver.rest();
        match started {
            Ok(()) => Ok(Running { process: self.guard.release(), driver: self.driver }),
            Err(error) => Err(self.guard.fail(&self.files, Step::Start, error.into()).await),
        }
    }
}
