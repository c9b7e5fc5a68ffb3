//! The registry's actor. A singleton under `actix::Supervisor`: after a panic it keeps the VMs' handles and rebuilds the rest.

use super::admission::{self, DiskFacts, Taken};
use super::names::Names;
use super::tending::Tending;
use crate::dns::FollowVm;
use crate::host::HostFacts;
use crate::store::VmRecord;
#[cfg(test)]
use crate::supervise::Panicked;
use crate::supervise::{Ended, Restarts, Ticket, guard, guard_unit, told};
use crate::vm::{Command, Rename, Vm, VmContext, Watch, view_at_rest};
use actix::{
    Actor, ActorFutureExt as _, Addr, AsyncContext as _, Context, Message, Recipient, ResponseActFuture, Supervised,
    WrapFuture as _,
};
use messages::error::{ErrorKind, WireError};
use messages::ids::{ImageName, KernelName, RequestId, VmId, VmName, VmRef};
use messages::limits::NET_ALLOW_MAX;
use messages::vm::{NetAllow, NetworkMode, VmSize, VmSpec, VmState, VmView};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests beyond this wait in their connections.
const MAILBOX: usize = 256;
/// How often consoles are held to their bound.
const TRIM_INTERVAL: Duration = Duration::from_secs(15);
/// How often the growth of consoles is noted: how exact `vm logs --since` is.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);
/// A start that was admitted and never happened is forgotten after this.
const ADMISSION_HOLDS: Duration = Duration::from_secs(30);
/// A VM whose actor panics more often than this within [`REBUILD_WINDOW`] is tried again only that much later: until then it can
/// not even be deleted.
const REBUILDS: usize = 5;
const REBUILD_WINDOW: Duration = Duration::from_secs(60);

/// What the registry is built from.
#[derive(Clone, Debug)]
pub struct RegistryContext {
    pub vm: VmContext,
    pub host: HostFacts,
    /// Who is told of every VM's watch; none in tests.
    pub names: Option<Recipient<FollowVm>>,
}

/// A VM and how to talk to it.
#[derive(Clone, Debug)]
pub struct Handle {
    pub id: VmId,
    pub vm: Addr<Vm>,
    pub watch: Watch,
    /// A repeated request found what its first try had made.
    pub existed: bool,
}

#[derive(Debug)]
pub(super) enum Entry {
    /// At rest since the daemon started: a record, no actor.
    Rest {
        record: Box<VmRecord>,
        view: Arc<VmView>,
    },
    Live {
        vm: Addr<Vm>,
        watch: Watch,
    },
    /// Its actor panicked and is being built anew.
    Rebuilding {
        view: Arc<VmView>,
    },
}

impl Entry {
    fn rest(record: VmRecord) -> Self {
        Self::Rest { view: Arc::new(view_at_rest(&record)), record: Box::new(record) }
    }

    pub(super) fn view(&self) -> Arc<VmView> {
        match self {
            Self::Rest { view, .. } | Self::Rebuilding { view } => Arc::clone(view),
            Self::Live { watch, .. } => Arc::clone(&watch.borrow().view),
        }
    }
}

fn being_rebuilt(view: &VmView) -> WireError {
    let sentence = format!("VM {} is being attached to again after an internal error", view.name);
    WireError::new(ErrorKind::Unavailable, sentence).hint("try again in a second")
}

/// All VMs.
#[derive(Debug)]
pub struct Registry {
    pub(super) context: RegistryContext,
    pub(super) vms: BTreeMap<VmId, Entry>,
    pub(super) names: Names,
    requests: HashMap<RequestId, VmId>,
    /// Starts that were let in and are not seen on the watch yet.
    admitted: HashMap<VmId, (u64, Instant)>,
    rebuilds: HashMap<VmId, Restarts>,
    trimming: Tending,
    noting: Tending,
}

impl Registry {
    /// A registry of these VMs. Started under a supervisor, it attaches to those that are not at rest.
    #[must_use]
    pub fn new(context: RegistryContext, records: Vec<VmRecord>) -> Self {
        let mut registry = Self {
            context,
            vms: BTreeMap::new(),
            names: Names::default(),
            requests: HashMap::new(),
            admitted: HashMap::new(),
            rebuilds: HashMap::new(),
            trimming: Tending::default(),
            noting: Tending::default(),
        };
        for record in records {
            if let Err(error) = registry.names.take(&record.name, record.id) {
                // The table's constraint says that this cannot be.
                tracing::error!(vm = %record.id, error = %error, "two VMs of one name");
            }
            registry.requests.extend(record.request.map(|request| (request, record.id)));
            registry.vms.insert(record.id, Entry::rest(record));
        }
        registry
    }

