//! The [`Images`] actor's messages about images that users make themselves, and about everything an image is.

use super::actor::{Images, meant};
use super::commit::{self, ArchiveStream};
use super::messages::{CommitImage, InspectImage, PromoteImage, RegisterImage};
use super::{ImageError, details, register};
use crate::artifacts::blocking;
use crate::supervise::guard;
use actix::{ActorFutureExt as _, Handler, ResponseActFuture, ResponseFuture, WrapFuture as _};
use messages::WireError;
use messages::image::{ImageDetails, ImageView};

impl Handler<RegisterImage> for Images {
    type Result = ResponseFuture<Result<ImageView, WireError>>;

    fn handle(&mut self, message: RegisterImage, ctx: &mut Self::Context) -> Self::Result {
        let RegisterImage { name, rootfs, kernel, progress } = message;
        let kernel = kernel.unwrap_or_else(|| self.config.registries.kernel.clone());
        let started = guard(ctx, |_| {
            let source = rootfs.display().to_string();
            self.fly(&name.clone(), source, move |store, cancel, reporter| {
                register::register(store, &name, &rootfs, &kernel, cancel, reporter)
            })
        });
        self.landed(started, progress)
    }
}

impl Handler<PromoteImage> for Images {
    type Result = ResponseActFuture<Self, Result<ImageView, WireError>>;

    fn handle(&mut self, PromoteImage { name, progress }: PromoteImage, _: &mut Self::Context) -> Self::Result {
        let store = self.config.store.clone();
        let found =
            blocking(&self.config.runtime, move || meant(&store, &name).map_err(|error| WireError::from(&error)));
        let promoted = found.into_actor(self).then(move |found, actor, _| {
            let started = found.and_then(|record| {
                actor.fly(&record.name.clone(), "promote".to_owned(), move |store, cancel, reporter| {
                    register::promote(store, record, cancel, reporter)
                })
            });
            actor.landed(started, progress).into_actor(actor)
        });
        Box::pin(promoted.map(|view, actor, _| view.map(|view| actor.with_vms(view))))
    }
}

impl Handler<CommitImage> for Images {
    type Result = ResponseFuture<Result<ImageView, WireError>>;

    fn handle(
        &mut self,
        CommitImage { plan, archive, progress }: CommitImage,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let started = guard(ctx, |_| {
            let (name, source, runtime) = (plan.name.clone(), plan.source.clone(), self.config.runtime.clone());
            self.fly(&name, source, move |store, cancel, reporter| {
                let stream = ArchiveStream::new(archive, runtime, cancel.clone()).map_err(ImageError::Stream)?;
                commit::commit(store, &plan, stream, cancel, reporter)
            })
        });
        self.landed(started, progress)
    }
}

impl Handler<InspectImage> for Images {
    type Result = ResponseActFuture<Self, Result<ImageDetails, WireError>>;

    fn handle(&mut self, InspectImage { name }: InspectImage, _: &mut Self::Context) -> Self::Result {
        let (store, blobs) = (self.config.store.clone(), self.config.registries.blobs.clone());
        let found = blocking(&self.config.runtime, move || {
            let details = meant(&store, &name).and_then(|record| details::details(&store, &blobs, &record));
            details.map_err(|error| WireError::from(&error))
        });
        Box::pin(found.into_actor(self).map(|found: Result<ImageDetails, WireError>, actor, _| {
            found.map(|details| ImageDetails { image: actor.with_vms(details.image), ..details })
        }))
    }
}
