//! The actor: carries the pool's effects out through the helper, and wakes whoever waits for a tap.

use super::addresses::TapLease;
use super::grants::{Allowed, grants};
use super::pool::{Effect, Pool};
use crate::network::{Certainty, EnsureNetwork, NetworkSettings, UplinkSource};
use crate::privileged::Perform;
use crate::supervise::guard_unit;
use actix::fut::{ActorFutureExt as _, WrapFuture as _};
use actix::{Actor, AsyncContext as _, Context, Recipient, Supervised};
use messages::WireError;
use messages::error::ErrorKind;
use messages::ids::VmId;
use messages::privileged::{Grant, PrivilegedOperation, PrivilegedReply, TapNumber, guest_taps};
use messages::vm::NetAllow;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

/// Enough for every VM of a full bridge to ask at once.
const MAILBOX: usize = 1024;
/// How long to wait before the background work is tried again; doubles.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(60);
/// How often the network of running VMs is looked after: a reload of the host's firewall may take the rules with it.
const CHECK: Duration = Duration::from_secs(15);

/// What a pool is made from.
pub struct PoolSettings {
    pub network: NetworkSettings,
    /// `tap_pool_size`: how many free taps to keep ready.
    pub size: usize,
    pub uplink: Box<dyn UplinkSource>,
    /// Leases from before this daemon's start, from the store.
    pub leases: Vec<(VmId, TapNumber)>,
    /// What VMs may reach, also from the store; VMs by their ids.
    pub allow: HashMap<VmId, Vec<NetAllow>>,
}

impl std::fmt::Debug for PoolSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolSettings").field("network", &self.network).field("size", &self.size).finish_non_exhaustive()
    }
}

pub(super) type LeaseResult = Result<TapLease, WireError>;

/// The tap pool.
pub struct TapPool {
    pub(super) settings: PoolSettings,
    helper: Recipient<Perform>,
    network: Recipient<EnsureNetwork>,
    pub(super) pool: Pool,
    /// Who waits for which number. A waiter that left costs nothing; the lease stays until it is returned.
    pub(super) waiters: HashMap<TapNumber, Vec<oneshot::Sender<LeaseResult>>>,
    /// What each VM with a lease may reach.
    pub(super) allowed: Allowed,
    /// What the kernel lets through; none where nobody knows.
    applied: Option<Vec<Grant>>,
    /// True while the helper writes grants.
    granting: bool,
    /// Who waits until the grants are as they should be.
    pub(super) grant_waiters: Vec<oneshot::Sender<Result<(), WireError>>>,
    /// How often the rules had been written when grants were last known.
    writings: u64,
    /// True once `ListTaps` was answered: before that nobody knows what is surplus.
    listed: bool,
    /// True while its answer is awaited.
    listing: bool,
    /// The wait before the next try of what failed in the background.
    retry: Duration,
    /// True while a retry is due.
    retrying: bool,
    /// True while the network is being looked after: one that takes longer than it should is not joined by others.
    checking: bool,
}

impl std::fmt::Debug for TapPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TapPool").field("pool", &self.pool).finish_non_exhaustive()
    }
}

impl TapPool {
    /// A pool. It asks the helper for nothing before it is started.
    #[must_use]
    pub fn new(settings: PoolSettings, helper: Recipient<Perform>, network: Recipient<EnsureNetwork>) -> Self {
        let pool = Pool::new(guest_taps(settings.network.subnet), settings.size);
        Self {
            settings,
            helper,
            network,
            pool,
            waiters: HashMap::new(),
            allowed: Allowed::new(),
            applied: None,
            granting: false,
            grant_waiters: Vec::new(),
            writings: 0,
            listed: false,
            listing: false,
            retry: RETRY_FIRST,
            retrying: false,
            checking: false,
        }
    }

    pub(super) fn lease_of(&self, number: TapNumber) -> TapLease {
        let NetworkSettings { instance, subnet, ref default_dns, .. } = self.settings.network;
        let mut uplink = self.settings.uplink.read();
        if !default_dns.is_empty() {
            uplink.resolvers.clone_from(default_dns);
        }
        TapLease::new(instance, subnet, number, uplink)
    }

    pub(super) fn carry_out(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        for effect in effects {
            match effect {
                Effect::Make(number) => self.make(number, ctx),
                Effect::Remove(number) => self.remove(number, ctx),
            }
        }
    }

    fn make(&self, number: TapNumber, ctx: &mut Context<Self>) {
        let NetworkSettings { instance, ref bridge, .. } = self.settings.network;
        let mtu = self.settings.uplink.read().mtu;
        let operation = PrivilegedOperation::EnsureTap { instance, bridge: bridge.clone(), tap: number, mtu };
        let made = make_tap(self.helper.clone(), self.network.clone(), operation);
        ctx.spawn(made.into_actor(self).map(move |result, pool, ctx| {
            guard_unit(ctx, |ctx| pool.tap_made(number, result, ctx));
        }));
    }

