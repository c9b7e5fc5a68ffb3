//! Makes an image of a container image: its layers are fetched side by side, unpacked while they come, and put on top of one
//! another in one file system. Nothing of them is ever a tree of files on this host.

use super::store::ROOTFS;
use super::{ImageError, ImageRecord, ImageStore, make};
use crate::artifacts::{Cancel, Reporter, Staging, now_ms};
use crate::ext4::layer::Layer;
use crate::ext4::{Ext4Error, Hashes, ImageFile, Label, Limits, Spool, Tree, build_as};
use crate::oci::fetch::{Received, fetch, unless};
use crate::oci::follow::Arrival;
use crate::oci::reference::{canonical, distinct, parse};
use crate::oci::{Access, Blob, BlobCache, Decompressed, Follower, OciError, Registry, Resolved};
use messages::ids::{ImageName, KernelName};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

/// Layers that are fetched at once: as many as docker fetches.
const DOWNLOADS: usize = 4;
/// Layers that are unpacked at once: each takes a processor, and memory for its window.
const UNPACKERS_MAX: usize = 4;
/// How often the progress of downloads is told.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// Where container images are fetched from, and what of them is kept.
#[derive(Debug, Clone)]
pub struct Registries {
    pub access: Access,
    pub blobs: BlobCache,
    /// What an image is booted with that names no kernel: none of them does.
    pub kernel: KernelName,
}

/// What is to be pulled.
#[derive(Debug, Clone)]
pub struct OciPull {
    pub reference: String,
    pub name: ImageName,
    /// Whether that name was asked for; another may be taken where it was not.
    pub chosen: bool,
    pub kernel: KernelName,
}

