//! The keeper of the zone: follows every VM's published state, writes the zone, and keeps both listeners serving.
//!
//! A singleton under `actix::Supervisor`: after a panic the watches are kept, the zone is written anew from them, and the
//! listeners are brought up again.

use super::audience::Place;
use super::forward::{Forwarder, Upstreams};
use super::responder::Responder;
use super::server::{self, Listener, Sockets};
use super::status::{BridgeListener, DnsStatus, HostRouting, LoopbackListener};
use super::zone::Zone;
use crate::privileged::{DnsSockets, Perform, PerformBindDns};
use crate::supervise::{Panicked, Restarts, guard, guard_unit, told};
use crate::vm::{Published, Watch};
use actix::fut::{ActorFutureExt as _, WrapFuture as _};
use actix::{
    Actor, AsyncContext as _, Context, Handler, Message, Recipient, ResponseActFuture, SpawnHandle, Supervised,
};
use messages::WireError;
use messages::ids::{InstanceId, InterfaceName, VmId};
use messages::privileged::{PrivilegedOperation, Subnet};
use messages::vm::{VmState, VmView};
use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Enough for every VM of a full bridge to be made known at once.
const MAILBOX: usize = 1024;
/// How long to wait before port 53 is asked for again: whoever has it is a service, and may be stopped some day.
const BRIDGE_RETRY: Duration = Duration::from_secs(30);
/// How long names stay without their way through the host's resolver after something there was restarted.
const ROUTE_AGAIN: Duration = Duration::from_secs(60);
/// The longest wait after failures in a row.
const ROUTE_RETRY_LAST: Duration = Duration::from_secs(3600);
/// A listener that ends more often than this is left alone.
const LISTENER_RESTARTS: usize = 10;
const RESTART_WINDOW: Duration = Duration::from_secs(600);

/// What a keeper is made from.
pub struct DnsSettings {
    pub instance: InstanceId,
    pub bridge: InterfaceName,
    pub subnet: Subnet,
    /// The worker pool: questions are answered there.
    pub runtime: Handle,
    /// Who binds port 53.
    pub helper: Recipient<PerformBindDns>,
    /// Who tells the host's own resolver.
    pub router: Recipient<Perform>,
    /// Whom guests' other questions go to.
    pub upstreams: Box<dyn Upstreams>,
}

impl std::fmt::Debug for DnsSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsSettings")
            .field("bridge", &self.bridge)
            .field("subnet", &self.subnet)
            .finish_non_exhaustive()
    }
}

/// The keeper.
pub struct ZoneKeeper {
    instance: InstanceId,
    bridge: InterfaceName,
    subnet: Subnet,
    runtime: Handle,
    helper: Recipient<PerformBindDns>,
    router: Recipient<Perform>,
    forwarder: Arc<Forwarder>,
    zone: watch::Sender<Zone>,
    status: watch::Sender<DnsStatus>,
    vms: HashMap<VmId, Watch>,
    loopback: Option<Listener>,
    on_bridge: Option<Listener>,
    /// True while the helper is being asked for port 53.
    asking: bool,
    /// True while a retry of the bridge's listener is due.
    retrying: bool,
    /// When the host's resolver is told again, and how long after a failure that is.
    route_timer: Option<SpawnHandle>,
    route_retry: Duration,
    restarts: Restarts,
}

impl std::fmt::Debug for ZoneKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZoneKeeper").field("vms", &self.vms.len()).finish_non_exhaustive()
    }
}

impl ZoneKeeper {
    /// A keeper of an empty zone, and where its state is published.
    #[must_use]
    pub fn new(settings: DnsSettings) -> (Self, watch::Receiver<DnsStatus>) {
        let DnsSettings { instance, bridge, subnet, runtime, helper, router, upstreams } = settings;
        let (status, published) = watch::channel(DnsStatus::default());
        let keeper = Self {
            instance,
            bridge,
            subnet,
            runtime,
            helper,
            router,
            forwarder: Arc::new(Forwarder::new(upstreams)),
            zone: watch::Sender::new(Zone::new(Some(subnet))),
            status,
            vms: HashMap::new(),
            loopback: None,
            on_bridge: None,
            asking: false,
            retrying: false,
            route_timer: None,
            route_retry: ROUTE_AGAIN,
            restarts: Restarts::new(LISTENER_RESTARTS, RESTART_WINDOW),
        };
        (keeper, published)
    }

