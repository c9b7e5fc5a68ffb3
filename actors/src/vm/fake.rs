//! A scripted world for tests: VMMs, taps, images and files that outlive a "daemon", and a way to stop it at any step.

use super::ports::{Adopted, Artifacts, LaunchPlan, Link, LinkEvent, Ports, TapGrant, Vmm, VmmExit};
use futures::future::BoxFuture;
use messages::error::{ErrorKind, WireError};
use messages::guest::{
    AgentFrame, DaemonFrame, ExecSpec, ExitStatus, GuestAnswer, GuestNetwork, GuestQuestion, RunningIdentity, StopKind,
};
use messages::ids::{BootNonce, ImageName, KernelName, OperationId, VmId, VmName};
use messages::privileged::TapNumber;
use messages::vm::{Readiness, SshPublicKey};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How the guests of a world behave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Guest {
    /// Boots to `system`, stops when asked.
    #[default]
    Good,
    /// Never says a word.
    Silent,
    /// Boots, but does not hear a stop.
    Deaf,
    /// Says that it cannot boot.
    BootFails,
}

#[derive(Debug)]
struct Machine {
    exit: watch::Sender<Option<VmmExit>>,
    nonce: Option<BootNonce>,
    link: Option<mpsc::Sender<LinkEvent>>,
}

/// What outlives a daemon.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    pub(crate) dirs: BTreeSet<VmId>,
    pub(crate) disks: BTreeSet<VmId>,
    machines: BTreeMap<VmId, Machine>,
    pub(crate) launches: Vec<VmId>,
    pub(crate) specs: Vec<(VmId, BootNonce)>,
    pub(crate) asked: Vec<(VmId, StopKind)>,
    pub(crate) acknowledged: Vec<OperationId>,
    /// What every guest that is found again says it runs.
    pub(crate) operations: Vec<OperationId>,
    pub(crate) probed: Vec<(VmId, SshPublicKey)>,
    /// VMs whose logs were looked at.
    pub(crate) noted: BTreeSet<VmId>,
    /// Guests that were told the time.
    pub(crate) clocks: BTreeSet<VmId>,
}

/// What a daemon holds in memory.
#[derive(Debug, Default)]
pub(crate) struct Inside {
    pub(crate) taps: BTreeMap<VmId, TapNumber>,
    pub(crate) images: BTreeSet<VmId>,
}

#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) guest: Guest,
    /// At this step the daemon stands still, for ever unless it is thawed.
    pub(crate) freeze_at: Option<&'static str>,
    /// How often each step was come to.
    pub(crate) passed: BTreeMap<&'static str, usize>,
    /// This call fails.
    pub(crate) fail: Option<&'static str>,
    /// This call never ends.
    pub(crate) hang: Option<&'static str>,
    /// Whoever comes to this step next panics.
    pub(crate) panic_at: Option<&'static str>,
    pub(crate) clock_ms: u64,
    /// Earlier SSH handshakes than this one fail.
    pub(crate) ssh_answers_at: usize,
    /// Said by a guest before its VMM ended, and still on its way when that is known.
    pub(crate) last_words: Option<AgentFrame>,
    /// What a guest said never comes to an end.
    pub(crate) endless_words: bool,
    /// What the next daemon finds out about the host.
    pub(crate) host_restarted: bool,
}