/// Pulls it, unless what the reference stands for now is here already. Blocks; `cancel` ends it.
///
/// # Errors
/// When it cannot be fetched or no image be made of it; nothing but whole blobs is left behind then.
pub fn pull(
    store: &ImageStore,
    wanted: &OciPull,
    registries: &Registries,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<ImageRecord, ImageError> {
    let pulled = make(store, wanted, registries, cancel, reporter);
    // Also what a pull that failed has fetched counts.
    if let Err(error) = registries.blobs.trim() {
        tracing::warn!(%error, "cannot keep the cache within its bound");
    }
    pulled
}

fn make(
    store: &ImageStore,
    wanted: &OciPull,
    registries: &Registries,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<ImageRecord, ImageError> {
    let runtime = Handle::current();
    let reference = parse(&wanted.reference)?;
    let source = canonical(&reference);
    reporter.step(format!("asking for {source}"));
    let registry = Registry::new(&registries.access, &reference, cancel)?;
    let here = match wanted.chosen {
        true => store.find(wanted.name.as_str())?.filter(|here| here.source == source),
        false => newest(store, &source)?,
    };
    if let Some(here) = here {
        // One request: most pulls of what is here find that it has not changed.
        let digest = match reference.digest() {
            Some(digest) => digest.to_owned(),
            None => runtime.block_on(unless(cancel, registry.digest()))?,
        };
        if here.pulled_digest.as_ref() == Some(&digest) {
            reporter.finished(format!("{} is here already", here.name));
            return Ok(here);
        }
    }
    let resolved = runtime.block_on(unless(cancel, registry.resolve()))?;
    let name = free_name(store, wanted, &resolved)?;
    // Before the layers come.
    resolved.config.check().map_err(|why| ImageError::Config { name: name.clone(), why })?;
    let staging = Staging::create(store.directory(), name.as_str())?;
    let registry = Arc::new(registry);
    let fetched = layers(&registry, &resolved.layers, registries, staging.path(), cancel, reporter);
    let (image, layers) = match fetched {
        // What was in the cache was not what it should be, and has been thrown away.
        Err(ImageError::Oci(OciError::Digest { stale: true, digest })) => {
            tracing::warn!(digest, "a blob in the cache was damaged; fetching it anew");
            layers(&registry, &resolved.layers, registries, staging.path(), cancel, reporter)?
        }
        fetched => fetched?,
    };
    let mut tree = Tree::layered(image);
    for layer in layers {
        tree.add_layer(layer)?;
    }
    reporter.amount("writing the file system", 0, Some(tree.content_bytes()));
    let path = staging.path().join(ROOTFS);
    let mut digest = [0; 32];
    hex::decode_to_slice(resolved.manifest.trim_start_matches("sha256:"), &mut digest)
        .map_err(|_| OciError::Digest { digest: resolved.manifest.clone(), stale: false })?;
    let built = build_as(tree, &path, Label("banger-root"), &digest)?;
    if cancel.is_cancelled() {
        return Err(OciError::Cancelled.into());
    }
    let record = ImageRecord {
        name,
        digest: resolved.manifest,
        size_bytes: built.size_bytes,
        uuid: built.uuid,
        kernel: wanted.kernel.clone(),
        source,
        created_at_ms: now_ms(),
        config: resolved.config,
        pulled_digest: Some(resolved.digest),
        layers: resolved.layers.into_iter().map(|layer| layer.digest).collect(),
        parent: None,
        external: None,
    };
    let record = make::publish(store, staging, record, reporter)?;
    reporter.finished(make::summary(&record));
    Ok(record)
}

/// The image that a reference stood for when it was last pulled.
///
/// # Errors
/// When the images cannot be listed.
pub fn newest(store: &ImageStore, source: &str) -> Result<Option<ImageRecord>, ImageError> {
    let records = store.list()?;
    Ok(records.into_iter().filter(|record| record.source == source).max_by_key(|record| record.created_at_ms))
}

/// A tag that has moved, or the same name in another repository, makes an image of another name: what VMs may be using is
/// never replaced.
fn free_name(store: &ImageStore, wanted: &OciPull, resolved: &Resolved) -> Result<ImageName, ImageError> {
    if store.find(wanted.name.as_str())?.is_none() {
        return Ok(wanted.name.clone());
    }
    if wanted.chosen {
        return Err(ImageError::Taken { name: wanted.name.clone() });
    }
    Ok(distinct(wanted.name.as_str(), &format!("{}@{}", wanted.reference, resolved.manifest)))
}

/// Fetches and unpacks all layers, and puts their contents into one new file below `directory`.
fn layers(
    registry: &Arc<Registry>,
    blobs: &[Blob],
    registries: &Registries,
    directory: &Path,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<(Arc<ImageFile>, Vec<Layer>), ImageError> {
    let image = Arc::new(ImageFile::limited(directory, Limits { cancel: cancel.token(), ..Limits::default() })?);
    let runtime = Handle::current();
    let received = Received::default();
    let permits = Arc::new(Semaphore::new(DOWNLOADS));
    let mut downloads = tokio::task::JoinSet::new();
    let mut arrivals = Vec::new();
    // A blob may be a layer twice, the empty one for example: fetched once, and read twice.
    let mut distinct_blobs: Vec<(Blob, watch::Receiver<Arrival>)> = Vec::new();
    for blob in blobs {
        if let Some((_, arrival)) = distinct_blobs.iter().find(|(known, _)| known == blob) {
            arrivals.push(arrival.clone());
            continue;
        }
        let (sender, arrival) = watch::channel(Arrival::default());
        arrivals.push(arrival.clone());
        distinct_blobs.push((blob.clone(), arrival));
        let (registry, cache, blob) = (Arc::clone(registry), registries.blobs.clone(), blob.clone());
        let (permits, received) = (Arc::clone(&permits), received.clone());
        let download = async move {
            // The first layers first: permits are given in the order in which they were asked for.
            let _permit = permits.acquire_owned().await.expect("the semaphore is never closed");
            fetch(&*registry, &cache, &blob, sender, received).await
        };
        downloads.spawn_on(download, &runtime);
    }
    let total = distinct_blobs.iter().map(|(blob, _)| blob.size).sum();
    drop(distinct_blobs);

    let next = AtomicUsize::new(0);
    let hopeless = CancellationToken::new();
    let unpacked: Vec<Mutex<Option<Result<Layer, ImageError>>>> = blobs.iter().map(|_| Mutex::new(None)).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(UNPACKERS_MAX).min(blobs.len());
    let downloaded = std::thread::scope(|scope| {
        let unpackers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(arrival) = arrivals.get(index) else { return };
                        let mut blob = Follower::new(arrival.clone(), runtime.clone());
                        let layer = unpack(&mut blob, Spool::new(&image, index, Hashes::Left));
                        if layer.is_err() && !blob.is_broken() {
                            // No download helps an archive that cannot be unpacked.
                            hopeless.cancel();
                        }
                        *unpacked[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(layer);
                    }
                })
            })
            .collect();
        // Errors end the downloads, and with them the unpackers: nobody sends what they wait for.
        let watched = watched(&mut downloads, &received, total, blobs.len(), reporter);
        let downloaded = runtime.block_on(async {
            tokio::select! {
                done = unless(cancel, watched) => done.map(|()| Downloads::Done),
                () = hopeless.cancelled() => Ok(Downloads::GivenUp),
            }
        });
        if !matches!(downloaded, Ok(Downloads::Done)) {
            runtime.block_on(downloads.shutdown());
        }
        for unpacker in unpackers {
            unpacker.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
        downloaded
    });
    // Why a download failed is the reason; that its layer ended early is the consequence. The other way round, the layers whose
    // downloads were given up are the consequence.
    let given_up = matches!(downloaded?, Downloads::GivenUp);
    let mut layers = Vec::new();
    let mut interrupted = None;
    for slot in unpacked {
        match slot.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(Ok(layer)) => layers.push(layer),
            Some(Err(error))
                if given_up
                    && matches!(&error, ImageError::Ext4(Ext4Error::Archive(cause)) if Follower::broke(cause)) =>
            {
                interrupted = Some(error);
            }
            Some(Err(error)) => return Err(error),
            None => interrupted = Some(OciError::Cancelled.into()),
        }
    }
    interrupted.map_or(Ok((image, layers)), Err)
}