    /// Writes what a VM has published, and waits for its next word.
    fn follow(&mut self, vm: VmId, ctx: &mut Context<Self>) {
        let Some(watch) = self.vms.get_mut(&vm) else { return };
        let published = watch.borrow_and_update().clone();
        self.write(vm, &published);
        if published.view.address.is_some() {
            // A VM from before the daemon's start: the network was not brought about by this one, and is there.
            self.want_bridge(ctx);
        }
        if published.gone {
            self.vms.remove(&vm);
            return;
        }
        let mut watch = self.vms[&vm].clone();
        let keeper = ctx.address().downgrade();
        // A task of its own: of the futures of a context actix asks every one at every turn, and there may be a thousand VMs.
        self.runtime.spawn(async move {
            // An error: its actor panicked. The VM lives on, with its name, and is made known again once it is attached to.
            if watch.changed().await.is_ok()
                && let Some(keeper) = keeper.upgrade()
            {
                told(keeper.send(Changed { vm, watch }).await);
            }
        });
    }

    fn write(&self, vm: VmId, published: &Published) {
        let addresses = addresses(published);
        let changed = self.zone.send_if_modified(|zone| match addresses {
            Some(addresses) => zone.set(vm, &published.view.name, addresses),
            None => zone.remove(vm),
        });
        if changed {
            let names = self.zone.borrow().len();
            self.status.send_modify(|status| status.names = names);
            tracing::debug!(%vm, name = %published.view.name, names, "zone");
        }
    }

    fn responder(&self, place: Place) -> Responder {
        let forwarder = match place {
            Place::Loopback => None,
            Place::Bridge(_) => Some(Arc::clone(&self.forwarder)),
        };
        Responder { zone: self.zone.subscribe(), place, forwarder }
    }

    fn serve_loopback(&mut self, ctx: &mut Context<Self>) {
        if self.loopback.as_ref().is_some_and(Listener::serves) {
            return;
        }
        let served = Sockets::on_loopback(self.instance).and_then(|sockets| {
            let address = sockets.address()?;
            Ok((address, server::serve(sockets, self.responder(Place::Loopback), &self.runtime)?))
        });
        let state = match served {
            Ok((address, listener)) => {
                tracing::info!(%address, "names are answered");
                self.restart_after(listener.ended(), Self::serve_loopback, ctx);
                self.loopback = Some(listener);
                LoopbackListener::Serving(address)
            }
            Err(error) => {
                tracing::warn!(%error, "names cannot be answered on loopback");
                LoopbackListener::Failed(format!("no port can be had: {error}"))
            }
        };
        self.status.send_modify(|status| status.loopback = state);
    }

    /// Brings a listener up again when it has ended, after a while.
    fn restart_after(
        &self,
        end: impl Future<Output = ()> + 'static,
        again: fn(&mut Self, &mut Context<Self>),
        ctx: &mut Context<Self>,
    ) {
        ctx.spawn(end.into_actor(self).map(move |(), keeper, ctx| {
            guard_unit(ctx, |ctx| {
                let wait = keeper.restarts.next(Instant::now());
                tracing::error!(?wait, "a DNS listener has to be brought up again");
                if let Some(wait) = wait {
                    ctx.run_later(wait, move |keeper, ctx| guard_unit(ctx, |ctx| again(keeper, ctx)));
                }
            });
        }));
    }

    fn serves_bridge(&self) -> bool {
        self.on_bridge.as_ref().is_some_and(Listener::serves)
    }

