//! Registry, VM actors and a real store, over a scripted world.

mod crashes;
mod lifecycle;
mod supervision;

use super::*;
use crate::host::HostFacts;
use crate::store::{Phase, Store, VmRecord};
use crate::vm::fake::World;
use crate::vm::published::{until_down, until_gone, until_made, until_ready};
use crate::vm::{Command, VmContext};
use actix::{Addr, Supervisor};
use messages::WireError;
use messages::ids::{RequestId, VmId};
use messages::vm::{NetworkMode, Provenance, Readiness, VmSize, VmSpec, VmState, VmView};
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);
const HOST: HostFacts = HostFacts { cpus: 4, memory_mib: 10_240, memory_available_mib: 10_240 };
const DISK: DiskFacts = DiskFacts { free: 100 << 30, total: 100 << 30 };

/// One life of a daemon: registry, VMs and store, over a world that outlives it.
struct Daemon {
    registry: Addr<Registry>,
    store: Store,
    world: World,
}

impl Daemon {
    async fn start(dir: &std::path::Path, world: &World) -> Self {
        let store = Store::open(&dir.join("banger.db")).unwrap();
        let vm = VmContext {
            ports: Arc::new(world.clone()),
            store: store.clone(),
            runtime: tokio::runtime::Handle::current(),
            host_restarted: world.script().host_restarted,
        };
        let records = store.all().await.unwrap();
        let context = RegistryContext { vm, host: HOST, names: None };
        let registry = Supervisor::start(move |_| Registry::new(context, records));
        Self { registry, store, world: world.clone() }
    }

    async fn create(&self, request: u8, spec: VmSpec, start: bool) -> Result<Handle, WireError> {
        let size = VmSize {
            vcpus: 1,
            memory_mib: spec.memory_mib.unwrap_or(512),
            disk_bytes: 1 << 30,
            vcpus_from: Provenance::Flag,
            memory_from: Provenance::Flag,
            disk_from: Provenance::Flag,
        };
        let create = Create {
            request: RequestId([request; 16]),
            spec,
            image: "image".parse().unwrap(),
            kernel: "kernel".parse().unwrap(),
            size,
            start,
            disk: DISK,
        };
        self.registry.send(create).await.unwrap()
    }

    async fn running(&self, request: u8, spec: VmSpec) -> Handle {
        let mut handle = self.create(request, spec, true).await.unwrap();
        until_ready(&mut handle.watch, 1, Readiness::System, PATIENCE).await.unwrap();
        handle
    }

    async fn get(&self, reference: &str) -> Result<Handle, WireError> {
        self.registry.send(Get { reference: reference.parse().unwrap(), to_start: false }).await.unwrap()
    }

    async fn list(&self) -> Vec<Arc<VmView>> {
        self.registry.send(List).await.unwrap().unwrap()
    }

    /// Waits until no VM is on its way anywhere.
    async fn settled(&self) -> Vec<Arc<VmView>> {
        let settling = async {
            loop {
                let list = self.list().await;
                let moving = list.iter().any(|view| match view.state {
                    VmState::Starting | VmState::Stopping | VmState::Deleting => true,
                    VmState::Stopped | VmState::Running | VmState::Failed => false,
                });
                if !moving {
                    return list;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, settling).await.expect("the VMs settle")
    }

    /// Waits until the one record has this phase, and says whether the guest was ready.
    async fn until_written(&self, wanted: (Phase, bool)) {
        self.until_records(|record| (record.phase, record.was_ready) == wanted).await;
    }

    /// Waits until a step has been come to so often.
    async fn until_passed(&self, step: &'static str, times: usize) {
        let passing = async {
            while self.world.script().passed.get(step).is_none_or(|passed| *passed < times) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, passing).await.expect("the step is come to");
    }

    /// Waits until all records are as wanted: a VM is told to be ready before its record says so.
    async fn until_records(&self, wanted: impl Fn(&VmRecord) -> bool) {
        let writing = async {
            loop {
                let records = self.store.all().await.unwrap();
                if records.iter().all(&wanted) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, writing).await.expect("the record is written");
    }

    /// What exists is what is on record, and nothing else.
    async fn assert_no_leaks(&self) {
        let records = self.store.all().await.unwrap();
        let list = self.list().await;
        let ids = |ids: Vec<VmId>| ids.into_iter().collect::<std::collections::BTreeSet<_>>();
        let recorded = ids(records.iter().map(|record| record.id).collect());
        let running = ids(list.iter().filter(|view| view.state == VmState::Running).map(|view| view.id).collect());
        assert_eq!(recorded, ids(list.iter().map(|view| view.id).collect()), "records and views");
        assert_eq!(self.world.alive(), running, "VMMs");
        assert!(self.world.outside().dirs.is_subset(&recorded), "directories");
        assert!(self.world.outside().disks.is_subset(&recorded), "disks");
        let leased = ids(self.world.inside().taps.keys().copied().collect());
        assert!(leased.is_subset(&running), "taps {leased:?} of {running:?}");
    }
}

fn spec(name: &str) -> VmSpec {
    VmSpec { name: Some(name.parse().unwrap()), network: NetworkMode::Nat, ..VmSpec::default() }
}

/// Runs one life of a daemon; whatever it has not finished when the future ends is gone, as after a kill -9.
fn life<T>(run: impl Future<Output = T>) -> T {
    let system = actix::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    });
    system.block_on(run)
}
