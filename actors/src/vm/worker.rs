//! Runs a VM's effects, one after the other, away from the actor: whatever hangs here delays this VM alone.
//!
//! The worker keeps no state of the VM. It is given a copy of the record with each piece of work, and its results go back as
//! events with the number of their attempt.

use super::outcomes::{Done, Outcome};
use super::ports::{Boot, LaunchPlan, LinkEvent, Ports, Vmm};
use super::state::{Attempt, Purpose};
use crate::store::{Created, Durability, Phase, Store, StoreError, VmRecord};
use crate::supervise::told;
use actix::WeakRecipient;
use futures::future::BoxFuture;
use messages::error::{ErrorKind, WireError};
use messages::vm::NetworkMode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Between two looks for a VMM that may or may not live: out of descriptors, most likely.
const LOOK_AGAIN_FIRST: Duration = Duration::from_millis(200);
const LOOK_AGAIN_LAST: Duration = Duration::from_secs(10);

/// One piece of work. Those with an outcome say which.
pub(super) enum Work {
    /// [`Outcome::Attached`].
    Attach {
        attempt: Attempt,
        record: VmRecord,
        events: mpsc::Sender<LinkEvent>,
    },
    /// [`Outcome::Prepared`].
    Prepare {
        attempt: Attempt,
        record: VmRecord,
        purpose: Purpose,
    },
    /// [`Outcome::Launched`].
    Launch {
        attempt: Attempt,
        record: VmRecord,
        boot: Box<Boot>,
        events: mpsc::Sender<LinkEvent>,
    },
    /// [`Outcome::Gathered`]. Put off by any work that comes after it.
    Gather {
        attempt: Attempt,
        record: VmRecord,
        /// Where the agent is to be listened for, if it is not.
        listen: Option<mpsc::Sender<LinkEvent>>,
    },
    Kill(Option<Arc<dyn Vmm>>),
    /// Begun in its turn, after the intents before it are durable; nothing behind it waits for its end.
    Begin(BoxFuture<'static, ()>),
    /// [`Outcome::Released`].
    Release {
        attempt: Attempt,
        record: VmRecord,
    },
    /// [`Outcome::Removed`].
    Remove {
        attempt: Attempt,
        record: VmRecord,
    },
    /// Answered where somebody waits for it.
    Write {
        record: VmRecord,
        durability: Durability,
        answer: Option<oneshot::Sender<Result<(), StoreError>>>,
    },
}

pub(super) struct Worker {
    pub(super) ports: Arc<dyn Ports>,
    pub(super) store: Store,
    pub(super) actor: WeakRecipient<Done>,
    /// Keeps the registry from building the VM's next actor while a step of the present one is under way.
    pub(super) _ticket: Arc<crate::supervise::Ticket>,
}

/// A [`Work::Gather`] under way.
struct Gathering<'w> {
    attempt: Attempt,
    outcome: BoxFuture<'w, Outcome>,
}

impl Worker {
    pub(super) async fn run(self, mut queue: mpsc::UnboundedReceiver<Work>) {
        let mut gathering: Option<Gathering<'_>> = None;
        loop {
            let work = match &mut gathering {
                None => queue.recv().await,
                Some(Gathering { attempt, outcome }) => tokio::select! {
                    biased;
                    work = queue.recv() => work,
                    outcome = outcome => {
                        let attempt = *attempt;
                        gathering = None;
                        self.tell(attempt, outcome).await;
                        continue;
                    }
                },
            };
            let Some(work) = work else { return };
            if let Some(Gathering { attempt, .. }) = gathering.take() {
                // A helper that hangs must not keep a VM from being stopped. A lease that nobody waits for any more is given back
                // with the VM's others.
                let put_off = || WireError::new(ErrorKind::Unavailable, "something else came first");
                self.tell(attempt, Outcome::Gathered { boot: Err(put_off()), link: None }).await;
            }
            match work {
                Work::Gather { attempt, record, listen } => {
                    gathering = Some(Gathering { attempt, outcome: Box::pin(self.gather_for(record, listen)) });
                }
                work => self.one(work).await,
            }
        }
    }

