//! Images of file systems that users made themselves: used where they are, until they are promoted to files of ours.

use super::error::Unfit;
use super::make::{check_free, digest};
use super::store::{External, ROOTFS};
use super::{ImageError, ImageRecord, ImageStore};
use crate::artifacts::staging::{StagingError, sync};
use crate::artifacts::{Cancel, Reporter, Staging, now_ms, open_file};
use crate::ext4::Superblock;
use crate::ext4::disk::copy_sparse;
use messages::ids::{ImageName, KernelName};
use messages::image::ImageConfig;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Makes an image of the file at `path`, which stays where it is. Blocks; `cancel` ends it.
///
/// # Errors
/// When the name is taken, or the file is no whole and clean ext4 file system; nothing is left behind then.
pub fn register(
    store: &ImageStore,
    name: &ImageName,
    path: &Path,
    kernel: &KernelName,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<ImageRecord, ImageError> {
    check_free(store, name)?;
    let unfit = |source: Unfit| ImageError::Unfit { path: path.to_owned(), source };
    if !path.is_absolute() {
        return Err(unfit(Unfit::Relative));
    }
    let external = External::of(path).map_err(|error| unfit(error.into()))?;
    let file = open_file(path).map_err(|error| unfit(error.into()))?;
    let superblock = Superblock::read(&file).and_then(Superblock::mountable).map_err(|error| unfit(error.into()))?;
    let digest = digest(file, external.length, cancel, reporter).map_err(|error| unfit(error.into()))?;
    let digest = digest.ok_or(ImageError::Cancelled)?;
    if External::of(path).ok().as_ref() != Some(&external) {
        return Err(unfit(Unfit::Changing));
    }
    let record = ImageRecord {
        name: name.clone(),
        digest,
        size_bytes: external.length,
        uuid: superblock.uuid,
        kernel: kernel.clone(),
        source: path.display().to_string(),
        created_at_ms: now_ms(),
        config: ImageConfig::default(),
        pulled_digest: None,
        layers: Vec::new(),
        parent: None,
        external: Some(external),
    };
    store.publish(Staging::create(store.directory(), name.as_str())?, &record)?;
    reporter.finished(format!("{name} registered"));
    Ok(record)
}

/// Copies a registered image's file into our storage. VMs that run keep the file that they have; the next start takes ours,
/// which holds the same. Blocks.
///
/// # Errors
/// When it is ours already, has changed since, or cannot be copied; the image stays as it was then.
pub fn promote(
    store: &ImageStore,
    record: ImageRecord,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<ImageRecord, ImageError> {
    if record.external.is_none() {
        return Err(ImageError::Promoted { name: record.name });
    }
    let original = store.rootfs(&record)?;
    let staging = Staging::create(store.directory(), record.name.as_str())?;
    let copy = staging.path().join(ROOTFS);
    reporter.step("copying it");
    copy_sparse(&original, &copy)?;
    let read_back = |source: io::Error| ImageError::ReadBack { path: copy.clone(), source };
    let file = File::open(&copy).map_err(read_back)?;
    let digest = digest(file, record.size_bytes, cancel, reporter).map_err(read_back)?;
    if digest.ok_or(ImageError::Cancelled)? != record.digest {
        return Err(ImageError::Unfit { path: original, source: Unfit::Changing });
    }
    reporter.step("writing it to disk");
    let directory = store.path(record.name.as_str());
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StagingError::Sync { path, source }
    };
    sync(&copy).map_err(failed(&copy))?;
    // The record still names the original: one file more in the directory changes nothing until it does not.
    fs::rename(&copy, directory.join(ROOTFS)).map_err(failed(&directory))?;
    sync(&directory).map_err(failed(&directory))?;
    let record = ImageRecord { external: None, ..record };
    store.rewrite(&record)?;
    reporter.finished(format!("{} is banger's own now", record.name));
    Ok(record)
}

#[cfg(test)]
mod tests;
