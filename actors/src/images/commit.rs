//! Makes an image of what a VM's root is now: the guest's agent sends it as a tar archive, seen as the guest sees it, and no
//! disk of the VM's is opened. What is one machine's own stays out.

mod stream;

pub use stream::{ArchiveStream, CommitError};

use super::make::Counted;
use super::{ImageError, ImageRecord, ImageStore, identity, make};
use crate::artifacts::{Cancel, Reporter, Staging, now_ms};
use crate::ext4::tarball::read_tar;
use crate::ext4::{Ext4Error, Limits, Tree};
use messages::guest::HOSTS_MARK;
use messages::ids::{ImageName, KernelName};
use messages::image::ImageConfig;
use std::io;

/// A longer file is nobody's list of keys or hosts, in bytes.
const LIST_MAX: u64 = 1 << 20;

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
    make::check_free(store, &plan.name)?;
    // Deleted with `--force` while the VM ran: then nothing is known of it, and nothing else is lost.
    let base = store.find(plan.from.as_str())?;
    let staging = Staging::create(store.directory(), plan.name.as_str())?;
    let mut tree = Tree::limited(staging.path(), Limits { cancel: cancel.token(), ..Limits::default() })?;
    let mut counted = Counted::new(archive, "reading the VM's files", reporter);
    read_tar(&mut tree, &mut counted, identity::judge).map_err(|error| explain(error, cancel))?;
    // What comes after the archive's end: whether the guest had read all it meant to.
    io::copy(&mut counted, &mut io::sink()).map_err(|error| explain(Ext4Error::Archive(error), cancel))?;
    strip(&mut tree, &plan.managed_keys)?;
    let (built, digest) = make::write(tree, &staging, cancel, reporter)?;
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
    let record = make::publish(store, staging, record, reporter)?;
    reporter.finished(make::summary(&record));
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

#[cfg(test)]
mod tests;
