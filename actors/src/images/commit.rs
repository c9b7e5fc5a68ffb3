//! Makes an image of what a VM's root is now: the guest's agent sends it as a tar archive, seen as the guest sees it, and no
//! disk of the VM's is opened. What is one machine's own stays out.

mod stream;

pub use stream::{ArchiveStream, CommitError};

use super::identity;
use super::register::{check_free, digest};
use super::store::ROOTFS;
use super::{ImageError, ImageRecord, ImageStore};
use crate::artifacts::{Cancel, Reporter, Staging, now_ms};
use crate::ext4::tarball::read_tar;
use crate::ext4::{Ext4Error, Label, Tree, build};
use messages::ids::{ImageName, KernelName};
use messages::image::ImageConfig;
use std::fs::File;
use std::io::{self, Read};

/// How often, in bytes, the growing image is told of.
const REPORT_EVERY: u64 = 8 << 20;
/// A longer file is nobody's list of keys or hosts, in bytes.
const LIST_MAX: u64 = 1 << 20;
/// Marks the line of `/etc/hosts` that the agent writes at each boot.
const HOSTS_MARK: &str = "# banger";

/// What is to be made.
#[derive(Debug, Clone)]
pub struct CommitPlan {
    pub name: ImageName,
    /// The image that the VM was made from.
    pub from: ImageName,
    pub kernel: KernelName,
    /// That of `from` where absent.
    pub config: Option<ImageConfig>,
    pub source: String,
    /// Keys that the daemon gives every VM: whoever gets the image must not let us in with them.
    pub managed_keys: Vec<String>,
}

/// Reads the archive and makes the image. Blocks; `cancel` ends it.
///
/// # Errors
/// When the name is taken, the guest does not send all of it, or no image can be made of it; nothing is left behind then.
pub fn commit(
    store: &ImageStore,
    plan: &CommitPlan,
    archive: ArchiveStream,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<ImageRecord, ImageError> {
    check_free(store, &plan.name)?;
    // Deleted with `--force` while the VM ran: then nothing is known of it, and nothing else is lost.
    let base = store.find(plan.from.as_str())?;
    let staging = Staging::create(store.directory(), plan.name.as_str())?;
    let mut tree = Tree::create(staging.path())?;
    let mut counted = Counted { inner: archive, reporter, read: 0, told: 0 };
    read_tar(&mut tree, &mut counted, identity::judge).map_err(|error| explain(error, cancel))?;
    // What comes after the archive's end: whether the guest had read all it meant to.
    io::copy(&mut counted, &mut io::sink()).map_err(|error| explain(Ext4Error::Archive(error), cancel))?;
    strip(&mut tree, &plan.managed_keys)?;
    let path = staging.path().join(ROOTFS);
    reporter.amount("writing the file system", 0, Some(tree.content_bytes()));
    let built = build(&tree, &path, Label("banger-root"))?;
    drop(tree);
    let read_back = |source| ImageError::ReadBack { path: path.clone(), source };
    let file = File::open(&path).map_err(read_back)?;
    let digest = digest(file, built.size_bytes, cancel, reporter).map_err(read_back)?.ok_or(ImageError::Cancelled)?;
    let record = ImageRecord {
        name: plan.name.clone(),
        digest,
        size_bytes: built.size_bytes,
        uuid: built.uuid,
        kernel: plan.kernel.clone(),
        source: plan.source.clone(),
        created_at_ms: now_ms(),
        config: plan.config.clone().or_else(|| base.as_ref().map(|base| base.config.clone())).unwrap_or_default(),
        pulled_digest: None,
        layers: Vec::new(),
        parent: base.map(|base| base.digest),
        external: None,
    };
    reporter.step("writing it to disk");
    store.publish(staging, &record)?;
    reporter.finished(format!("{} {} MiB", record.name, record.size_bytes >> 20));
    Ok(record)
}

/// The guest's own words, where the archive ended because of them.
fn explain(error: Ext4Error, cancel: &Cancel) -> ImageError {
    if cancel.is_cancelled() {
        return ImageError::Cancelled;
    }
    match error {
        Ext4Error::Archive(error) => match error.downcast::<CommitError>() {
            Ok(said) => said.into(),
            Err(error) => Ext4Error::Archive(error).into(),
        },
        other => other.into(),
    }
}

/// Lines that the agent adds at each boot.
fn strip(tree: &mut Tree, managed_keys: &[String]) -> Result<(), Ext4Error> {
    let is_managed = |line: &[u8]| managed_keys.iter().any(|key| key.trim().as_bytes() == line.trim_ascii());
    tree.rewrite(b"root/.ssh/authorized_keys", LIST_MAX, |keys| without(&keys, is_managed))?;
    tree.rewrite(b"etc/hosts", LIST_MAX, |hosts| without(&hosts, |line| line.ends_with(HOSTS_MARK.as_bytes())))
}

fn without(text: &[u8], unwanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    text.split_inclusive(|byte| *byte == b'\n')
        .filter(|line| !unwanted(line.strip_suffix(b"\n").unwrap_or(line)))
        .flatten()
        .copied()
        .collect()
}

/// Reports how much has been read.
struct Counted<'a> {
    inner: ArchiveStream,
    reporter: &'a Reporter,
    read: u64,
    told: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read += count as u64;
        if self.read - self.told >= REPORT_EVERY {
            self.told = self.read;
            self.reporter.amount("reading the VM's files", self.read, None);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
