//! What is asked of the registry without changing a VM: one view, all of them, the counts.

use super::Registry;
use super::admission::Taken;
use crate::supervise::{Panicked, guard};
use actix::{Context, Message};
use messages::error::{ErrorKind, WireError};
use messages::ids::VmRef;
use messages::vm::VmView;
use std::sync::Arc;

/// What is published of one VM.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Arc<VmView>, WireError>")]
pub struct Show(pub VmRef);

impl actix::Handler<Show> for Registry {
    type Result = Result<Arc<VmView>, WireError>;

    fn handle(&mut self, Show(reference): Show, ctx: &mut Context<Self>) -> Self::Result {
        guard(ctx, |_| {
            self.sweep();
            let vm = self.names.resolve(&reference)?;
            self.vms
                .get(&vm)
                .map(|entry| self.with_names(entry.view()))
                .ok_or_else(|| WireError::new(ErrorKind::NotFound, format!("VM {reference} is gone")))
        })
    }
}

/// What is published of every VM, oldest first.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Vec<Arc<VmView>>, Panicked>")]
pub struct List;

impl actix::Handler<List> for Registry {
    type Result = Result<Vec<Arc<VmView>>, Panicked>;

    fn handle(&mut self, _: List, ctx: &mut Context<Self>) -> Self::Result {
        guard(ctx, |_| {
            self.sweep();
            let mut views: Vec<_> = self.vms.values().map(|entry| self.with_names(entry.view())).collect();
            views.sort_unstable_by_key(|view| (view.created_at_ms, view.id));
            Ok(views)
        })
    }
}

/// Counts.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Summary, Panicked>")]
pub struct Summarize;

/// How many VMs there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub taken: Taken,
}

impl actix::Handler<Summarize> for Registry {
    type Result = Result<Summary, Panicked>;

    fn handle(&mut self, _: Summarize, ctx: &mut Context<Self>) -> Self::Result {
        guard(ctx, |_| {
            self.sweep();
            Ok(Summary { taken: self.taken() })
        })
    }
}
