//! The actor that owns this host's images: who uses which, and which are being pulled. Its handlers start work and return.

mod bundles;

use super::messages::{
    AcquireImage, AcquiredImage, DeleteImage, ImageCatalog, ListImages, NoteImageUser, PruneLayers, PullImage,
    ReleaseImage, ShowImage,
};
use super::oci::newest;
use super::{ImageError, ImageRecord, ImageStore, OciPull, Registries, bundle, oci, pull};
use crate::artifacts::flight::{Flight, Waiter};
use crate::artifacts::removal::in_two_parts;
use crate::artifacts::shelf::Record;
use crate::artifacts::users::Users;
use crate::artifacts::{Cancel, Reporter, blocking};
use crate::catalog::{Catalog, DebianImage, ImageSource};
use crate::download::{Downloads, Pinned};
use crate::oci::reference::{canonical, distinct, parse};
use crate::oci::{image_name, is_reference};
use crate::supervise::guard;
use actix::{
    Actor, ActorFutureExt as _, Context, Handler, ResponseActFuture, ResponseFuture, Supervised, WrapFuture as _,
};
use messages::ids::{ImageName, KernelName};
use messages::image::{CatalogEntry, ImageView};
use messages::reply::{Progress, Stage};
use messages::{ErrorKind, WireError};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Room for a burst of VM starts; pulls leave the mailbox at once.
const MAILBOX: usize = 256;

/// What the actor is made from.
#[derive(Debug, Clone)]
pub struct ImagesConfig {
    pub store: ImageStore,
    pub catalog: Arc<Catalog>,
    /// `debian_mirror` of the config.
    pub mirror: Option<String>,
    pub registries: Registries,
    pub downloads: Downloads,
    /// Where blocking work is done.
    pub runtime: Handle,
}

/// This host's images. Start it under `actix::Supervisor`.
#[derive(Debug)]
pub struct Images {
    pub(super) config: ImagesConfig,
    /// By the name that the image gets.
    flights: HashMap<String, Underway>,
    users: Users,
}

/// A pull, and what it is of.
#[derive(Debug)]
struct Underway {
    source: String,
    flight: Flight<ImageRecord>,
}

/// What a name or a reference leads to.
enum Target {
    Debian { entry: ImageName, debian: DebianImage, kernel: KernelName, name: ImageName },
    Oci(OciPull),
    Bundle { entry: ImageName, pinned: Pinned, kernel: KernelName, name: ImageName },
}

impl Target {
    const fn name(&self) -> &ImageName {
        match self {
            Self::Debian { name, .. } | Self::Bundle { name, .. } => name,
            Self::Oci(pull) => &pull.name,
        }
    }

    /// Two pulls of the same are one.
    fn source(&self) -> &str {
        match self {
            Self::Debian { entry, .. } | Self::Bundle { entry, .. } => entry.as_str(),
            Self::Oci(pull) => &pull.reference,
        }
    }
}

impl Images {
    /// The actor, with what interrupted pulls left swept away. Blocks.
    ///
    /// # Errors
    /// When the directory cannot be read or a leftover not be removed.
    pub fn new(config: ImagesConfig) -> Result<Self, ImageError> {
        let swept = config.store.sweep()?;
        if swept > 0 {
            tracing::info!(swept, "removed what interrupted image pulls left");
        }
        Ok(Self { config, flights: HashMap::new(), users: Users::default() })
    }

    pub(super) fn with_vms(&self, mut view: ImageView) -> ImageView {
        view.used_by = self.users.of(view.name.as_str());
        view
    }
}

impl Actor for Images {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Supervised for Images {
    /// After a panic: pulls go on, their callers hold them; users are facts that a panic does not change.
    fn restarting(&mut self, _: &mut Self::Context) {
        self.flights.retain(|_, underway| !underway.flight.is_done());
    }
}

impl Handler<PullImage> for Images {
    type Result = ResponseFuture<Result<ImageView, WireError>>;

    fn handle(&mut self, message: PullImage, ctx: &mut Self::Context) -> Self::Result {
        let PullImage { reference, name, kernel, progress } = message;
        let started = guard(ctx, |_| -> Result<_, WireError> {
            self.flights.retain(|_, underway| !underway.flight.is_done());
            let mut target = self.target(reference.as_str(), name, kernel).map_err(|error| WireError::from(&error))?;
            if let Some(waiter) = self.underway(&mut target).map_err(|error| WireError::from(&error))? {
                return Ok(waiter);
            }
            Ok(self.start(target))
        });
        self.landed(started, progress)
    }
}

impl Images {
    /// The image, once its flight has made it.
    pub(super) fn landed(
        &self,
        started: Result<Waiter<ImageRecord>, WireError>,
        progress: mpsc::Sender<Progress>,
    ) -> ResponseFuture<Result<ImageView, WireError>> {
        let (store, runtime) = (self.config.store.clone(), self.config.runtime.clone());
        Box::pin(async move {
            let record = started?.wait(progress).await?;
            blocking(&runtime, move || store.view(&record, Vec::new()).map_err(|error| WireError::from(&error))).await
        })
    }