/// The world, and one daemon's view of it.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) outside: Arc<Mutex<Outside>>,
    pub(crate) inside: Arc<Mutex<Inside>>,
    pub(crate) script: Arc<Mutex<Script>>,
    frozen: Arc<watch::Sender<bool>>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            outside: Arc::default(),
            inside: Arc::default(),
            script: Arc::default(),
            frozen: Arc::new(watch::channel(false).0),
        }
    }

    /// The same world as the next daemon finds it.
    pub(crate) fn after_a_crash(&self) -> Self {
        for machine in self.outside().machines.values_mut() {
            machine.link = None;
        }
        self.script().freeze_at = None;
        Self { inside: Arc::default(), frozen: Arc::new(watch::channel(false).0), ..self.clone() }
    }

    pub(crate) fn outside(&self) -> MutexGuard<'_, Outside> {
        self.outside.lock().unwrap()
    }

    pub(crate) fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap()
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// Lets go on what stands still.
    pub(crate) fn thaw(&self) {
        self.script().freeze_at = None;
        self.frozen.send_replace(false);
    }

    pub(crate) async fn until_frozen(&self) {
        self.frozen.subscribe().wait_for(|frozen| *frozen).await.unwrap();
    }

    pub(crate) fn alive(&self) -> BTreeSet<VmId> {
        let outside = self.outside();
        outside.machines.iter().filter(|(_, machine)| machine.exit.borrow().is_none()).map(|(vm, _)| *vm).collect()
    }

    /// Ends a VMM as if by itself.
    pub(crate) fn end(&self, vm: VmId, clean: bool) {
        let outside = self.outside();
        let reason = if clean { "exit status 0" } else { "signal SIGSEGV" }.to_owned();
        let machine = &outside.machines[&vm];
        machine.exit.send_if_modified(|exit| {
            let lives = exit.is_none();
            if lives {
                *exit = Some(VmmExit { clean, reason });
            }
            lives
        });
    }

    /// Says something as a guest.
    pub(crate) async fn say(&self, vm: VmId, frame: AgentFrame) {
        let link = self.outside().machines[&vm].link.clone().unwrap();
        link.send(LinkEvent::Frame(frame)).await.unwrap();
    }

    pub(crate) fn operation_ended(&self, vm: VmId, operation: OperationId) -> impl Future<Output = ()> + use<> {
        let world = self.clone();
        async move { world.say(vm, AgentFrame::OperationEnded { operation, status: ExitStatus::Code(0) }).await }
    }

    fn failing(&self, call: &'static str) -> Result<(), WireError> {
        if self.script().fail == Some(call) {
            return Err(WireError::new(ErrorKind::Host, format!("{call} was told to fail")));
        }
        Ok(())
    }

    fn ready<T: Send + 'static>(&self, call: &'static str, value: T) -> BoxFuture<'static, Result<T, WireError>> {
        let result = self.failing(call).map(|()| value);
        Box::pin(std::future::ready(result))
    }

    fn handle(&self, vm: VmId) -> Arc<dyn Vmm> {
        let exit = self.outside().machines[&vm].exit.subscribe();
        Arc::new(FakeVmm { world: self.clone(), vm, exit })
    }
}

struct FakeVmm {
    world: World,
    vm: VmId,
    exit: watch::Receiver<Option<VmmExit>>,
}

impl Vmm for FakeVmm {
    fn pid(&self) -> u32 {
        4242
    }

    fn exited(&self) -> BoxFuture<'static, VmmExit> {
        let mut exit = self.exit.clone();
        Box::pin(async move { exit.wait_for(Option::is_some).await.unwrap().clone().unwrap() })
    }

    fn kill(&self) {
        self.world.end(self.vm, false);
    }

    fn ctrl_alt_del(&self) -> BoxFuture<'static, Result<(), WireError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

struct FakeLink {
    world: World,
    vm: VmId,
    events: mpsc::Sender<LinkEvent>,
}

impl Link for FakeLink {
    fn send(&self, frame: DaemonFrame) {
        match frame {
            DaemonFrame::Spec(spec) => {
                self.world.outside().specs.push((spec.vm, spec.nonce));
                if let Some(machine) = self.world.outside().machines.get_mut(&self.vm) {
                    machine.nonce = Some(spec.nonce);
                }
                if self.world.script().guest == Guest::BootFails {
                    let error = WireError::new(ErrorKind::Guest, "no such drive");
                    self.events.try_send(LinkEvent::Frame(AgentFrame::BootFailed(error))).unwrap();
                    return;
                }
                for level in [Readiness::Agent, Readiness::System] {
                    let frame = AgentFrame::Ready { level, warning: None, uptime_us: 1 };
                    self.events.try_send(LinkEvent::Frame(frame)).unwrap();
                }
            }
            DaemonFrame::Acknowledge { operation } => self.world.outside().acknowledged.push(operation),
            DaemonFrame::Welcome | DaemonFrame::Call { .. } => {}
        }
    }

    fn pin(&self, _: BootNonce) {}

    fn drain(&self) {
        let mut script = self.world.script();
        if let Some(frame) = script.last_words.take() {
            self.events.try_send(LinkEvent::Frame(frame)).unwrap();
        }
        if !script.endless_words {
            self.events.try_send(LinkEvent::Drained).unwrap();
        }
    }

