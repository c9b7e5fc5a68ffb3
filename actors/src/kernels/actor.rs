//! The actor that owns this host's kernels: who uses which, and which are being pulled. Its handlers start work and return.

use super::messages::{
    AcquireKernel, DeleteKernel, ImportKernel, KernelCatalog, ListKernels, NoteKernelUser, PullKernel, ReleaseKernel,
    ShowKernel,
};
use super::{BootFiles, GuestLink, KernelError, KernelRecord, KernelStore, boot, bundle, import, pull};
use crate::artifacts::flight::Flight;
use crate::artifacts::removal::in_two_parts;
use crate::artifacts::users::Users;
use crate::artifacts::{Cancel, Reporter, blocking, shelf::Record};
use crate::catalog::{Catalog, KernelSource};
use crate::download::Downloads;
use crate::images::ImageStore;
use crate::supervise::guard;
use actix::{
    Actor, ActorFutureExt as _, Context, Handler, ResponseActFuture, ResponseFuture, Supervised, WrapFuture as _,
};
use messages::image::{CatalogEntry, KernelDetails, KernelView};
use messages::reply::Stage;
use messages::{ErrorKind, WireError};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Room for a burst of VM starts; pulls leave the mailbox at once.
const MAILBOX: usize = 256;

/// What the actor is made from.
#[derive(Debug, Clone)]
pub struct KernelsConfig {
    pub store: KernelStore,
    /// An image names its kernel, which is thereby used.
    pub images: ImageStore,
    pub catalog: Arc<Catalog>,
    /// `debian_mirror` of the config.
    pub mirror: Option<String>,
    pub downloads: Downloads,
    /// What this host's VMM gives a guest to talk over.
    pub link: GuestLink,
    /// Put into every initramfs.
    pub agent: PathBuf,
    /// Where blocking work is done.
    pub runtime: Handle,
}

/// This host's kernels. Start it under `actix::Supervisor`.
#[derive(Debug)]
pub struct Kernels {
    config: KernelsConfig,
    flights: HashMap<String, Flight<KernelRecord>>,
    users: Users,
    boot_memo: boot::Memo,
}

impl Kernels {
    /// The actor, with what interrupted pulls left swept away. Blocks.
    ///
    /// # Errors
    /// When the directory cannot be read or a leftover not be removed.
    pub fn new(config: KernelsConfig) -> Result<Self, KernelError> {
        let swept = config.store.sweep()?;
        if swept > 0 {
            tracing::info!(swept, "removed what interrupted kernel pulls left");
        }
        Ok(Self { config, flights: HashMap::new(), users: Users::default(), boot_memo: boot::Memo::default() })
    }

    /// The VMs and images that use a kernel. Blocks.
    fn image_users(images: &ImageStore, kernel: &str) -> Vec<String> {
        let images = images.list().unwrap_or_default();
        images
            .iter()
            .filter(|image| image.kernel.as_str() == kernel)
            .map(|image| format!("image {}", image.name()))
            .collect()
    }
}

impl Actor for Kernels {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Supervised for Kernels {
    /// After a panic: pulls go on, their callers hold them; users and paths are facts that a panic does not change.
    fn restarting(&mut self, _: &mut Self::Context) {
        self.flights.retain(|_, flight| !flight.is_done());
    }
}

impl Handler<PullKernel> for Kernels {
    type Result = ResponseFuture<Result<KernelView, WireError>>;

    fn handle(&mut self, PullKernel { reference, progress }: PullKernel, ctx: &mut Self::Context) -> Self::Result {
        let started = guard(ctx, |_| -> Result<_, WireError> {
            self.flights.retain(|_, flight| !flight.is_done());
            let name = reference.as_str();
            if let Some(waiter) = self.flights.get(name).and_then(Flight::join) {
                return Ok(waiter);
            }
            let entry = match self.config.catalog.kernel(name) {
                Ok(entry) => entry.clone(),
                Err(error) => return Err(WireError::from(&error)),
            };
            let KernelsConfig { store, mirror, downloads, link, .. } = self.config.clone();
            let work = move |cancel: &Cancel, reporter: &Reporter| match &entry.source {
                KernelSource::Debian(debian) => {
                    pull::pull(&store, &entry, debian, link, mirror.as_deref(), cancel, reporter)
                }
                KernelSource::Bundle(bundle) => {
                    bundle::pull(&store, &entry, bundle, link, &downloads, cancel, reporter)
                }
            };
            // One of the same that everybody has left.
            let before = self.flights.remove(name);
            let (flight, waiter) = Flight::start(&self.config.runtime, Stage::KernelPull, before.as_ref(), work);
            self.flights.insert(name.to_owned(), flight);
            Ok(waiter)
        });
        let users = self.users.of(reference.as_str());
        let (store, runtime) = (self.config.store.clone(), self.config.runtime.clone());
        Box::pin(async move {
            let record = started?.wait(progress).await?;
            blocking(&runtime, move || store.view(&record, users).map_err(|error| WireError::from(&error))).await
        })
    }
}

impl Handler<ImportKernel> for Kernels {
    type Result = ResponseFuture<Result<KernelDetails, WireError>>;