    fn tap_made(&mut self, number: TapNumber, result: Result<u64, WireError>, ctx: &mut Context<Self>) {
        if let Ok(writings) = &result {
            self.rules_seen(*writings, ctx);
        }
        let result = result.map(drop);
        let (_, effects) = self.pool.made(number, result.as_ref().copied().map_err(|_| ()));
        let waiters = self.waiters.remove(&number).unwrap_or_default();
        if let Err(error) = &result {
            debug!(tap = number.0, %error, "cannot make a tap");
            self.retry_later(ctx);
        } else {
            self.retry = RETRY_FIRST;
        }
        for waiter in waiters {
            let answer = result.clone().map(|()| self.lease_of(number));
            if waiter.send(answer).is_err() {
                debug!(tap = number.0, "whoever waited for a tap has left");
            }
        }
        self.carry_out(effects, ctx);
    }

    fn remove(&self, number: TapNumber, ctx: &mut Context<Self>) {
        let operation = PrivilegedOperation::RemoveTap { instance: self.settings.network.instance, tap: number };
        let removed = perform(self.helper.clone(), operation);
        ctx.spawn(removed.into_actor(self).map(move |result, pool, ctx| {
            guard_unit(ctx, |ctx| {
                if let Err(error) = &result {
                    warn!(tap = number.0, %error, "cannot remove a tap");
                    // What is there has to be looked up anew.
                    pool.listed = false;
                    pool.retry_later(ctx);
                }
                let effects = pool.pool.removed(number, result.map(drop).map_err(drop));
                pool.carry_out(effects, ctx);
            });
        }));
    }

    /// Finds what earlier daemons left, then fills the pool up. Leases do not wait for it.
    fn settle(&mut self, ctx: &mut Context<Self>) {
        if self.listed {
            self.settle_grants(ctx);
            let effects = self.pool.refill();
            return self.carry_out(effects, ctx);
        }
        if std::mem::replace(&mut self.listing, true) {
            return;
        }
        let list = PrivilegedOperation::ListTaps { instance: self.settings.network.instance };
        ctx.spawn(perform(self.helper.clone(), list).into_actor(self).map(|result, pool, ctx| {
            pool.listing = false;
            guard_unit(ctx, |ctx| pool.taps_listed(result, ctx));
        }));
    }

    fn taps_listed(&mut self, result: Result<PrivilegedReply, WireError>, ctx: &mut Context<Self>) {
        match result {
            Ok(PrivilegedReply::Taps(taps)) => {
                self.listed = true;
                self.retry = RETRY_FIRST;
                self.settle_grants(ctx);
                self.pool.keep_only(&taps);
                let mut effects = self.pool.found(taps);
                effects.extend(self.pool.refill());
                self.carry_out(effects, ctx);
            }
            Ok(other) => warn!(?other, "the network helper answered something else"),
            Err(error) => {
                // Said once, and not as a warning: without VMs that want a network nothing is missing.
                if self.retry == RETRY_FIRST {
                    info!(%error, "no taps are kept ready for now");
                }
                self.retry_later(ctx);
            }
        }
    }

    /// What has to be let through now.
    fn wanted_grants(&self) -> Vec<Grant> {
        grants(&self.pool.leases(), &self.allowed)
    }

    /// Whether the kernel lets through exactly what it has to.
    pub(super) fn grants_are_settled(&self) -> bool {
        self.applied.as_ref().is_some_and(|applied| *applied == self.wanted_grants())
    }

    /// The rules were written so often by now: new ones hold no grants.
    fn rules_seen(&mut self, writings: u64, ctx: &mut Context<Self>) {
        if writings != self.writings {
            self.writings = writings;
            self.applied = Some(Vec::new());
            self.settle_grants(ctx);
        }
    }

    /// Brings the kernel's grants in line, one transaction at a time, and tells those who wait.
    pub(super) fn settle_grants(&mut self, ctx: &mut Context<Self>) {
        if self.granting {
            return;
        }
        if self.grants_are_settled() {
            return self.answer_grant_waiters(&Ok(()));
        }
        self.granting = true;
        let NetworkSettings { instance, ref bridge, subnet, .. } = self.settings.network;
        let (wanted, writings) = (self.wanted_grants(), self.writings);
        let (bridge, grants) = (bridge.clone(), wanted.clone());
        let operation = PrivilegedOperation::SetGrants { instance, bridge, subnet, grants };
        let set = set_grants(self.helper.clone(), self.network.clone(), operation, wanted.is_empty());
        ctx.spawn(set.into_actor(self).map(move |result, pool, ctx| {
            pool.granting = false;
            // Rules that were written meanwhile hold the grants, or do not.
            let known = (pool.writings == writings).then_some(wanted);
            guard_unit(ctx, |ctx| pool.grants_set(known, result, ctx));
        }));
    }