    /// Starts work that makes or changes the image `name`, unless some is under way.
    pub(super) fn fly(
        &mut self,
        name: &ImageName,
        source: String,
        work: impl FnOnce(&ImageStore, &Cancel, &Reporter) -> Result<ImageRecord, ImageError> + Send + 'static,
    ) -> Result<Waiter<ImageRecord>, WireError> {
        self.flights.retain(|_, underway| !underway.flight.is_done());
        if self.flights.contains_key(name.as_str()) {
            return Err(WireError::from(&ImageError::Busy { name: name.clone() }));
        }
        let store = self.config.store.clone();
        let (flight, waiter) = Flight::start(&self.config.runtime, Stage::ImagePull, None, move |cancel, reporter| {
            work(&store, cancel, reporter)
        });
        self.flights.insert(name.to_string(), Underway { source, flight });
        Ok(waiter)
    }

    fn target(
        &self,
        reference: &str,
        chosen: Option<ImageName>,
        kernel: Option<KernelName>,
    ) -> Result<Target, ImageError> {
        let container = |reference: &str, default: Option<ImageName>, usual: &KernelName| {
            let reference = parse(reference)?;
            let name = chosen.clone().or(default).unwrap_or_else(|| image_name(&reference));
            let reference = canonical(&reference);
            let kernel = kernel.clone().unwrap_or_else(|| usual.clone());
            Ok(Target::Oci(OciPull { reference, name, chosen: chosen.is_some(), kernel }))
        };
        if is_reference(reference) {
            return container(reference, None, &self.config.registries.kernel);
        }
        let entry = self.config.catalog.image(reference)?;
        match &entry.source {
            ImageSource::Oci(oci) => container(&oci.reference, Some(entry.name.clone()), &entry.kernel),
            ImageSource::Debian(debian) => Ok(Target::Debian {
                entry: entry.name.clone(),
                debian: debian.clone(),
                kernel: kernel.clone().unwrap_or_else(|| entry.kernel.clone()),
                name: chosen.clone().unwrap_or_else(|| entry.name.clone()),
            }),
            ImageSource::Bundle(pinned) => Ok(Target::Bundle {
                entry: entry.name.clone(),
                pinned: pinned.clone(),
                kernel: kernel.clone().unwrap_or_else(|| entry.kernel.clone()),
                name: chosen.unwrap_or_else(|| entry.name.clone()),
            }),
        }
    }

    /// Joins the pull of the same thing. Another one that is about to take the same name makes `target` take another.
    fn underway(&self, target: &mut Target) -> Result<Option<Waiter<ImageRecord>>, ImageError> {
        for _ in 0..2 {
            match (self.flights.get(target.name().as_str()), &mut *target) {
                (None, _) => return Ok(None),
                (Some(underway), target) if underway.source == target.source() => return Ok(underway.flight.join()),
                (Some(_), Target::Oci(pull)) if !pull.chosen => {
                    pull.name = distinct(pull.name.as_str(), &pull.reference);
                }
                (Some(_), target) => return Err(ImageError::Taken { name: target.name().clone() }),
            }
        }
        Ok(None)
    }

    fn start(&mut self, target: Target) -> Waiter<ImageRecord> {
        let (store, mirror) = (self.config.store.clone(), self.config.mirror.clone());
        let (registries, downloads) = (self.config.registries.clone(), self.config.downloads.clone());
        let (key, source) = (target.name().to_string(), target.source().to_owned());
        // One of the same that everybody has left.
        let before = self.flights.remove(&key).map(|underway| underway.flight);
        let (flight, waiter) = Flight::start(
            &self.config.runtime,
            Stage::ImagePull,
            before.as_ref(),
            move |cancel, reporter| match target {
                Target::Debian { debian, kernel, name, .. } => {
                    pull::pull(&store, &debian, &kernel, &name, mirror.as_deref(), cancel, reporter)
                }
                Target::Bundle { pinned, kernel, name, .. } => {
                    bundle::pull(&store, &pinned, &kernel, &name, &downloads, cancel, reporter)
                }
                Target::Oci(wanted) => oci::pull(&store, &wanted, &registries, cancel, reporter),
            },
        );
        self.flights.insert(key, Underway { source, flight });
        waiter
    }
}

/// The image that a user means: by its name, or by the reference that it was pulled from.
pub(super) fn meant(store: &ImageStore, asked: &str) -> Result<ImageRecord, ImageError> {
    if is_reference(asked)
        && let Some(record) = newest(store, &canonical(&parse(asked)?))?
    {
        return Ok(record);
    }
    Ok(store.show(asked)?)
}

impl Handler<ImageCatalog> for Images {
    type Result = ResponseFuture<Result<Vec<CatalogEntry>, WireError>>;