    /// Sees to it that guests are served, now or at the next retry.
    fn want_bridge(&mut self, ctx: &mut Context<Self>) {
        if self.serves_bridge() || self.retrying || std::mem::replace(&mut self.asking, true) {
            return;
        }
        let asked = self.bind_bridge();
        ctx.spawn(
            asked.into_actor(self).map(|bound, keeper, ctx| guard_unit(ctx, |ctx| keeper.bridge_bound(bound, ctx))),
        );
    }

    /// Asks the helper for port 53 of the bridge.
    fn bind_bridge(&self) -> impl Future<Output = Result<DnsSockets, WireError>> + 'static {
        let message = PerformBindDns { instance: self.instance, bridge: self.bridge.clone(), subnet: self.subnet };
        let helper = self.helper.clone();
        async move {
            helper
                .send(message)
                .await
                .unwrap_or_else(|_| Err(Panicked("the helper's client restarted".to_owned()).into()))
        }
    }

    fn bridge_bound(&mut self, bound: Result<DnsSockets, WireError>, ctx: &mut Context<Self>) {
        self.asking = false;
        if self.serves_bridge() {
            return;
        }
        let served = bound.map_err(|error| error.to_string()).and_then(|DnsSockets { udp, tcp }| {
            let sockets = Sockets::adopt(udp, tcp, self.subnet.gateway).map_err(|error| error.to_string())?;
            let address = sockets.address().map_err(|error| error.to_string())?;
            let responder = self.responder(Place::Bridge(self.subnet));
            let serving = server::serve(sockets, responder, &self.runtime).map_err(|error| error.to_string())?;
            Ok((address, serving))
        });
        let state = match served {
            Ok((address, listener)) => {
                tracing::info!(%address, "guests' questions are answered");
                self.restart_after(listener.ended(), Self::want_bridge, ctx);
                self.on_bridge = Some(listener);
                self.route_names(ctx);
                BridgeListener::Serving(address)
            }
            Err(why) => {
                tracing::warn!(why, "guests keep to the host's resolvers");
                self.retry_bridge(ctx);
                BridgeListener::Failed(why)
            }
        };
        self.status.send_modify(|status| status.bridge = state);
    }

    /// Has the host's own resolver send `.vm` here, and again from time to time: it, or the helper that told it, may have been
    /// restarted, or be just starting.
    fn route_names(&mut self, ctx: &mut Context<Self>) {
        let (instance, bridge, subnet) = (self.instance, self.bridge.clone(), self.subnet);
        let asked = self.router.send(Perform(PrivilegedOperation::RouteNames { instance, bridge, subnet }));
        ctx.spawn(asked.into_actor(self).map(|answer, keeper, ctx| {
            guard_unit(ctx, |ctx| {
                let routing = match answer {
                    Ok(Ok(_)) => HostRouting::Routed,
                    Ok(Err(error)) => HostRouting::Failed(error.to_string()),
                    Err(_) => HostRouting::Failed("the helper's client restarted".to_owned()),
                };
                // A host whose resolver cannot do that is asked ever less often.
                let doubled = (keeper.route_retry * 2).min(ROUTE_RETRY_LAST);
                let wait = match routing {
                    HostRouting::Routed => std::mem::replace(&mut keeper.route_retry, ROUTE_AGAIN).min(ROUTE_AGAIN),
                    _ => std::mem::replace(&mut keeper.route_retry, doubled),
                };
                let again = ctx.run_later(wait, |keeper, ctx| guard_unit(ctx, |ctx| keeper.route_names(ctx)));
                if let Some(before) = keeper.route_timer.replace(again) {
                    ctx.cancel_future(before);
                }
                keeper.status.send_modify(|status| status.routing = routing);
            });
        }));
    }

    fn retry_bridge(&mut self, ctx: &mut Context<Self>) {
        if std::mem::replace(&mut self.retrying, true) {
            return;
        }
        ctx.run_later(BRIDGE_RETRY, |keeper, ctx| {
            guard_unit(ctx, |ctx| {
                keeper.retrying = false;
                keeper.want_bridge(ctx);
            });
        });
    }
}

