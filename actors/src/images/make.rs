//! What every way to an image has in common: reading what it is made of, writing its file system, its digest, its publication.

use super::store::ROOTFS;
use super::{ImageError, ImageRecord, ImageStore};
use crate::artifacts::{Cancel, Reporter, Staging};
use crate::ext4::{Built, Label, Tree, build_as};
use messages::ids::ImageName;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};

/// How often, in bytes, a stream that is read is told of.
const STREAM_EVERY: u64 = 8 << 20;
/// How often, in bytes, a file that is hashed is told of.
const HASH_EVERY: u64 = 64 << 20;

/// A name that a new image can have.
///
/// # Errors
/// When there is one of that name, damaged or not.
pub(super) fn check_free(store: &ImageStore, name: &ImageName) -> Result<(), ImageError> {
    if store.path(name.as_str()).exists() { Err(ImageError::Taken { name: name.clone() }) } else { Ok(()) }
}

/// Writes the file system of a tree. Its digest is that of the tree, all contents among it, which says the same as the file's
/// and costs no second look at a gigabyte.
///
/// # Errors
/// When it cannot be written, or it was cancelled.
pub(super) fn write(
    tree: Tree,
    staging: &Staging,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<(Built, String), ImageError> {
    reporter.amount("writing the file system", 0, Some(tree.content_bytes()));
    let digest = tree.digest()?;
    let built = build_as(tree, &staging.path().join(ROOTFS), Label("banger-root"), &digest)?;
    if cancel.is_cancelled() {
        return Err(ImageError::Cancelled);
    }
    Ok((built, format!("sha256:{}", hex::encode(digest))))
}

/// `sha256:…` of a file; `None` where it was cancelled.
pub(super) fn digest(mut file: File, total: u64, cancel: &Cancel, reporter: &Reporter) -> io::Result<Option<String>> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let (mut done, mut told) = (0, 0);
    reporter.amount("reckoning its digest", 0, Some(total));
    loop {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        match file.read(&mut buffer)? {
            0 => return Ok(Some(format!("sha256:{}", hex::encode(hash.finalize())))),
            count => {
                hash.update(&buffer[..count]);
                done += count as u64;
            }
        }
        if done - told >= HASH_EVERY {
            told = done;
            reporter.amount("reckoning its digest", done, Some(total));
        }
    }
}

/// Makes it an image that others see.
///
/// # Errors
/// When the name is taken by now, or the disk refuses.
pub(super) fn publish(
    store: &ImageStore,
    staging: Staging,
    record: ImageRecord,
    reporter: &Reporter,
) -> Result<ImageRecord, ImageError> {
    record.config.check().map_err(|why| ImageError::Config { name: record.name.clone(), why })?;
    reporter.step("writing it to disk");
    store.publish(staging, &record)?;
    Ok(record)
}

/// `debian-bookworm 943 MiB`
pub(super) fn summary(record: &ImageRecord) -> String {
    format!("{} {} MiB", record.name, record.size_bytes >> 20)
}

/// Reports how much of a stream has been read.
pub(super) struct Counted<'a, R> {
    inner: R,
    what: &'static str,
    reporter: &'a Reporter,
    read: u64,
    told: u64,
}

impl<'a, R: Read> Counted<'a, R> {
    pub(super) const fn new(inner: R, what: &'static str, reporter: &'a Reporter) -> Self {
        Self { inner, what, reporter, read: 0, told: 0 }
    }
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read += count as u64;
        if self.read - self.told >= STREAM_EVERY {
            self.told = self.read;
            self.reporter.amount(self.what, self.read, None);
        }
        Ok(count)
    }
}