    async fn one(&self, work: Work) {
        match work {
            Work::Attach { attempt, record, events } => {
                let outcome = self.attach(record, events).await;
                self.tell(attempt, outcome).await;
            }
            Work::Prepare { attempt, record, purpose } => {
                let id = record.id;
                let result = self.prepare(record, purpose).await.map(Box::new);
                self.ports.at_step(id, "prepared").await;
                self.tell(attempt, Outcome::Prepared(result)).await;
            }
            Work::Launch { attempt, record, boot, events } => {
                let outcome = self.launch(&record, *boot, events).await;
                self.ports.at_step(record.id, "launched").await;
                self.tell(attempt, outcome).await;
            }
            Work::Gather { .. } => unreachable!("`run` takes these"),
            Work::Kill(vmm) => {
                if let Some(vmm) = vmm {
                    vmm.kill();
                }
            }
            Work::Begin(task) => drop(tokio::spawn(task)),
            Work::Release { attempt, record } => {
                self.ports.return_tap(record.id).await;
                self.ports.at_step(record.id, "released").await;
                self.tell(attempt, Outcome::Released).await;
            }
            Work::Remove { attempt, record } => {
                let result = self.remove(&record).await;
                self.tell(attempt, Outcome::Removed(result)).await;
            }
            Work::Write { record, durability, answer } => {
                let (id, deleting) = (record.id, record.phase == Phase::Deleting);
                let result = self.store.put(record, durability).await;
                match (answer, result) {
                    // The caller may have left.
                    (Some(answer), result) => drop(answer.send(result)),
                    // A create that was rolled back before there was a row.
                    (None, Err(StoreError::NotThere(_))) if deleting => {}
                    // What depends on it is a better start of the next daemon: a stop goes on with a full disk.
                    (None, Err(error)) => {
                        tracing::error!(vm = %id, error = %WireError::from(error), "cannot write the VM's record");
                    }
                    (None, Ok(())) => {}
                }
                self.ports.at_step(id, "written").await;
            }
        }
    }

    async fn tell(&self, attempt: Attempt, outcome: Outcome) {
        if let Some(actor) = self.actor.upgrade() {
            told(actor.send(Done { attempt, outcome }).await);
        }
    }

    async fn attach(&self, record: VmRecord, events: mpsc::Sender<LinkEvent>) -> Outcome {
        let dead = || Outcome::Attached { alive: None, error: None };
        let mut pause = LOOK_AGAIN_FIRST;
        let vmm = loop {
            match self.ports.adopt(record.id).await {
                Ok(Some(vmm)) => break vmm,
                Ok(None) => return dead(),
                // Whoever cannot look knows nothing: taken for dead, a VM that lives would lose its tap, its files, or both.
                Err(error) => {
                    tracing::error!(vm = %record.id, error = %error, "cannot tell whether the VM's VMM lives")
                }
            }
            if self.actor.upgrade().is_none() {
                return dead();
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_AGAIN_LAST);
        };
        // What the VM was booted with is sought when it can be spoken to: a guest that is up needs nothing of it.
        match self.ports.listen(record.id, events).await {
            Ok(link) => Outcome::Attached { alive: Some((vmm, Some(link))), error: None },
            Err(error) => Outcome::Attached { alive: Some((vmm, None)), error: Some(error) },
        }
    }

    async fn gather_for(&self, record: VmRecord, listen: Option<mpsc::Sender<LinkEvent>>) -> Outcome {
        let link = match listen {
            Some(events) => Some(self.ports.listen(record.id, events).await),
            None => None,
        };
        Outcome::Gathered { boot: self.gather(record).await.map(Box::new), link }
    }