    /// Forgets VMs that have said that nothing is left of them, before their actors have quite ended: a name is free as soon
    /// as its delete is answered.
    pub(super) fn sweep(&mut self) {
        let gone: Vec<VmId> = self
            .vms
            .iter()
            .filter(|(_, entry)| match entry {
                Entry::Live { watch, .. } => watch.borrow().gone,
                Entry::Rest { .. } | Entry::Rebuilding { .. } => false,
            })
            .map(|(id, _)| *id)
            .collect();
        for vm in gone {
            self.forget(vm);
        }
    }

    pub(super) fn taken(&mut self) -> Taken {
        let now = Instant::now();
        let vms = &self.vms;
        // Seen on the watch, or never going to be.
        self.admitted.retain(|vm, (attempt, since)| {
            let waiting = match vms.get(vm) {
                Some(Entry::Live { watch, .. }) => watch.borrow().attempt <= *attempt,
                Some(Entry::Rest { .. } | Entry::Rebuilding { .. }) | None => false,
            };
            waiting && now.duration_since(*since) < ADMISSION_HOLDS
        });
        let mut taken = Taken { vms: self.vms.len(), ..Taken::default() };
        for (id, entry) in &self.vms {
            let view = entry.view();
            let active = match view.state {
                VmState::Starting | VmState::Running | VmState::Stopping => true,
                VmState::Stopped | VmState::Failed | VmState::Deleting => self.admitted.contains_key(id),
            };
            if active {
                taken.active += 1;
                taken.memory_mib += u64::from(view.size.memory_mib);
            }
        }
        taken
    }

    /// What is allowed, with VMs by their ids.
    fn resolve_allowed(&self, spec: &VmSpec) -> Result<Vec<NetAllow>, WireError> {
        let count = spec.net_allow.len();
        if count > NET_ALLOW_MAX {
            let sentence = format!("{count} times `--net-allow` is more than {NET_ALLOW_MAX}");
            return Err(WireError::new(ErrorKind::Usage, sentence));
        }
        if count > 0 && spec.network == NetworkMode::None {
            let sentence = "a VM without a network can be allowed nothing";
            return Err(WireError::new(ErrorKind::Usage, sentence).hint("leave `--net none` or `--net-allow` out"));
        }
        let resolve = |allowed: &NetAllow| match allowed {
            NetAllow::Vm(reference) => {
                let vm = self.names.resolve(reference).map_err(|e| e.context("cannot allow what does not exist"))?;
                if self.vms.get(&vm).is_some_and(|entry| entry.view().network == NetworkMode::None) {
                    return Err(WireError::new(
                        ErrorKind::Usage,
                        format!("VM `{reference}` has no network to be reached by"),
                    ));
                }
                Ok(NetAllow::Vm(vm.to_string().parse().expect("an id is a reference")))
            }
            NetAllow::HostTcp(0) | NetAllow::HostUdp(0) => {
                Err(WireError::new(ErrorKind::Usage, "port 0 is nothing that can be allowed"))
            }
            NetAllow::HostTcp(_) | NetAllow::HostUdp(_) => Ok(allowed.clone()),
        };
        spec.net_allow.iter().map(resolve).collect()
    }

    /// The view as people know it: what is allowed by the names that VMs have now.
    pub(super) fn with_names(&self, view: Arc<VmView>) -> Arc<VmView> {
        if !view.net_allow.iter().any(|allowed| matches!(allowed, NetAllow::Vm(_))) {
            return view;
        }
        let mut named = view.as_ref().clone();
        for allowed in &mut named.net_allow {
            if let NetAllow::Vm(id) = allowed
                && let Some(entry) = id.as_str().parse().ok().and_then(|id: VmId| self.vms.get(&id))
                && let Ok(name) = entry.view().name.as_str().parse()
            {
                *allowed = NetAllow::Vm(name);
            }
        }
        Arc::new(named)
    }

    fn ticket(vm: VmId, ctx: &Context<Self>) -> Ticket {
        let registry = ctx.address().downgrade();
        Ticket::new(move |_: Ended| {
            if let Some(registry) = registry.upgrade() {
                #[expect(clippy::disallowed_methods, reason = "a drop cannot wait")]
                registry.do_send(VmGone(vm));
            }
        })
    }