/// How it went with the downloads of an image.
enum Downloads {
    Done,
    /// A layer that had come cannot be unpacked.
    GivenUp,
}

/// Waits for all downloads, and tells how far they are.
async fn watched(
    downloads: &mut tokio::task::JoinSet<Result<(), OciError>>,
    received: &Received,
    total: u64,
    layers: usize,
    reporter: &Reporter,
) -> Result<(), OciError> {
    let mut ticks = tokio::time::interval(REPORT_EVERY);
    let told = || {
        let detail = format!("fetching {layers} layer{}", if layers == 1 { "" } else { "s" });
        reporter.amount(detail, received.0.load(Ordering::Relaxed), Some(total));
    };
    loop {
        tokio::select! {
            ended = downloads.join_next() => match ended {
                None => {
                    reporter.step("unpacking");
                    return Ok(());
                }
                Some(Ok(result)) => result?,
                Some(Err(error)) if error.is_panic() => resume_unwind(error.into_panic()),
                Some(Err(_)) => return Err(OciError::Cancelled),
            },
            _ = ticks.tick() => told(),
        }
    }
}

fn unpack(blob: &mut Follower, spool: Spool) -> Result<Layer, ImageError> {
    let image = Arc::clone(spool.image());
    let mut archive = Decompressed::new(blob).map_err(Ext4Error::Archive)?;
    let layer = Layer::read(&mut archive, spool)?;
    // Layers that were faster than those below them know their places now.
    image.settle()?;
    // To the end of the blob: only then it is known to be the one that was asked for.
    archive.drain().map_err(Ext4Error::Archive)?;
    Ok(layer)
}

#[cfg(test)]
mod tests;
