//! One VM: owns its record, its VMM's handle and its agent's link. Steps the pure machine, hands effects to the worker,
//! publishes. Handlers start work and return: none of them waits.

use super::boot_spec::{self, Fresh};
use super::ports::{Boot, Link, Ports, Vmm, VmmExit};
use super::published::Published;
use super::state::{At, Denied, Event, State, Then};
use super::worker::{Work, Worker};
use crate::ssh::HostKey;
use crate::store::{Durability, Phase, Store, VmRecord};
use crate::supervise::{Restarts, Ticket, told};
use actix::{Actor, ActorContext as _, Addr, AsyncContext as _, Context, Handler, Message, SpawnHandle};
use messages::WireError;
use messages::error::ErrorKind;
use messages::guest::DaemonFrame;
use messages::ids::{BootNonce, OperationId};
use messages::vm::{Lifetime, Readiness, VmState, VmView};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

/// How many messages may wait. Requests beyond it wait in their senders.
const MAILBOX: usize = 64;
/// The most that is kept of why a VM failed, in bytes.
const LAST_ERROR_MAX: usize = 2048;
/// How long a guest gets to stop unless the request says otherwise.
pub const STOP_GRACE: Duration = Duration::from_secs(30);
/// How often a VM with restart = always is started again within [`RESTART_WINDOW`] before it is left alone.
const RESTART_LIMIT: usize = 10;
const RESTART_WINDOW: Duration = Duration::from_secs(600);

/// What a VM actor is built from.
#[derive(Clone)]
pub struct VmContext {
    pub ports: Arc<dyn Ports>,
    pub store: Store,
    /// The worker pool: an actor's own thread must never do work.
    pub runtime: Handle,
    /// The host was restarted since an earlier daemon wrote the store: what that one did not wait for may be missing.
    pub host_restarted: bool,
}

impl std::fmt::Debug for VmContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VmContext")
    }
}

/// One VM.
pub struct Vm {
    pub(super) record: VmRecord,
    pub(super) state: State,
    pub(super) context: VmContext,
    pub(super) published: watch::Sender<Published>,
    pub(super) work: mpsc::UnboundedSender<Work>,
    queue: Option<mpsc::UnboundedReceiver<Work>>,
    ticket: Arc<Ticket>,
    pub(super) timer: Option<SpawnHandle>,
    pub(super) stop_grace: Duration,
    pub(super) restarts: Restarts,
    pub(super) backoff: Duration,
    pub(super) boot: Option<Boot>,
    pub(super) vmm: Option<Arc<dyn Vmm>>,
    pub(super) link: Option<Arc<dyn Link>>,
    /// Lets the link's events in, once. Before, they wait in their queue.
    pub(super) hear: Option<oneshot::Sender<()>>,
    /// The agent asked for its boot spec before that was known: it asks once, and is answered as soon as it is.
    pub(super) asked_early: bool,
    /// The VMM has ended; what it means is decided when the guest's last words have been heard.
    pub(super) exit: Option<VmmExit>,
    pub(super) operations: BTreeSet<OperationId>,
    /// The record's operation was tied by this actor, which knows whether it was opened.
    pub(super) tied_here: bool,
    pub(super) warning: Option<String>,
    error: Option<WireError>,
    pub(super) how: Option<&'static str>,
    begin: Option<Event>,
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm").field("id", &self.record.id).field("state", &self.state).finish_non_exhaustive()
    }
}

/// The view of a VM that nothing runs of.
#[must_use]
pub fn view_at_rest(record: &VmRecord) -> VmView {
    view(record, VmState::Stopped)
}

fn view(record: &VmRecord, state: VmState) -> VmView {
    let state = match record.phase {
        Phase::Failed if state == VmState::Stopped => VmState::Failed,
        Phase::Creating | Phase::Running | Phase::Stopping | Phase::Stopped | Phase::Deleting | Phase::Failed => state,
    };
    VmView {
        id: record.id,
        name: record.name.clone(),
        state,
        readiness: None,
        image: record.image.clone(),
        kernel: record.kernel.clone(),
        size: record.size,
        network: record.network,
        net_allow: record.net_allow.clone(),
        address: None,
        address6: None,
        labels: record.labels.clone(),
        restart: record.restart,
        lifetime: record.lifetime,
        created_at_ms: record.created_at_ms,
        started_at_ms: None,
        vmm_pid: None,
        operations: 0,
        last_error: record.last_error.clone(),
        warning: None,
        ssh_host_key: record.ssh_host_key.as_ref().map(HostKey::public),
    }
}