    fn handle(&mut self, _: ImageCatalog, _: &mut Self::Context) -> Self::Result {
        let (store, catalog) = (self.config.store.clone(), Arc::clone(&self.config.catalog));
        Box::pin(blocking(&self.config.runtime, move || {
            let present = |name: &str| matches!(store.find(name), Ok(Some(_)));
            Ok(catalog.images().iter().map(|entry| entry.view(present(entry.name.as_str()))).collect())
        }))
    }
}

impl Handler<ListImages> for Images {
    type Result = ResponseActFuture<Self, Result<Vec<ImageView>, WireError>>;

    fn handle(&mut self, _: ListImages, _: &mut Self::Context) -> Self::Result {
        let store = self.config.store.clone();
        let listed = blocking(&self.config.runtime, move || {
            let views = store.list().and_then(|records| records.iter().map(|it| store.view(it, Vec::new())).collect());
            views.map_err(|error| WireError::from(&error))
        });
        Box::pin(listed.into_actor(self).map(|listed: Result<Vec<ImageView>, WireError>, actor, _| {
            listed.map(|views| views.into_iter().map(|view| actor.with_vms(view)).collect())
        }))
    }
}

impl Handler<ShowImage> for Images {
    type Result = ResponseActFuture<Self, Result<ImageView, WireError>>;

    fn handle(&mut self, ShowImage { name }: ShowImage, _: &mut Self::Context) -> Self::Result {
        let store = self.config.store.clone();
        let shown = blocking(&self.config.runtime, move || {
            let view = meant(&store, &name).and_then(|record| Ok(store.view(&record, Vec::new())?));
            view.map_err(|error| WireError::from(&error))
        });
        Box::pin(shown.into_actor(self).map(|shown, actor, _| shown.map(|view| actor.with_vms(view))))
    }
}

impl Handler<DeleteImage> for Images {
    type Result = ResponseFuture<Result<(), WireError>>;

    /// No other message is taken while it is renamed: nobody can take what is being removed. Its files go afterwards: VMs start
    /// meanwhile.
    fn handle(&mut self, DeleteImage { name, force }: DeleteImage, ctx: &mut Self::Context) -> Self::Result {
        let (store, users) = (self.config.store.clone(), self.users.clone());
        let shelf = store.clone();
        let take = move || {
            // One that is damaged has no record to be found by, and is deleted by its name.
            let name =
                if is_reference(&name) { meant(&store, &name).map(|record| record.name.to_string()) } else { Ok(name) };
            let removed = name.and_then(|name| {
                users.check_free(ImageRecord::WHAT, &name, Vec::new(), force)?;
                Ok(store.delete(&name)?)
            });
            removed.map_err(|error: ImageError| WireError::from(&error))
        };
        let finish = move |doomed| shelf.discard(doomed).map_err(|error| WireError::from(&error));
        in_two_parts(ctx, self, &self.config.runtime, take, finish)
    }
}

impl Handler<PruneLayers> for Images {
    type Result = ResponseFuture<Result<u64, WireError>>;

    fn handle(&mut self, _: PruneLayers, _: &mut Self::Context) -> Self::Result {
        let blobs = self.config.registries.blobs.clone();
        Box::pin(blocking(&self.config.runtime, move || blobs.prune().map_err(|error| WireError::from(&error))))
    }
}

impl Handler<AcquireImage> for Images {
    type Result = ResponseActFuture<Self, Result<AcquiredImage, WireError>>;

    fn handle(&mut self, AcquireImage { image, vm, label }: AcquireImage, _: &mut Self::Context) -> Self::Result {
        // Noted before the record is read: a delete that comes meanwhile is refused.
        self.users.add(image.as_str(), vm, label);
        let store = self.config.store.clone();
        let name = image.clone();
        let found = blocking(&self.config.runtime, move || {
            let record = store.show(name.as_str()).map_err(|error| WireError::from(&error))?;
            let rootfs = store.rootfs(&record).map_err(|error| WireError::from(&error))?;
            Ok(AcquiredImage { rootfs, record })
        });
        Box::pin(found.into_actor(self).map(move |found, actor, _| {
            if found.as_ref().is_err_and(|error: &WireError| error.kind == ErrorKind::NotFound) {
                actor.users.remove(image.as_str(), vm);
            }
            found
        }))
    }
}

impl Handler<NoteImageUser> for Images {
    type Result = ();

    fn handle(&mut self, NoteImageUser { image, vm, label }: NoteImageUser, _: &mut Self::Context) {
        self.users.add(image.as_str(), vm, label);
    }
}

impl Handler<ReleaseImage> for Images {
    type Result = ();

    fn handle(&mut self, ReleaseImage { image, vm }: ReleaseImage, _: &mut Self::Context) {
        self.users.remove(image.as_str(), vm);
    }
}