    fn handle(&mut self, ImportKernel { wanted, progress }: ImportKernel, ctx: &mut Self::Context) -> Self::Result {
        let started = guard(ctx, |_| -> Result<_, WireError> {
            self.flights.retain(|_, flight| !flight.is_done());
            let name = wanted.name.clone();
            // Not joined, as a pull is: these may be other files.
            if self.flights.contains_key(name.as_str()) {
                return Err(WireError::from(&KernelError::Taken { name }));
            }
            let (store, link) = (self.config.store.clone(), self.config.link);
            let (flight, waiter) =
                Flight::start(&self.config.runtime, Stage::KernelPull, None, move |cancel, reporter| {
                    import::import(&store, &wanted, link, cancel, reporter)
                });
            self.flights.insert(name.to_string(), flight);
            Ok(waiter)
        });
        let (store, runtime) = (self.config.store.clone(), self.config.runtime.clone());
        Box::pin(async move {
            let record = started?.wait(progress).await?;
            blocking(&runtime, move || store.details(&record, Vec::new()).map_err(|error| WireError::from(&error)))
                .await
        })
    }
}

impl Handler<KernelCatalog> for Kernels {
    type Result = ResponseFuture<Result<Vec<CatalogEntry>, WireError>>;

    fn handle(&mut self, _: KernelCatalog, _: &mut Self::Context) -> Self::Result {
        let (store, catalog) = (self.config.store.clone(), Arc::clone(&self.config.catalog));
        Box::pin(blocking(&self.config.runtime, move || {
            let present = |name: &str| matches!(store.find(name), Ok(Some(_)));
            Ok(catalog.kernels().iter().map(|entry| entry.view(present(entry.name.as_str()))).collect())
        }))
    }
}

impl Handler<ListKernels> for Kernels {
    type Result = ResponseActFuture<Self, Result<Vec<KernelView>, WireError>>;

    fn handle(&mut self, _: ListKernels, _: &mut Self::Context) -> Self::Result {
        let (store, images) = (self.config.store.clone(), self.config.images.clone());
        let listed = blocking(&self.config.runtime, move || {
            let records = store.list().map_err(|error| WireError::from(&error))?;
            let view = |record: &KernelRecord| store.view(record, Self::image_users(&images, record.name()));
            records.iter().map(view).collect::<Result<Vec<_>, _>>().map_err(|error| WireError::from(&error))
        });
        Box::pin(
            listed.into_actor(self).map(|listed, actor, _| {
                listed.map(|views| views.into_iter().map(|view| actor.with_vms(view)).collect())
            }),
        )
    }
}

impl Handler<ShowKernel> for Kernels {
    type Result = ResponseActFuture<Self, Result<KernelDetails, WireError>>;

    fn handle(&mut self, ShowKernel { name }: ShowKernel, _: &mut Self::Context) -> Self::Result {
        let (store, images) = (self.config.store.clone(), self.config.images.clone());
        let shown = blocking(&self.config.runtime, move || {
            let found = store.show(&name).and_then(|record| store.details(&record, Self::image_users(&images, &name)));
            found.map_err(|error| WireError::from(&error))
        });
        Box::pin(shown.into_actor(self).map(|shown: Result<KernelDetails, WireError>, actor, _| {
            shown.map(|details| KernelDetails { kernel: actor.with_vms(details.kernel), ..details })
        }))
    }
}

impl Kernels {
    fn with_vms(&self, mut view: KernelView) -> KernelView {
        view.used_by.extend(self.users.of(view.name.as_str()));
        view
    }
}

impl Handler<DeleteKernel> for Kernels {
    type Result = ResponseFuture<Result<(), WireError>>;

    /// No other message is taken while it is renamed: nobody can take what is being removed. Its files go afterwards.
    fn handle(&mut self, DeleteKernel { name, force }: DeleteKernel, ctx: &mut Self::Context) -> Self::Result {
        let free = self.users.check_free(KernelRecord::WHAT, &name, Vec::new(), force);
        let (store, images) = (self.config.store.clone(), self.config.images.clone());
        self.boot_memo.forget(&name);
        let shelf = store.clone();
        let take = move || {
            let outcome = free.and_then(|()| {
                Users::default().check_free(KernelRecord::WHAT, &name, Self::image_users(&images, &name), force)?;
                store.delete(&name)
            });
            outcome.map_err(|error| WireError::from(&error))
        };
        let finish = move |doomed| shelf.discard(doomed).map_err(|error| WireError::from(&error));
        in_two_parts(ctx, self, &self.config.runtime, take, finish)
    }
}

impl Handler<AcquireKernel> for Kernels {
    type Result = ResponseActFuture<Self, Result<BootFiles, WireError>>;

    fn handle(&mut self, message: AcquireKernel, _: &mut Self::Context) -> Self::Result {
        let AcquireKernel { kernel, vm, label } = message;
        // Noted before the files are looked at: a delete that comes meanwhile is refused.
        self.users.add(kernel.as_str(), vm, label);
        let (store, agent, memo) = (self.config.store.clone(), self.config.agent.clone(), self.boot_memo.clone());
        let name = kernel.clone();
        let found = blocking(&self.config.runtime, move || {
            store.boot_files_memo(name.as_str(), &agent, &memo).map_err(|error| WireError::from(&error))
        });
        Box::pin(found.into_actor(self).map(move |found, actor, _| {
            if found.as_ref().is_err_and(|error| error.kind == ErrorKind::NotFound) {
                actor.users.remove(kernel.as_str(), vm);
            }
            found
        }))
    }
}

impl Handler<NoteKernelUser> for Kernels {
    type Result = ();

    fn handle(&mut self, NoteKernelUser { kernel, vm, label }: NoteKernelUser, _: &mut Self::Context) {
        self.users.add(kernel.as_str(), vm, label);
    }
}

impl Handler<ReleaseKernel> for Kernels {
    type Result = ();

    fn handle(&mut self, ReleaseKernel { kernel, vm }: ReleaseKernel, _: &mut Self::Context) {
        self.users.remove(kernel.as_str(), vm);
    }
}
