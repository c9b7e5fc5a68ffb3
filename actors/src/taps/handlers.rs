//! What VM actors, the registry and `daemon status` ask of the pool.

use super::actor::{LeaseResult, TapPool};
use super::addresses::TapLease;
use super::pool::Granted;
use crate::supervise::{Panicked, guard};
use actix::{Context, Handler, Message, ResponseFuture};
use futures::FutureExt as _;
use messages::WireError;
use messages::error::ErrorKind;
use messages::ids::VmId;
use messages::privileged::TapNumber;
use messages::vm::NetAllow;
use std::future::ready;
use tokio::sync::oneshot;

/// Gives a VM a tap: the one it holds, the one it wants if that is free, or any. What it was allowed is open then, and what
/// the tap's former holder was allowed is not.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<TapLease, WireError>")]
pub struct Lease {
    pub vm: VmId,
    /// The number that it had before.
    pub wanted: Option<TapNumber>,
    /// What it may reach; VMs by their ids.
    pub allow: Vec<NetAllow>,
}

/// Takes a VM's tap back; none is fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<(), WireError>")]
pub struct Return {
    pub vm: VmId,
}

/// Takes over leases from before the daemon's start. Also a field of `PoolSettings`, which is the better time.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<(), WireError>")]
pub struct Adopt(pub Vec<(VmId, TapNumber)>);

/// Takes back every tap that none of these VMs holds.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<(), WireError>")]
pub struct ReturnAll {
    pub except: Vec<VmId>,
}

/// Asks for the pool's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<PoolFigures, WireError>")]
pub struct Usage;

/// The pool's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolFigures {
    pub capacity: usize,
    pub leased: usize,
    /// Free and there.
    pub ready: usize,
}

impl Handler<Lease> for TapPool {
    type Result = ResponseFuture<LeaseResult>;

    fn handle(&mut self, Lease { vm, wanted, allow }: Lease, ctx: &mut Context<Self>) -> Self::Result {
        let answer = guard(ctx, |ctx| {
            let (granted, effects) = self.pool.lease(vm, wanted).map_err(|dry| {
                WireError::from_error(ErrorKind::Resources, &dry)
                    .hint("delete or stop a VM, or set a larger `cidr` in the config, or use `--net none`")
            })?;
            self.allowed.insert(vm, allow);
            self.carry_out(effects, ctx);
            self.refill_later(ctx);
            let settled = if self.grants_are_settled() {
                None
            } else {
                let (waiter, settled) = oneshot::channel();
                self.grant_waiters.push(waiter);
                self.settle_grants(ctx);
                Some(settled)
            };
            Ok::<_, WireError>(match granted {
                Granted::Now(number) => (Answer::Now(self.lease_of(number)), settled),
                Granted::Soon(number) => {
                    let (waiter, granted) = oneshot::channel();
                    self.waiters.entry(number).or_default().push(waiter);
                    (Answer::Soon(granted), settled)
                }
            })
        });
        let restarted = || Err(Panicked("the tap pool restarted".to_owned()).into());
        match answer {
            Ok((Answer::Now(lease), None)) => ready(Ok(lease)).boxed_local(),
            Ok((answer, settled)) => Box::pin(async move {
                let lease = match answer {
                    Answer::Now(lease) => lease,
                    Answer::Soon(granted) => granted.await.unwrap_or_else(|_| restarted())?,
                };
                if let Some(settled) = settled {
                    settled.await.unwrap_or_else(|_| restarted().map(drop))?;
                }
                Ok(lease)
            }),
            Err(error) => ready(Err(error)).boxed_local(),
        }
    }
}

enum Answer {
    Now(TapLease),
    Soon(oneshot::Receiver<LeaseResult>),
}

impl Handler<Return> for TapPool {
    type Result = Result<(), WireError>;

    fn handle(&mut self, Return { vm }: Return, ctx: &mut Context<Self>) -> Self::Result {
        guard(ctx, |ctx| {
            let effects = self.pool.give_back(vm);
            self.allowed.remove(&vm);
            self.carry_out(effects, ctx);
            self.settle_grants(ctx);
            Ok(())
        })
    }
}

impl Handler<Adopt> for TapPool {
    type Result = Result<(), WireError>;

    fn handle(&mut self, Adopt(leases): Adopt, ctx: &mut Context<Self>) -> Self::Result {
        guard(ctx, |ctx| {
            let effects = self.pool.adopt(leases);
            self.carry_out(effects, ctx);
            Ok(())
        })
    }
}

impl Handler<ReturnAll> for TapPool {
    type Result = Result<(), WireError>;

    fn handle(&mut self, ReturnAll { except }: ReturnAll, ctx: &mut Context<Self>) -> Self::Result {
        guard(ctx, |ctx| {
            for (vm, _) in self.pool.leases().into_iter().filter(|(vm, _)| !except.contains(vm)) {
                let effects = self.pool.give_back(vm);
                self.allowed.remove(&vm);
                self.carry_out(effects, ctx);
            }
            self.settle_grants(ctx);
            Ok(())
        })
    }
}

impl Handler<Usage> for TapPool {
    type Result = Result<PoolFigures, WireError>;

    fn handle(&mut self, _: Usage, ctx: &mut Context<Self>) -> Self::Result {
        guard(ctx, |_| {
            Ok(PoolFigures { capacity: self.pool.capacity(), leased: self.pool.leased(), ready: self.pool.ready() })
        })
    }
}