impl Vm {
    /// Starts the actor of a VM that does not exist yet.
    #[must_use]
    pub fn create(
        record: VmRecord,
        start: bool,
        context: VmContext,
        ticket: Ticket,
    ) -> (Addr<Self>, watch::Receiver<Published>) {
        Self::launch(record, State::NEW, Some(Event::Create { start }), context, ticket)
    }

    /// Starts the actor of a VM from its record.
    #[must_use]
    pub fn restore(record: VmRecord, context: VmContext, ticket: Ticket) -> (Addr<Self>, watch::Receiver<Published>) {
        let lost = || WireError::new(ErrorKind::Guest, record.last_error.clone().unwrap_or_default());
        let (at, begin) = match record.phase {
            Phase::Stopped => (At::Stopped, None),
            Phase::Failed => (At::Failed { error: lost() }, None),
            phase @ (Phase::Creating | Phase::Running | Phase::Stopping | Phase::Deleting) => {
                (At::New, Some(Event::Attach { phase }))
            }
        };
        Self::launch(record, State { attempt: 0, at }, begin, context, ticket)
    }

    fn launch(
        record: VmRecord,
        state: State,
        begin: Option<Event>,
        context: VmContext,
        ticket: Ticket,
    ) -> (Addr<Self>, watch::Receiver<Published>) {
        let first = Published {
            attempt: 0,
            view: Arc::new(view(&record, state.published())),
            error: None,
            gone: false,
            how: None,
        };
        let (published, watch) = watch::channel(first);
        let (work, queue) = mpsc::unbounded_channel();
        let mut vm = Self {
            record,
            state,
            context,
            published,
            work,
            queue: Some(queue),
            ticket: Arc::new(ticket),
            timer: None,
            stop_grace: STOP_GRACE,
            restarts: Restarts::new(RESTART_LIMIT, RESTART_WINDOW),
            backoff: Duration::ZERO,
            boot: None,
            vmm: None,
            link: None,
            hear: None,
            asked_early: false,
            exit: None,
            operations: BTreeSet::new(),
            tied_here: false,
            warning: None,
            error: None,
            how: None,
            begin,
        };
        if let At::Failed { error } = &vm.state.at {
            vm.error = Some(error.clone());
        }
        (vm.start(), watch)
    }

    /// Steps the machine and runs what it says. True where something changed.
    pub(super) fn step(&mut self, event: Event, ctx: &mut Context<Self>) -> Result<bool, Denied> {
        let before = self.state.clone();
        let state = std::mem::replace(&mut self.state, State::NEW);
        let (state, answer) = state.on(event);
        self.state = state;
        let effects = answer?;
        let changed = self.state != before;
        if changed {
            tracing::info!(vm = %self.record.id, name = %self.record.name, from = ?before.at, to = ?self.state.at, "state");
            self.entered();
        }
        for effect in effects {
            self.run_effect(effect, ctx);
        }
        if changed {
            self.publish();
            if matches!(self.state.at, At::Gone { .. }) {
                ctx.stop();
            }
        }
        Ok(changed)
    }

    /// Keeps what belongs to a state in step with the state.
    fn entered(&mut self) {
        match &self.state.at {
            At::Preparing { .. } => {
                self.error = None;
                self.warning = None;
                self.how = None;
                self.record.last_error = None;
                self.stop_grace = STOP_GRACE;
                self.record.started_at_ms = Some(self.context.ports.now_ms());
                let mut nonce = [0; 16];
                // A kernel without entropy this late does not exist; a nonce of zeroes would still be a nonce.
                if getrandom::fill(&mut nonce).is_err() {
                    tracing::error!(vm = %self.record.id, "no entropy for a boot nonce");
                }
                self.record.nonce = Some(BootNonce(nonce));
                if self.record.ssh_host_key.is_none() {
                    let made = HostKey::generate();
                    let made =
                        made.inspect_err(|error| tracing::error!(vm = %self.record.id, %error, "no SSH host key"));
                    self.record.ssh_host_key = made.ok();
                }
            }
            At::Running { .. } if !self.record.was_ready => {
                self.record.was_ready = true;
                self.write(Durability::Fact);
            }
            At::Failed { error } => {
                self.error = Some(error.clone());
                self.record.last_error = Some(brief(error));
                // Kept, with its logs: somebody has to be able to see why.
                self.record.lifetime = Lifetime::Kept;
            }
            At::Deleting { error } | At::Gone { error } => self.error.clone_from(error),
            At::Stopped => self.boot = None,
            At::Releasing { then } => {
                if let Then::Fail(error) = then {
                    self.error = Some(error.clone());
                }
                self.vmm = None;
                self.link = None;
                self.hear = None;
                self.asked_early = false;
                self.exit = None;
                self.boot = None;
                self.operations.clear();
            }
            At::Stopping { then: Then::Fail(error), .. } => self.error = Some(error.clone()),
            At::New
            | At::Attaching { .. }
            | At::Launching { .. }
            | At::Cancelling { .. }
            | At::Booting { .. }
            | At::Running { .. }
            | At::Stopping { .. }
            | At::BackingOff => {}
        }
    }

