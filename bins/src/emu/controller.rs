//! Carries out the API's calls, one after the other, and watches the machine. Owns everything that changes.

use crate::emu::FIRECRACKER_VERSION;
use crate::emu::api::bodies::{PartialDrive, PartialNetworkInterface, SnapshotCreate, SnapshotLoad, Vsock};
use crate::emu::api::request::Request;
use crate::emu::fault::{DriveFault, Fault, NetworkFault, VsockFault};
use crate::emu::log;
use crate::emu::machine::{End, Kind, Machine, MachineError, Started};
use crate::emu::metrics::Metrics;
use crate::emu::phase::{Operation, Phase, Work};
use crate::emu::resources::Resources;
use crate::emu::script::{Moment, Script, Verdict};
use crate::emu::serial;
use crate::emu::snapshot;
use crate::emu::tsc::Reading;
use crate::emu::vsock::{self, SocketFile};
use link::mux::{self, Attach, Mux};
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// How long the console, and what the guest said last on its streams, may take to be passed on once the machine has ended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// What a call is answered with; `None` is 204.
pub type Answer = Result<Option<Value>, Fault>;

/// A request and where its answer goes.
#[derive(Debug)]
pub struct Call {
    pub request: Request,
    pub reply: oneshot::Sender<Answer>,
}

/// What stays the same for the life of the process.
#[derive(Clone, Debug)]
pub struct Settings {
    pub id: String,
    pub kind: Kind,
    pub script: Script,
    /// Taken when the process started.
    pub tsc: Reading,
}

/// The one owner of the VM.
#[derive(Debug)]
pub struct Controller {
    settings: Settings,
    metrics: Metrics,
    phase: Phase,
    resources: Resources,
    /// Bound from `PUT /vsock` on, as in Firecracker.
    socket: Option<Arc<SocketFile>>,
    machine: Option<Machine>,
    /// What the script does after the start.
    tasks: Vec<JoinHandle<()>>,
    /// The streams; aborted, they end. By themselves they end after the machine, with its last words.
    streams: Vec<JoinHandle<()>>,
    console: Option<JoinHandle<()>>,
    /// Why this process can be nothing any more. Half a machine was made of a snapshot: Firecracker ends then, too.
    ruined: Option<String>,
}

