//! The images actor's part in bundles: imports, which it starts, and exports, which it hands out.

use super::super::messages::{ExportImage, ExportedImage, ImportImage};
use super::super::{ImageError, bundle};
use super::{Images, Underway, meant};
use crate::artifacts::flight::Flight;
use crate::artifacts::{Cancel, Reporter, blocking};
use crate::supervise::guard;
use actix::{Handler, ResponseFuture};
use messages::WireError;
use messages::image::ImageView;
use messages::reply::Stage;

impl Handler<ImportImage> for Images {
    type Result = ResponseFuture<Result<ImageView, WireError>>;

    fn handle(&mut self, ImportImage { file, name, progress }: ImportImage, ctx: &mut Self::Context) -> Self::Result {
        let started = guard(ctx, |_| -> Result<_, WireError> {
            self.flights.retain(|_, underway| !underway.flight.is_done());
            // The name may only be known by the bundle: two imports that end at one name find that out when they are published.
            let key = match &name {
                Some(name) => name.to_string(),
                None => format!("import {file}"),
            };
            if let Some(name) = name.as_ref().filter(|name| self.flights.contains_key(name.as_str())) {
                return Err(WireError::from(&ImageError::Taken { name: name.clone() }));
            }
            if let Some(waiter) = self.flights.get(&key).and_then(|underway| underway.flight.join()) {
                return Ok(waiter);
            }
            let (store, source) = (self.config.store.clone(), format!("bundle {file}"));
            let before = self.flights.remove(&key).map(|underway| underway.flight);
            let work = move |cancel: &Cancel, reporter: &Reporter| {
                bundle::import(&store, &file, name.as_ref(), cancel, reporter)
            };
            let (flight, waiter) = Flight::start(&self.config.runtime, Stage::ImagePull, before.as_ref(), work);
            self.flights.insert(key, Underway { source, flight });
            Ok(waiter)
        });
        let (store, runtime) = (self.config.store.clone(), self.config.runtime.clone());
        Box::pin(async move {
            let record = started?.wait(progress).await?;
            blocking(&runtime, move || store.view(&record, Vec::new()).map_err(|error| WireError::from(&error))).await
        })
    }
}

impl Handler<ExportImage> for Images {
    type Result = ResponseFuture<Result<ExportedImage, WireError>>;

    /// Nobody has to hold the image meanwhile: what was opened stays, also where the image is deleted.
    fn handle(&mut self, ExportImage { name }: ExportImage, _: &mut Self::Context) -> Self::Result {
        let store = self.config.store.clone();
        Box::pin(blocking(&self.config.runtime, move || {
            let exported = meant(&store, &name).and_then(|record| bundle::export(&store, record));
            exported.map(|(export, rootfs)| ExportedImage { export, rootfs }).map_err(|error| WireError::from(&error))
        }))
    }
}
