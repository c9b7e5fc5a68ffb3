//! What is done with the logs of every VM that runs, from time to time: away from the registry's own thread, for it blocks.

use crate::vm::VmContext;
use crate::vm::ports::Ports;
use messages::ids::VmId;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// One such task, and the last run of it.
#[derive(Debug, Default)]
pub(super) struct Tending(Option<JoinHandle<()>>);

impl Tending {
    /// Runs it for these VMs, unless the last run still goes on: a disk that hangs must not gather threads.
    pub(super) fn run(&mut self, context: &VmContext, vms: Vec<VmId>, one: fn(&dyn Ports, VmId)) {
        if vms.is_empty() || self.0.as_ref().is_some_and(|last| !last.is_finished()) {
            return;
        }
        let ports = Arc::clone(&context.ports);
        self.0 = Some(context.runtime.spawn_blocking(move || vms.into_iter().for_each(|vm| one(ports.as_ref(), vm))));
    }
}