    fn restore(&mut self, record: VmRecord, ctx: &mut Context<Self>) -> Handle {
        let id = record.id;
        let (vm, watch) = Vm::restore(record, self.context.vm.clone(), Self::ticket(id, ctx));
        self.make_known(id, &watch, ctx);
        self.vms.insert(id, Entry::Live { vm: vm.clone(), watch: watch.clone() });
        Handle { id, vm, watch, existed: true }
    }

    /// Tells the keeper of names about a VM's watch. Waits for room in its mailbox, apart: a name may come late, never not.
    fn make_known(&self, vm: VmId, watch: &Watch, ctx: &mut Context<Self>) {
        if let Some(names) = &self.context.names {
            ctx.spawn(names.send(FollowVm { vm, watch: watch.clone() }).into_actor(self).map(|sent, _, _| told(sent)));
        }
    }

    fn handle_of(&mut self, vm: VmId, ctx: &mut Context<Self>) -> Result<Handle, WireError> {
        match self.vms.get(&vm) {
            Some(Entry::Live { vm: addr, watch }) if addr.connected() => {
                Ok(Handle { id: vm, vm: addr.clone(), watch: watch.clone(), existed: true })
            }
            // Its actor has ended and its worker has not, or the news of it is still in our mailbox.
            Some(Entry::Live { watch, .. }) => Err(being_rebuilt(&watch.borrow().view)),
            Some(Entry::Rest { record, .. }) => {
                let record = record.as_ref().clone();
                Ok(self.restore(record, ctx))
            }
            Some(Entry::Rebuilding { view }) => Err(being_rebuilt(view)),
            None => Err(WireError::new(ErrorKind::NotFound, format!("VM {vm} is gone"))),
        }
    }

    /// Builds a VM's actor anew from the store, after a while.
    fn rebuild(&self, vm: VmId, after: Duration, ctx: &mut Context<Self>) {
        let store = self.context.vm.store.clone();
        let load = async move {
            tokio::time::sleep(after).await;
            store.get(vm).await
        };
        ctx.spawn(load.into_actor(self).map(move |record, registry, ctx| {
            guard_unit(ctx, |ctx| match record {
                Ok(Some(record)) => {
                    registry.restore(record, ctx);
                }
                // It panicked before its first commit: nothing of it exists.
                Ok(None) => registry.forget(vm),
                Err(error) => {
                    tracing::error!(vm = %vm, error = %error, "the VM's record cannot be read");
                    registry.rebuild(vm, REBUILD_WINDOW, ctx);
                }
            });
        }));
    }

    fn forget(&mut self, vm: VmId) {
        self.vms.remove(&vm);
        self.names.drop_vm(vm);
        self.requests.retain(|_, of| *of != vm);
        self.admitted.remove(&vm);
        self.rebuilds.remove(&vm);
    }

    fn running(&self) -> Vec<VmId> {
        self.vms.iter().filter(|(_, entry)| entry.view().vmm_pid.is_some()).map(|(id, _)| *id).collect()
    }
}

impl Actor for Registry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let restless: Vec<VmRecord> = self
            .vms
            .values()
            .filter_map(|entry| match entry {
                Entry::Rest { record, .. } if !record.phase.is_at_rest() => Some(record.as_ref().clone()),
                Entry::Rest { .. } | Entry::Live { .. } | Entry::Rebuilding { .. } => None,
            })
            .collect();
        for record in restless {
            self.restore(record, ctx);
        }
        // A panic of the registry's own cut these off, and may have cut off the news of those that live.
        let living: Vec<(VmId, Watch)> = self
            .vms
            .iter()
            .filter_map(|(id, entry)| match entry {
                Entry::Live { watch, .. } => Some((*id, watch.clone())),
                Entry::Rest { .. } | Entry::Rebuilding { .. } => None,
            })
            .collect();
        for (vm, watch) in living {
            self.make_known(vm, &watch, ctx);
        }
        let rebuilding: Vec<VmId> =
            self.vms.iter().filter(|(_, entry)| matches!(entry, Entry::Rebuilding { .. })).map(|(id, _)| *id).collect();
        for vm in rebuilding {
            self.rebuild(vm, Duration::ZERO, ctx);
        }
        ctx.run_interval(TRIM_INTERVAL, |registry, ctx| {
            let running = registry.running();
            guard_unit(ctx, |_| registry.trimming.run(&registry.context.vm, running, |ports, vm| ports.trim_logs(vm)));
        });
        ctx.run_interval(NOTE_INTERVAL, |registry, ctx| {
            let running = registry.running();
            guard_unit(ctx, |_| registry.noting.run(&registry.context.vm, running, |ports, vm| ports.note_logs(vm)));
        });
    }
}