    fn call(&self, question: GuestQuestion, _: Duration) -> BoxFuture<'static, Result<GuestAnswer, WireError>> {
        let GuestQuestion::Stop { kind, .. } = question else {
            if matches!(question, GuestQuestion::SetClock { .. }) {
                self.world.outside().clocks.insert(self.vm);
            }
            return Box::pin(std::future::ready(Ok(GuestAnswer::Done)));
        };
        self.world.outside().asked.push((self.vm, kind));
        if self.world.script().guest != Guest::Deaf {
            self.world.end(self.vm, true);
        }
        Box::pin(std::future::ready(Ok(GuestAnswer::Done)))
    }
}

impl Ports for World {
    fn artifacts(
        &self,
        vm: VmId,
        _: VmName,
        _: ImageName,
        _: KernelName,
    ) -> BoxFuture<'static, Result<Artifacts, WireError>> {
        let artifacts = Artifacts {
            image: PathBuf::from("/image"),
            image_uuid: "image".into(),
            config: messages::image::ImageConfig::default(),
            vmlinux: PathBuf::from("/vmlinux"),
            initramfs: PathBuf::from("/initramfs"),
            command_line: String::new(),
            modules: None,
        };
        let taken = self.ready("artifacts", artifacts);
        self.inside().images.insert(vm);
        taken
    }

    fn release_artifacts(&self, vm: VmId, _: ImageName, _: KernelName) -> BoxFuture<'static, ()> {
        self.inside().images.remove(&vm);
        Box::pin(std::future::ready(()))
    }

    fn lease_tap(
        &self,
        vm: VmId,
        wanted: Option<TapNumber>,
        _: Vec<messages::vm::NetAllow>,
    ) -> BoxFuture<'static, Result<TapGrant, WireError>> {
        if self.script().hang == Some("lease_tap") {
            return Box::pin(std::future::pending());
        }
        if let Err(error) = self.failing("lease_tap") {
            return Box::pin(std::future::ready(Err(error)));
        }
        let mut inside = self.inside();
        let taken: BTreeSet<_> = inside.taps.values().copied().collect();
        let free = || wanted.into_iter().chain((0..).map(TapNumber)).find(|number| !taken.contains(number)).unwrap();
        let number = inside.taps.get(&vm).copied().unwrap_or_else(free);
        inside.taps.insert(vm, number);
        let grant = TapGrant {
            number,
            name: "tap0".parse().unwrap(),
            guest: GuestNetwork {
                mac: [6, 0, 0, 0, 0, 1],
                address: [172, 16, 0, 2].into(),
                prefix: 24,
                gateway: [172, 16, 0, 1].into(),
                mtu: None,
                resolvers: vec![],
                ipv6: None,
            },
        };
        Box::pin(std::future::ready(Ok(grant)))
    }

    fn return_tap(&self, vm: VmId) -> BoxFuture<'static, ()> {
        self.inside().taps.remove(&vm);
        Box::pin(std::future::ready(()))
    }

    fn make_dir(&self, vm: VmId) -> BoxFuture<'static, Result<(), WireError>> {
        self.outside().dirs.insert(vm);
        self.ready("make_dir", ())
    }

    fn ensure_disk(&self, vm: VmId, _: u64) -> BoxFuture<'static, Result<(PathBuf, String), WireError>> {
        let result = self.ready("ensure_disk", (PathBuf::from("/disk"), "disk".to_owned()));
        let mut outside = self.outside();
        assert!(outside.dirs.contains(&vm), "a disk without a directory");
        outside.disks.insert(vm);
        result
    }

    fn launch(&self, plan: LaunchPlan) -> BoxFuture<'static, Result<Arc<dyn Vmm>, WireError>> {
        let vm = plan.vm;
        if let Err(error) = self.failing("launch") {
            return Box::pin(std::future::ready(Err(error)));
        }
        assert!(!self.alive().contains(&vm), "a second VMM for one VM");
        let link = {
            let mut outside = self.outside();
            let link = outside.machines.get(&vm).and_then(|machine| machine.link.clone());
            outside.launches.push(vm);
            let machine = Machine { exit: watch::channel(None).0, nonce: None, link: link.clone() };
            outside.machines.insert(vm, machine);
            link.expect("the listener comes before the VMM")
        };
        if self.script().guest != Guest::Silent {
            let identify = AgentFrame::Identify { running: None, uptime_us: 0, restarts: 0 };
            link.try_send(LinkEvent::Frame(identify)).unwrap();
        }
        Box::pin(std::future::ready(Ok(self.handle(vm))))
    }

    fn adopt(&self, vm: VmId) -> BoxFuture<'static, Result<Adopted, WireError>> {
        let found = self.alive().contains(&vm).then(|| self.handle(vm));
        self.ready("adopt", found)
    }

    fn listen(
        &self,
        vm: VmId,
        events: mpsc::Sender<LinkEvent>,
    ) -> BoxFuture<'static, Result<Arc<dyn Link>, WireError>> {
        if let Err(error) = self.failing("listen") {
            return Box::pin(std::future::ready(Err(error)));
        }
        let alive = self.alive().contains(&vm);
        let mut outside = self.outside();
        let machine = outside.machines.entry(vm).or_insert_with(|| Machine {
            exit: watch::channel(None).0,
            nonce: None,
            link: None,
        });
        if !alive {
            // Nothing runs yet: a place to keep the queue until the launch.
            machine.exit.send_replace(Some(VmmExit { clean: true, reason: String::new() }));
        }
        machine.link = Some(events.clone());
        if alive {
            // A living guest redials: as somebody who runs, or still asking for its boot spec.
            let nonce = machine.nonce;
            let operations = outside.operations.clone();
            let running = nonce.map(|nonce| RunningIdentity {
                vm,
                nonce,
                readiness: Some(Readiness::System),
                warning: None,
                operations,
            });
            let identify = AgentFrame::Identify { running, uptime_us: 0, restarts: 0 };
            events.try_send(LinkEvent::Frame(identify)).unwrap();
        }
        drop(outside);
        Box::pin(std::future::ready(Ok(Arc::new(FakeLink { world: self.clone(), vm, events }) as Arc<dyn Link>)))
    }

    fn operation(&self, _: VmId, _: OperationId, _: ExecSpec) -> BoxFuture<'static, Result<OwnedFd, WireError>> {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        self.ready("operation", OwnedFd::from(ours))
    }

    fn authorized_keys(&self) -> BoxFuture<'static, Result<Vec<String>, WireError>> {
        self.ready("authorized_keys", vec!["ssh-ed25519 AAAA banger".to_owned()])
    }

    fn ssh(&self, _: VmId) -> BoxFuture<'static, Result<OwnedFd, WireError>> {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        self.ready("ssh", OwnedFd::from(ours))
    }

    fn ssh_answers(&self, vm: VmId, host: SshPublicKey) -> BoxFuture<'static, Result<(), WireError>> {
        self.outside().probed.push((vm, host));
        let answer = if self.outside().probed.len() < self.script().ssh_answers_at {
            Err(WireError::new(ErrorKind::Unavailable, "sshd is just starting"))
        } else {
            self.failing("ssh_answers")
        };
        Box::pin(std::future::ready(answer))
    }

    fn remove_files(&self, vm: VmId) -> BoxFuture<'static, Result<(), WireError>> {
        if let Err(error) = self.failing("remove_files") {
            return Box::pin(std::future::ready(Err(error)));
        }
        assert!(!self.alive().contains(&vm), "files removed under a living VMM");
        let mut outside = self.outside();
        outside.dirs.remove(&vm);
        outside.disks.remove(&vm);
        Box::pin(std::future::ready(Ok(())))
    }

    fn trim_logs(&self, _: VmId) {}

    fn note_logs(&self, vm: VmId) {
        self.outside().noted.insert(vm);
    }

    fn now_ms(&self) -> u64 {
        let mut script = self.script();
        script.clock_ms += 1;
        script.clock_ms
    }

    fn at_step(&self, _: VmId, step: &'static str) -> BoxFuture<'static, ()> {
        let mut script = self.script();
        *script.passed.entry(step).or_default() += 1;
        let freezes = script.freeze_at == Some(step);
        let panics = script.panic_at.take_if(|panic_at| *panic_at == step).is_some();
        drop(script);
        assert!(!panics, "asked to");
        if !freezes {
            return Box::pin(std::future::ready(()));
        }
        self.frozen.send_replace(true);
        let mut frozen = self.frozen.subscribe();
        Box::pin(async move {
            // The sender goes with the world, and then so does this daemon.
            if frozen.wait_for(|frozen| !*frozen).await.is_err() {
                std::future::pending().await
            }
        })
    }
}