    fn grants_set(&mut self, grants: Option<Vec<Grant>>, result: Result<(), WireError>, ctx: &mut Context<Self>) {
        match result {
            Ok(()) => {
                self.applied = grants;
                self.settle_grants(ctx);
            }
            Err(error) => {
                self.applied = None;
                if self.grant_waiters.is_empty() {
                    debug!(%error, "cannot set grants");
                }
                self.answer_grant_waiters(&Err(error));
                self.retry_later(ctx);
            }
        }
    }

    fn answer_grant_waiters(&mut self, result: &Result<(), WireError>) {
        for waiter in self.grant_waiters.drain(..) {
            if waiter.send(result.clone()).is_err() {
                debug!("whoever waited for grants has left");
            }
        }
    }

    /// Looks whether free taps are still there, and after the rules while somebody relies on them.
    fn check(&mut self, ctx: &mut Context<Self>) {
        if !self.retrying {
            self.listed = false;
            self.settle(ctx);
        }
        if self.pool.leased() == 0 || self.checking {
            return;
        }
        self.checking = true;
        let ensured = ensure(self.network.clone(), Certainty::Fresh);
        ctx.spawn(ensured.into_actor(self).map(|result, pool, ctx| {
            pool.checking = false;
            guard_unit(ctx, |ctx| match result {
                Ok(writings) => pool.rules_seen(writings, ctx),
                Err(error) => debug!(%error, "cannot look after the network"),
            });
        }));
    }

    pub(super) fn refill_later(&mut self, ctx: &mut Context<Self>) {
        // After the lease was answered: making a tap is a thousand times slower.
        ctx.run_later(Duration::ZERO, |pool, ctx| guard_unit(ctx, |ctx| pool.settle(ctx)));
    }

    fn retry_later(&mut self, ctx: &mut Context<Self>) {
        if self.retrying {
            return;
        }
        self.retrying = true;
        let wait = self.retry;
        self.retry = (self.retry * 2).min(RETRY_LAST);
        ctx.run_later(wait, |pool, ctx| {
            guard_unit(ctx, |ctx| {
                pool.retrying = false;
                pool.settle(ctx);
            });
        });
    }
}

impl Actor for TapPool {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        guard_unit(ctx, |ctx| {
            let leases = std::mem::take(&mut self.settings.leases);
            self.allowed.extend(self.settings.allow.drain());
            let effects = self.pool.adopt(leases);
            self.carry_out(effects, ctx);
            self.settle(ctx);
        });
        ctx.run_interval(CHECK, |pool, ctx| guard_unit(ctx, |ctx| pool.check(ctx)));
    }
}

impl Supervised for TapPool {
    /// What was under way is forgotten with the context; the leases are kept, and the rest is looked up again.
    fn restarting(&mut self, _: &mut Self::Context) {
        let NetworkSettings { subnet, .. } = self.settings.network;
        self.settings.leases = self.pool.leases();
        self.pool = Pool::new(guest_taps(subnet), self.settings.size);
        self.waiters.clear();
        self.grant_waiters.clear();
        (self.applied, self.granting) = (None, false);
        (self.listed, self.listing, self.retrying, self.checking) = (false, false, false, false);
    }
}

/// Makes a tap; where its bridge is gone, brings the network about anew and tries once more.
async fn make_tap(
    helper: Recipient<Perform>,
    network: Recipient<EnsureNetwork>,
    operation: PrivilegedOperation,
) -> Result<u64, WireError> {
    let writings = ensure(network.clone(), Certainty::Remembered).await?;
    match perform(helper.clone(), operation.clone()).await {
        Err(error) if error.kind == ErrorKind::NotFound => {
            let writings = ensure(network, Certainty::Fresh).await?;
            perform(helper, operation).await.map(|_| writings)
        }
        result => result.map(|_| writings),
    }
}

/// Sets grants; where the rules are gone, brings the network about anew and tries once more. No rules hold no grants.
async fn set_grants(
    helper: Recipient<Perform>,
    network: Recipient<EnsureNetwork>,
    operation: PrivilegedOperation,
    none: bool,
) -> Result<(), WireError> {
    match perform(helper.clone(), operation.clone()).await {
        Err(error) if error.kind == ErrorKind::NotFound && none => Ok(()),
        Err(error) if error.kind == ErrorKind::NotFound => {
            ensure(network, Certainty::Fresh).await?;
            perform(helper, operation).await.map(drop)
        }
        result => result.map(drop),
    }
}

async fn ensure(network: Recipient<EnsureNetwork>, certainty: Certainty) -> Result<u64, WireError> {
    let sent = network.send(EnsureNetwork(certainty)).await;
    sent.map_err(|e| WireError::from_error(ErrorKind::Unavailable, &e))?
}

async fn perform(helper: Recipient<Perform>, operation: PrivilegedOperation) -> Result<PrivilegedReply, WireError> {
    let sent = helper.send(Perform(operation)).await;
    sent.map_err(|e| WireError::from_error(ErrorKind::Unavailable, &e))?
}