impl Supervised for Registry {
    /// After a panic: the handles are kept, for the VMs live on; what is derived from them is made again.
    fn restarting(&mut self, _: &mut Context<Self>) {
        self.names = Names::default();
        self.admitted.clear();
        for (id, entry) in &self.vms {
            if let Err(error) = self.names.take(&entry.view().name, *id) {
                tracing::error!(vm = %id, error = %error, "two VMs of one name");
            }
        }
    }
}

/// Makes a VM. Image and kernel are present, the sizes are decided.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Handle, WireError>")]
pub struct Create {
    pub request: RequestId,
    pub spec: VmSpec,
    pub image: ImageName,
    pub kernel: KernelName,
    pub size: VmSize,
    pub start: bool,
    pub disk: DiskFacts,
}

impl actix::Handler<Create> for Registry {
    type Result = Result<Handle, WireError>;

    fn handle(&mut self, message: Create, ctx: &mut Self::Context) -> Self::Result {
        guard(ctx, |ctx| {
            let Create { request, spec, image, kernel, size, start, disk } = message;
            self.sweep();
            if let Some(vm) = self.requests.get(&request).copied() {
                return self.handle_of(vm, ctx);
            }
            let taken = self.taken();
            admission::admit_count(&taken)?;
            admission::admit_disk(&size, &disk)?;
            if start {
                admission::admit_memory(&size, &taken, &self.context.host)?;
            }
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes)
                .map_err(|error| WireError::new(ErrorKind::Host, format!("the kernel gives no entropy: {error}")))?;
            let id = VmId(bytes);
            let net_allow = self.resolve_allowed(&spec)?;
            let name = spec.name.clone().unwrap_or_else(|| self.names.draw());
            self.names.take(&name, id)?;
            self.requests.insert(request, id);
            let record = VmRecord {
                id,
                name,
                request: Some(request),
                phase: crate::store::Phase::Creating,
                image,
                kernel,
                size,
                network: spec.network,
                tap: None,
                labels: spec.labels,
                restart: spec.restart,
                lifetime: spec.lifetime,
                nonce: None,
                operation: None,
                was_ready: false,
                created_at_ms: self.context.vm.ports.now_ms(),
                started_at_ms: None,
                last_error: None,
                ssh_host_key: None,
                net_allow,
            };
            let (vm, watch) = Vm::create(record, start, self.context.vm.clone(), Self::ticket(id, ctx));
            self.make_known(id, &watch, ctx);
            self.vms.insert(id, Entry::Live { vm: vm.clone(), watch: watch.clone() });
            Ok(Handle { id, vm, watch, existed: false })
        })
    }
}

/// Checks, before anything is pulled, what a create would be refused for anyway.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Option<VmId>, WireError>")]
pub struct Check {
    pub request: RequestId,
    pub spec: VmSpec,
    pub size: VmSize,
    pub start: bool,
    pub disk: DiskFacts,
}

impl actix::Handler<Check> for Registry {
    type Result = Result<Option<VmId>, WireError>;

    fn handle(&mut self, message: Check, ctx: &mut Self::Context) -> Self::Result {
        guard(ctx, |_| {
            self.sweep();
            if let Some(vm) = self.requests.get(&message.request) {
                return Ok(Some(*vm));
            }
            let taken = self.taken();
            admission::admit_count(&taken)?;
            admission::admit_disk(&message.size, &message.disk)?;
            if message.start {
                admission::admit_memory(&message.size, &taken, &self.context.host)?;
            }
            self.resolve_allowed(&message.spec)?;
            if let Some(name) = &message.spec.name {
                let probe = VmId([0; 8]);
                self.names.take(name, probe)?;
                self.names.drop_vm(probe);
            }
            Ok(None)
        })
    }
}

/// A VM to talk to. With `to_start`, one at rest is let in only if there is memory for it.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Handle, WireError>")]
pub struct Get {
    pub reference: VmRef,
    pub to_start: bool,
}