    pub(super) fn write(&self, durability: Durability) {
        self.send_work(Work::Write { record: self.record.clone(), durability, answer: None });
    }

    pub(super) fn publish(&self) {
        let level = match self.state.at {
            At::Running { level } => Some(level),
            At::New
            | At::Attaching { .. }
            | At::Preparing { .. }
            | At::Launching { .. }
            | At::Cancelling { .. }
            | At::Booting { .. }
            | At::Stopping { .. }
            | At::Releasing { .. }
            | At::BackingOff
            | At::Stopped
            | At::Failed { .. }
            | At::Deleting { .. }
            | At::Gone { .. } => None::<Readiness>,
        };
        let guest = self.boot.as_ref().and_then(|boot| boot.tap.as_ref()).map(|tap| &tap.guest);
        let view = VmView {
            readiness: level,
            address: guest.map(|guest| guest.address),
            address6: guest.and_then(|guest| guest.ipv6).map(|ipv6| ipv6.address),
            started_at_ms: self.vmm.as_ref().and(self.record.started_at_ms),
            vmm_pid: self.vmm.as_ref().map(|vmm| vmm.pid()),
            operations: u32::try_from(self.operations.len()).unwrap_or(u32::MAX),
            warning: self.warning.clone(),
            ..view(&self.record, self.state.published())
        };
        self.published.send_replace(Published {
            attempt: self.state.attempt,
            view: Arc::new(view),
            error: self.error.clone(),
            gone: matches!(self.state.at, At::Gone { .. }),
            how: self.how,
        });
    }

    pub(super) fn send_spec(&mut self) {
        let (Some(link), Some(boot), Some(nonce)) = (&self.link, &self.boot, self.record.nonce) else {
            tracing::debug!(vm = %self.record.id, "the guest asks before it is known what it was booted with");
            self.asked_early = true;
            return;
        };
        let mut fresh =
            Fresh { clock_unix_ns: self.context.ports.now_ms().saturating_mul(1_000_000), entropy: [0; 32] };
        if getrandom::fill(&mut fresh.entropy).is_err() {
            tracing::error!(vm = %self.record.id, "no entropy for a guest");
        }
        let spec = boot_spec::build(&self.record, nonce, boot, fresh);
        link.send(DaemonFrame::Spec(Box::new(spec)));
    }
}

/// The VM's worker panicked. Nothing that is asked of the VM would ever be done.
#[derive(Message)]
#[rtype(result = "()")]
struct WorkerDied;

/// An error as a VM's record keeps it, and every list of VMs shows it: what a guest has to say may be long.
fn brief(error: &WireError) -> String {
    let mut text = error.to_string();
    text.truncate(text.floor_char_boundary(LAST_ERROR_MAX));
    text
}

impl Handler<WorkerDied> for Vm {
    type Result = ();

    fn handle(&mut self, _: WorkerDied, ctx: &mut Self::Context) {
        tracing::error!(vm = %self.record.id, "the VM's worker is dead: its actor begins again");
        ctx.stop();
    }
}

impl Actor for Vm {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        if let Some(queue) = self.queue.take() {
            let worker = Worker {
                ports: Arc::clone(&self.context.ports),
                store: self.context.store.clone(),
                actor: ctx.address().recipient().downgrade(),
                _ticket: Arc::clone(&self.ticket),
            };
            let (working, actor) = (self.context.runtime.spawn(worker.run(queue)), ctx.address().downgrade());
            self.context.runtime.spawn(async move {
                if working.await.is_err()
                    && let Some(actor) = actor.upgrade()
                {
                    told(actor.send(WorkerDied).await);
                }
            });
        }
        if let Some(event) = self.begin.take()
            && let Err(denied) = self.step(event, ctx)
        {
            tracing::error!(vm = %self.record.id, error = %denied, "the actor cannot begin");
        }
    }
}