impl Controller {
    /// Nothing is configured yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            metrics: Metrics::default(),
            phase: Phase::Fresh,
            resources: Resources::default(),
            socket: None,
            machine: None,
            tasks: Vec::new(),
            streams: Vec::new(),
            console: None,
            ruined: None,
        }
    }

    /// Serves calls until the machine has ended, however it does. With `None` for calls, there is no API.
    pub async fn run(&mut self, mut calls: Option<mpsc::Receiver<Call>>) -> End {
        let end = loop {
            let call = async {
                match &mut calls {
                    Some(calls) => calls.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                call = call => match call {
                    Some(call) => {
                        self.answer(call).await;
                        if let Some(why) = self.ruined.take() {
                            break End::Failed(why);
                        }
                    }
                    None => break End::Failed("the API server has ended".to_owned()),
                },
                end = ended(&mut self.machine) => {
                    self.pass_on().await;
                    break end;
                }
            }
        };
        self.close().await;
        end
    }

    /// Waits until the clients have what the guest said before it ended: a reboot is told from a halt by that.
    async fn pass_on(&mut self) {
        let streams = async {
            for stream in &mut self.streams {
                // An error is a panic's, which has been logged.
                drop(stream.await);
            }
        };
        if tokio::time::timeout(DRAIN_DEADLINE, streams).await.is_err() {
            tracing::warn!("a client did not take the guest's last words");
        }
    }

    async fn answer(&mut self, Call { request, reply }: Call) {
        let starts = matches!(request.operation(), Operation::InstanceStart | Operation::SnapshotLoad { .. });
        let answer = self.handle(request).await;
        let started = starts && answer.is_ok();
        if reply.send(answer).is_err() {
            tracing::debug!("the caller left before its answer");
        }
        if started {
            self.after_start();
        }
    }

    /// A hang or a death after the start is the whole process's; nothing else can follow the answer.
    fn after_start(&mut self) {
        let script = self.settings.script.clone();
        self.tasks.push(tokio::spawn(async move {
            script.play(Moment::AfterStart).await;
        }));
    }

    /// Carries out one request.
    ///
    /// # Errors
    /// The fault that the API answers.
    pub async fn handle(&mut self, request: Request) -> Answer {
        let operation = request.operation();
        let began = Instant::now();
        let answer = self.attempt(request).await;
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.metrics.call(operation, answer.is_err(), took);
        match &answer {
            Ok(_) => tracing::info!(operation = operation.as_str(), took_us = took, "The request was executed"),
            Err(fault) => tracing::error!(operation = operation.as_str(), "Received Error: {fault}"),
        }
        answer
    }

    async fn attempt(&mut self, request: Request) -> Answer {
        let operation = request.operation();
        if self.settings.script.play(Moment::Operation(operation)).await == Verdict::Refuse {
            return Err(Fault::Scripted(operation.as_str().to_owned()));
        }
        let decision = self.phase.decide(operation)?;
        if decision.work == Work::AlreadySo {
            return Ok(None);
        }
        // As in Firecracker, a boot resource that was refused forbids the load of a snapshot just as well.
        if decision.next == Phase::Configured {
            self.phase = Phase::Configured;
        }
        let answer = self.execute(request).await?;
        self.phase = decision.next;
        Ok(answer)
    }

    async fn execute(&mut self, request: Request) -> Answer {
        let done = match request {
            Request::Info => return Ok(Some(self.info())),
            Request::Version => return Ok(Some(json!({"firecracker_version": FIRECRACKER_VERSION}))),
            Request::GetMachineConfig => return Ok(Some(to_json(&self.resources.machine_config)?)),
            Request::VmConfig => return Ok(Some(to_json(&self.resources)?)),
            Request::MachineConfig(update) => self.resources.update_machine(&update),
            Request::BootSource(source) => self.resources.set_boot_source(source),
            Request::Drive(drive) => self.resources.set_drive(drive),
            Request::PatchDrive(drive) => self.patch_drive(&drive),
            Request::Network(interface) => self.resources.set_network(interface),
            Request::PatchNetwork(interface) => self.patch_network(&interface),
            Request::Vsock(vsock) => self.set_vsock(vsock),
            Request::Entropy(entropy) => self.resources.set_entropy(entropy),
            Request::Serial(serial) => self.resources.set_serial(serial),
            Request::Logger(config) => {
                log::update(&config).map_err(Fault::Logger)?;
                self.resources.logger = Some(config);
                Ok(())
            }
            Request::Metrics(config) => {
                let set = self.metrics.set_path(&config.metrics_path);
                set.map_err(|error| Fault::Metrics(error.to_string()))?;
                self.resources.metrics = Some(config);
                Ok(())
            }
            Request::InstanceStart => self.start().await.map_err(|error| Fault::Start(error.to_string())),
            Request::CtrlAltDel => self.machine()?.ctrl_alt_del().await.map_err(internal),
            Request::FlushMetrics => self.metrics.flush().map_err(|error| Fault::Internal(error.to_string())),
            Request::Pause => self.machine()?.pause().await.map_err(internal),
            Request::Resume => self.machine()?.resume().await.map_err(internal),
            Request::SnapshotCreate(create) => self.save(&create).await,
            Request::SnapshotLoad(load, memory) => self.restore(*load, &memory).await,
        };
        done.map(|()| None)
    }

    fn info(&self) -> Value {
        json!({
            "id": self.settings.id,
            "state": self.phase.as_str(),
            "vmm_version": FIRECRACKER_VERSION,
            "app_name": "banger-emu",
        })
    }

    fn machine(&mut self) -> Result<&mut Machine, Fault> {
        self.machine.as_mut().ok_or(Fault::PreBoot)
    }

    fn set_vsock(&mut self, vsock: Vsock) -> Result<(), Fault> {
        Resources::check_vsock(&vsock)?;
        // The old socket goes first: the new one may have the same path.
        self.socket = None;
        self.resources.vsock = None;
        let socket = SocketFile::bind(&vsock.uds_path).map_err(|error| Fault::Vsock(VsockFault::Bind(error)))?;
        self.socket = Some(Arc::new(socket));
        self.resources.vsock = Some(vsock);
        Ok(())
    }

    fn patch_drive(&mut self, patch: &PartialDrive) -> Result<(), Fault> {
        let Some(drive) = self.resources.drives.iter().find(|drive| drive.drive_id == patch.drive_id) else {
            let why = format!("no drive has the id `{}`.", patch.drive_id);
            return Err(Fault::Drive(DriveFault::Update(why)));
        };
        if patch.rate_limiter.is_some() {
            return Err(Fault::NotSupported("a rate limiter of a drive"));
        }
        if patch.path_on_host.is_some() && patch.path_on_host != drive.path_on_host {
            return Err(Fault::NotSupported("a change of a running drive's file"));
        }
        Ok(())
    }

    fn patch_network(&mut self, patch: &PartialNetworkInterface) -> Result<(), Fault> {
        if !self.resources.network_interfaces.iter().any(|known| known.iface_id == patch.iface_id) {
            return Err(Fault::Network(NetworkFault::Unknown(patch.iface_id.clone())));
        }
        if patch.rx_rate_limiter.is_some() || patch.tx_rate_limiter.is_some() {
            return Err(Fault::NotSupported("a rate limiter of a network interface"));
        }
        Ok(())
    }

    async fn start(&mut self) -> Result<(), MachineError> {
        let started = self.settings.kind.start(&self.resources, self.settings.tsc, None).await?;
        self.attach(started, Attach::Fresh);
        Ok(())
    }

    fn attach(&mut self, started: Started, attach: Attach) {
        let Started { machine, link, console } = started;
        self.machine = Some(machine);
        if let (Some(link), Some(socket)) = (link, &self.socket) {
            let Mux { handle, listener, driver } = mux::host(link, attach);
            self.streams.push(tokio::spawn(async move {
                match driver.run().await {
                    Ok(end) => tracing::debug!(?end, "the link ended"),
                    // As it does when the machine ends, which is told elsewhere.
                    Err(error) => tracing::debug!(%error, "the link broke"),
                }
            }));
            let (script, metrics) = (self.settings.script.clone(), self.metrics.clone());
            self.streams.push(tokio::spawn(vsock::serve(socket.clone(), handle, listener, script, metrics)));
        }
        if let (Some(console), Some(limit)) = (console, self.resources.serial.rate_limiter) {
            self.copy_console(console, limit);
        }
    }

    fn copy_console(&mut self, console: UnixStream, limit: crate::emu::api::bodies::TokenBucket) {
        let output = match &self.resources.serial.serial_out_path {
            Some(path) => log::open_output(path),
            None => log::open_output(Path::new("/dev/stdout")),
        };
        let metrics = self.metrics.clone();
        match output {
            Ok(output) => {
                self.console = Some(tokio::spawn(async move {
                    if let Err(error) = serial::copy(console, output, limit, metrics).await {
                        tracing::error!(%error, "the console broke");
                    }
                }));
            }
            Err(error) => tracing::error!(%error, "the console's file cannot be opened; its output is lost"),
        }
    }

    async fn save(&mut self, create: &SnapshotCreate) -> Result<(), Fault> {
        let fault = |error: &dyn std::fmt::Display| Fault::CreateSnapshot(error.to_string());
        let memory = snapshot::create(&create.mem_file_path).map_err(|error| fault(&error))?;
        let state = match snapshot::create(&create.snapshot_path) {
            Ok(state) => state,
            Err(error) => {
                remove(&create.mem_file_path);
                return Err(fault(&error));
            }
        };
        let saved = self.save_to(create, state, &memory).await;
        if saved.is_err() {
            remove(&create.mem_file_path);
            remove(&create.snapshot_path);
        }
        saved
    }

    async fn save_to(&mut self, create: &SnapshotCreate, state: File, memory: &File) -> Result<(), Fault> {
        let fault = |error: &dyn std::fmt::Display| Fault::CreateSnapshot(error.to_string());
        let copy = memory.try_clone().map_err(|error| fault(&error))?;
        self.machine()?.save(copy).await.map_err(|error| fault(&error))?;
        snapshot::write_state(state, &create.snapshot_path, memory, &self.resources).map_err(|error| fault(&error))
    }

    async fn restore(&mut self, load: SnapshotLoad, memory: &Path) -> Result<(), Fault> {
        let loaded = self.restore_from(load, memory).await;
        if let Err(fault) = &loaded {
            self.ruined = Some(fault.to_string());
            if let Some(mut machine) = self.machine.take() {
                machine.kill().await;
            }
            self.socket = None;
            self.resources = Resources::default();
        }
        loaded
    }

    async fn restore_from(&mut self, load: SnapshotLoad, memory: &Path) -> Result<(), Fault> {
        let fault =
            |error: &dyn std::fmt::Display| Fault::LoadSnapshot(format!("Failed to restore from snapshot: {error}"));
        let state = snapshot::read_state(&load.snapshot_path).map_err(|error| fault(&error))?;
        let memory = snapshot::open_memory(memory, &state).map_err(|error| fault(&error))?;
        let (logger, metrics) = (self.resources.logger.take(), self.resources.metrics.take());
        let serial = std::mem::take(&mut self.resources.serial);
        self.resources = Resources { logger, metrics, ..state.resources };
        if serial != Default::default() {
            self.resources.serial = serial;
        }
        for new in &load.network_overrides {
            self.resources.override_network(new)?;
        }
        if let Some(mut vsock) = self.resources.vsock.take() {
            if let Some(new) = load.vsock_override {
                vsock.uds_path = new.uds_path;
            }
            self.set_vsock(vsock)?;
        } else if load.vsock_override.is_some() {
            return Err(fault(&"the snapshot has no vsock device"));
        }
        let started = self.settings.kind.start(&self.resources, self.settings.tsc, Some(memory)).await;
        self.attach(started.map_err(|error| fault(&error))?, Attach::Resumed);
        if load.resume_vm {
            let resumed = self.machine()?.resume().await;
            resumed.map_err(|error| Fault::LoadSnapshot(format!("Failed to resume microVM: {error}")))?;
        }
        Ok(())
    }

    /// Ends whatever still runs, and writes out what is left to write.
    pub async fn close(&mut self) {
        if let Some(machine) = &mut self.machine {
            machine.kill().await;
        }
        if let Some(console) = &mut self.console
            && tokio::time::timeout(DRAIN_DEADLINE, console).await.is_err()
        {
            tracing::warn!("the console's last output is lost");
        }
        for task in self.tasks.drain(..).chain(self.streams.drain(..)) {
            task.abort();
        }
        self.socket = None;
        if let Err(error) = self.metrics.flush() {
            tracing::warn!(%error, "cannot write the metrics");
        }
    }
}

async fn ended(machine: &mut Option<Machine>) -> End {
    match machine {
        Some(machine) => machine.ended().await,
        None => std::future::pending().await,
    }
}

fn internal(error: MachineError) -> Fault {
    Fault::Internal(error.to_string())
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<Value, Fault> {
    serde_json::to_value(value).map_err(|error| Fault::Internal(error.to_string()))
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "half a snapshot is left");
    }
}