impl actix::Handler<Get> for Registry {
    type Result = Result<Handle, WireError>;

    fn handle(&mut self, Get { reference, to_start }: Get, ctx: &mut Self::Context) -> Self::Result {
        guard(ctx, |ctx| {
            self.sweep();
            let vm = self.names.resolve(&reference)?;
            let handle = self.handle_of(vm, ctx)?;
            let (attempt, view) = {
                let published = handle.watch.borrow();
                (published.attempt, Arc::clone(&published.view))
            };
            let at_rest = match view.state {
                VmState::Stopped | VmState::Failed => true,
                VmState::Starting | VmState::Running | VmState::Stopping | VmState::Deleting => false,
            };
            if to_start && at_rest {
                let taken = self.taken();
                if !self.admitted.contains_key(&vm) {
                    admission::admit_memory(&view.size, &taken, &self.context.host)?;
                    self.admitted.insert(vm, (attempt, Instant::now()));
                }
            }
            Ok(handle)
        })
    }
}

/// Gives a VM another name.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<(), WireError>")]
pub struct RenameVm {
    pub reference: VmRef,
    pub name: VmName,
}

impl actix::Handler<RenameVm> for Registry {
    type Result = ResponseActFuture<Self, Result<(), WireError>>;

    fn handle(&mut self, RenameVm { reference, name }: RenameVm, ctx: &mut Self::Context) -> Self::Result {
        let begun = guard(ctx, |ctx| {
            self.sweep();
            let vm = self.names.resolve(&reference)?;
            let handle = self.handle_of(vm, ctx)?;
            let before = handle.watch.borrow().view.name.clone();
            self.names.take(&name, vm)?;
            Ok::<_, WireError>((handle, before))
        });
        match begun {
            Err(error) => Box::pin(std::future::ready(Err(error)).into_actor(self)),
            Ok((handle, before)) => {
                let id = handle.id;
                let renamed = async move {
                    handle
                        .vm
                        .send(Rename(name))
                        .await
                        .unwrap_or_else(|_| Err(WireError::new(ErrorKind::Lost, "the VM's actor was restarted")))
                };
                Box::pin(renamed.into_actor(self).map(move |result, registry, _| {
                    if result.is_err()
                        && let Err(error) = registry.names.take(&before, id)
                    {
                        tracing::error!(vm = %id, error = %error, "the old name is gone");
                    }
                    result
                }))
            }
        }
    }
}

/// A VM's actor and its worker have ended.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
struct VmGone(VmId);

impl actix::Handler<VmGone> for Registry {
    type Result = ();

    fn handle(&mut self, VmGone(vm): VmGone, ctx: &mut Self::Context) {
        guard_unit(ctx, |ctx| {
            let Some(Entry::Live { watch, .. }) = self.vms.get(&vm) else { return };
            let (gone, view) = {
                let published = watch.borrow();
                (published.gone, Arc::clone(&published.view))
            };
            if gone {
                self.forget(vm);
                return;
            }
            let restarts = self.rebuilds.entry(vm).or_insert_with(|| Restarts::new(REBUILDS, REBUILD_WINDOW));
            let backoff = restarts.next(Instant::now()).unwrap_or(REBUILD_WINDOW);
            tracing::error!(vm = %vm, ?backoff, "the VM's actor is gone; building it anew");
            self.vms.insert(vm, Entry::Rebuilding { view });
            self.rebuild(vm, backoff, ctx);
        });
    }
}

impl Handle {
    /// Sends a command to the VM.
    ///
    /// # Errors
    /// Why it was denied, or that the actor is gone.
    pub async fn command(&self, command: Command) -> Result<crate::vm::Accepted, WireError> {
        self.vm.send(command).await.map_err(|_| {
            WireError::new(ErrorKind::Lost, "the VM's actor was restarted")
                .hint("`banger vm show` tells what became of the VM")
        })?
    }

    /// What is published of it now.
    #[must_use]
    pub fn view(&self) -> Arc<VmView> {
        Arc::clone(&self.watch.borrow().view)
    }
}

/// Panics: for the tests of supervision.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), Panicked>")]
pub(super) struct Panic;

#[cfg(test)]
impl actix::Handler<Panic> for Registry {
    type Result = Result<(), Panicked>;

    fn handle(&mut self, _: Panic, ctx: &mut Self::Context) -> Self::Result {
        guard(ctx, |_| panic!("asked to"))
    }
}