    /// Leases and files of a boot whose record exists.
    async fn gather(&self, record: VmRecord) -> Result<Boot, WireError> {
        let (mut boot, record) = self.lease(record).await?;
        (boot.disk, boot.disk_uuid) = self.ports.ensure_disk(record.id, record.size.disk_bytes).await?;
        Ok(boot)
    }

    async fn lease(&self, mut record: VmRecord) -> Result<(Boot, VmRecord), WireError> {
        let artifacts =
            self.ports.artifacts(record.id, record.name.clone(), record.image.clone(), record.kernel.clone());
        let tap = async {
            match record.network {
                NetworkMode::Nat => {
                    let allow = record.net_allow.clone();
                    self.ports.lease_tap(record.id, record.tap, allow).await.map(Some)
                }
                NetworkMode::None => Ok(None),
            }
        };
        let (artifacts, tap, authorized_keys) = tokio::try_join!(artifacts, tap, self.ports.authorized_keys())?;
        record.tap = tap.as_ref().map(|tap| tap.number);
        let (disk, disk_uuid) = (std::path::PathBuf::new(), String::new());
        let boot = Boot { artifacts, tap, disk, disk_uuid, authorized_keys };
        Ok((boot, record))
    }

    async fn prepare(&self, record: VmRecord, purpose: Purpose) -> Result<Boot, WireError> {
        let id = record.id;
        self.ports.at_step(id, "begin").await;
        let leased = match purpose {
            Purpose::Create | Purpose::Start => self.lease(record).await,
            // No network is needed to lie on a disk.
            Purpose::CreateOnly | Purpose::CreateThenStart => self
                .lease(VmRecord { network: NetworkMode::None, ..record.clone() })
                .await
                .map(|(boot, leased)| (boot, VmRecord { network: record.network, tap: None, ..leased })),
        };
        let (mut boot, record) = leased?;
        self.ports.at_step(id, "leased").await;
        let bytes = record.size.disk_bytes;
        match purpose {
            Purpose::Create | Purpose::CreateOnly | Purpose::CreateThenStart => {
                match self.store.create(record).await? {
                    Created::New => {}
                    Created::Already(vm) | Created::Deleted(vm) => {
                        return Err(WireError::new(ErrorKind::Conflict, format!("this request made VM {vm} before")));
                    }
                }
            }
            Purpose::Start => {
                self.store.put(VmRecord { phase: Phase::Running, ..record }, Durability::Intent).await?;
            }
        }
        self.ports.at_step(id, "intended").await;
        self.ports.make_dir(id).await?;
        self.ports.at_step(id, "made_dir").await;
        if matches!(purpose, Purpose::CreateOnly | Purpose::CreateThenStart) {
            // Its first start makes the disk: one that is never started takes no space.
            return Ok(boot);
        }
        (boot.disk, boot.disk_uuid) = self.ports.ensure_disk(id, bytes).await?;
        Ok(boot)
    }

    async fn launch(&self, record: &VmRecord, boot: Boot, events: mpsc::Sender<LinkEvent>) -> Outcome {
        // The listener comes first: the agent dials as soon as it runs.
        let link = match self.ports.listen(record.id, events).await {
            Ok(link) => link,
            Err(error) => return Outcome::Launched(Err(error)),
        };
        self.ports.at_step(record.id, "listening").await;
        let plan = LaunchPlan { vm: record.id, vcpus: record.size.vcpus, memory_mib: record.size.memory_mib, boot };
        Outcome::Launched(self.ports.launch(plan).await.map(|vmm| (vmm, Some(link))))
    }

    async fn remove(&self, record: &VmRecord) -> Result<(), WireError> {
        self.ports.release_artifacts(record.id, record.image.clone(), record.kernel.clone()).await;
        self.ports.at_step(record.id, "let_go").await;
        self.ports.remove_files(record.id).await?;
        self.ports.at_step(record.id, "removed_files").await;
        self.store.bury(record.id, self.ports.now_ms()).await?;
        self.ports.at_step(record.id, "buried").await;
        Ok(())
    }
}
