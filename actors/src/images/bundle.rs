//! Images that come in bundles, from a user's file or from a catalog's address, and those that leave in one.

use super::store::ROOTFS;
use super::{ImageError, ImageRecord, ImageStore, make};
use crate::artifacts::open_file;
use crate::artifacts::{Cancel, Reporter, Staging, now_ms};
use crate::bundle::{BundleError, ImageBundle, ImageManifest, UnpackedImage};
use crate::download::{self, Downloads, Pinned};
use messages::ids::{HostPath, ImageName, KernelName};
use messages::image::ImageExport;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// In front of the source of every image that came in a bundle: nobody may take what its manifest says for a reference that was
/// pulled.
const SOURCE_PREFIX: &str = "bundle:";

/// Makes an image of a bundle on this host, under its own name or another. Blocks; `cancel` ends it.
///
/// # Errors
/// When the name is taken, or no image can be made of it; nothing is left behind then.
pub fn import(
    store: &ImageStore,
    file: &HostPath,
    name: Option<&ImageName>,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<ImageRecord, ImageError> {
    let path = Path::new(file.as_str());
    let bundle = open_file(path).map_err(|source| BundleError::Open { path: path.to_owned(), source })?;
    let bundle = ImageBundle::open(bundle, file.as_str())?;
    let name = name.unwrap_or(&bundle.manifest.name).clone();
    if store.find(name.as_str())?.is_some() {
        return Err(ImageError::Taken { name });
    }
    let staging = Staging::create(store.directory(), name.as_str())?;
    let manifest = bundle.manifest.clone();
    let unpacked = bundle.unpack(&staging.path().join(ROOTFS), cancel, reporter)?;
    let (kernel, source) = (manifest.kernel.clone(), manifest.source.clone());
    finish(store, staging, record(name, kernel, &source, manifest, unpacked), cancel, reporter)
}

/// Makes an image of a catalog's bundle, unless one of its name is here already. Blocks; `cancel` ends it.
///
/// # Errors
/// When it cannot be fetched, is not the one that is pinned, or no image can be made of it; no part of an image is left then.
pub fn pull(
    store: &ImageStore,
    pinned: &Pinned,
    kernel: &KernelName,
    name: &ImageName,
    downloads: &Downloads,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<ImageRecord, ImageError> {
    if let Some(record) = store.present(name.as_str(), reporter)? {
        return Ok(record);
    }
    let staging = Staging::create(store.directory(), name.as_str())?;
    let (path, of) = (staging.path().join(ROOTFS), pinned.url.to_string());
    let unpack = |reader: &mut dyn Read| -> Result<(ImageManifest, UnpackedImage), ImageError> {
        let bundle = ImageBundle::open(reader, &of)?;
        Ok((bundle.manifest.clone(), bundle.unpack(&path, cancel, reporter)?))
    };
    let (manifest, unpacked) = download::read(downloads, pinned, cancel, reporter, unpack)?;
    finish(store, staging, record(name.clone(), kernel.clone(), &of, manifest, unpacked), cancel, reporter)
}

/// What a client needs to pack an image, and its file system, open for reading. Blocks.
///
/// # Errors
/// When the file system cannot be opened.
pub fn export(store: &ImageStore, record: ImageRecord) -> Result<(ImageExport, File), ImageError> {
    let path = store.rootfs(&record)?;
    let file = open_file(&path).map_err(|source| ImageError::ReadBack { path, source })?;
    let export = ImageExport {
        // As it was where it was made: going through many hosts, a bundle stays the same.
        source: record.source.strip_prefix(SOURCE_PREFIX).unwrap_or(&record.source).to_owned(),
        name: record.name,
        kernel: record.kernel,
        size_bytes: record.size_bytes,
        config: record.config,
    };
    Ok((export, file))
}

fn record(
    name: ImageName,
    kernel: KernelName,
    source: &str,
    manifest: ImageManifest,
    unpacked: UnpackedImage,
) -> ImageRecord {
    ImageRecord {
        name,
        digest: unpacked.digest,
        size_bytes: unpacked.size_bytes,
        uuid: unpacked.uuid,
        kernel,
        source: format!("{SOURCE_PREFIX}{source}"),
        created_at_ms: now_ms(),
        config: manifest.config,
        pulled_digest: None,
        layers: Vec::new(),
        parent: None,
        external: None,
    }
}

fn finish(
    store: &ImageStore,
    staging: Staging,
    record: ImageRecord,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<ImageRecord, ImageError> {
    if cancel.is_cancelled() {
        return Err(BundleError::Cancelled.into());
    }
    let record = make::publish(store, staging, record, reporter)?;
    reporter.finished(make::summary(&record));
    Ok(record)
}

#[cfg(test)]
mod tests;