/// The addresses of a VM's name, or `None` where it has no name: only VMs that are up have one.
fn addresses(published: &Published) -> Option<Vec<IpAddr>> {
    let VmView { state, address, address6, .. } = *published.view;
    match state {
        VmState::Starting | VmState::Running | VmState::Stopping if !published.gone => {
            Some(address.map(IpAddr::V4).into_iter().chain(address6.map(IpAddr::V6)).collect())
        }
        VmState::Starting
        | VmState::Running
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed
        | VmState::Deleting => None,
    }
}

impl Actor for ZoneKeeper {
    type Context = Context<Self>;

    /// At the start, and again after a panic: then listeners still serve, but nobody watches them, and no VM is followed.
    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        guard_unit(ctx, |ctx| {
            match &self.loopback {
                Some(listener) => self.restart_after(listener.ended(), Self::serve_loopback, ctx),
                None => self.serve_loopback(ctx),
            }
            match &self.on_bridge {
                Some(listener) => {
                    self.restart_after(listener.ended(), Self::want_bridge, ctx);
                    self.route_names(ctx);
                }
                None if self.status.borrow().bridge != BridgeListener::NotAsked => self.want_bridge(ctx),
                None => {}
            }
            let vms: Vec<VmId> = self.vms.keys().copied().collect();
            for vm in vms {
                self.follow(vm, ctx);
            }
        });
    }
}

impl Supervised for ZoneKeeper {
    /// The zone may have been half written; in one piece, so that no name is missing for a moment.
    fn restarting(&mut self, _: &mut Self::Context) {
        (self.retrying, self.route_timer) = (false, None);
        self.asking = false;
        let mut zone = Zone::new(Some(self.subnet));
        for (vm, watch) in &self.vms {
            let published = watch.borrow();
            if let Some(addresses) = addresses(&published) {
                zone.set(*vm, &published.view.name, addresses);
            }
        }
        self.zone.send_replace(zone);
    }
}

/// Makes a VM known: from now on its name follows what it publishes. Again, on another watch, is fine.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct FollowVm {
    pub vm: VmId,
    pub watch: Watch,
}

impl Handler<FollowVm> for ZoneKeeper {
    type Result = ();

    fn handle(&mut self, FollowVm { vm, watch }: FollowVm, ctx: &mut Self::Context) {
        guard_unit(ctx, |ctx| {
            self.vms.insert(vm, watch);
            self.follow(vm, ctx);
        });
    }
}

/// The bridge is there: serve guests on it. Returns once that is so, or is known not to be; the status says which.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), Panicked>")]
pub struct ServeBridge;

/// A VM that is followed has published something.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Changed {
    vm: VmId,
    watch: Watch,
}

impl Handler<Changed> for ZoneKeeper {
    type Result = ();

    fn handle(&mut self, Changed { vm, watch }: Changed, ctx: &mut Self::Context) {
        guard_unit(ctx, |ctx| {
            // Otherwise it has been made known again meanwhile, on a watch of its own.
            if self.vms.get(&vm).is_some_and(|current| current.same_channel(&watch)) {
                self.follow(vm, ctx);
            }
        });
    }
}

impl Handler<ServeBridge> for ZoneKeeper {
    type Result = ResponseActFuture<Self, Result<(), Panicked>>;

    fn handle(&mut self, _: ServeBridge, _: &mut Self::Context) -> Self::Result {
        if self.serves_bridge() {
            return Box::pin(std::future::ready(Ok(())).into_actor(self));
        }
        let asked = self.bind_bridge();
        Box::pin(asked.into_actor(self).map(|bound, keeper, ctx| {
            guard(ctx, |ctx| {
                keeper.bridge_bound(bound, ctx);
                Ok(())
            })
        }))
    }
}

/// Panics: for the tests of supervision.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), Panicked>")]
pub(super) struct Panic;

#[cfg(test)]
impl Handler<Panic> for ZoneKeeper {
    type Result = Result<(), Panicked>;

    fn handle(&mut self, _: Panic, ctx: &mut Self::Context) -> Self::Result {
        guard(ctx, |_| panic!("asked to"))
    }
}
