//! Kernels that come in a catalog's bundles: `vmlinux`, `config` and `modules/…` in any order, beside the manifest.

use super::assemble::{Parts, Wanted, assemble, limits};
use super::requirements::{CONFIG_MAX, GuestLink};
use super::{KernelError, KernelRecord, KernelStore, vmlinux};
use crate::artifacts::{Cancel, Reporter, Staging};
use crate::bundle::manifest::MANIFEST_MAX;
use crate::bundle::{BundleError, KernelManifest, MANIFEST};
use crate::catalog::KernelEntry;
use crate::download::{self, Downloads, Pinned};
use crate::ext4::tarball::{Verdict, read_tar};
use crate::ext4::{Ext4Error, Tree};
use crate::oci::Decompressed;
use std::io::{self, Read};

/// Where the members beside the modules wait in the tree until they are read; no module file has such a name.
const WAITING: [(&str, &str); 3] = [("vmlinux", ".vmlinux"), ("config", ".config"), (MANIFEST, ".manifest")];

/// Pulls `entry`, unless a kernel of its name is here already. Blocks; `cancel` ends it.
///
/// # Errors
/// When it cannot be fetched, is not the one that is pinned, or no kernel can be made of it; no part of a kernel is left then.
pub fn pull(
    store: &KernelStore,
    entry: &KernelEntry,
    pinned: &Pinned,
    link: GuestLink,
    downloads: &Downloads,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<KernelRecord, KernelError> {
    if let Some(record) = store.present(entry.name.as_str(), reporter)? {
        return Ok(record);
    }
    let staging = Staging::create(store.directory(), entry.name.as_str())?;
    let of = pinned.url.to_string();
    let unpack = |reader: &mut dyn Read| -> Result<_, KernelError> {
        let mut tree = Tree::limited(staging.path(), limits(cancel))?;
        unpack(&mut tree, reader, &of)?;
        Ok(tree)
    };
    let mut tree = download::read(downloads, pinned, cancel, reporter, unpack)?;
    let mut take = |at: usize, most: u64| take(&mut tree, WAITING[at], most, &of);
    let (kernel, config, manifest) = (take(0, vmlinux::UNPACKED_MAX)?, take(1, CONFIG_MAX)?, take(2, MANIFEST_MAX)?);
    let missing = |name: &str| BundleError::NotOne { of: of.clone(), why: format!("it has no `{name}`") };
    let manifest = KernelManifest::parse(&manifest.ok_or_else(|| missing(MANIFEST))?, &of)?;
    let config = config.map(|text| (String::from_utf8_lossy(&text).into_owned(), "the bundle's configuration"));
    let parts = Parts { kernel: kernel.ok_or_else(|| missing("vmlinux"))?, tree, version: None, config };
    let wanted = Wanted {
        name: entry.name.clone(),
        source: format!("bundle:{of}"),
        command_line: entry.command_line.clone().or(manifest.command_line),
        link,
    };
    let record = assemble(parts, wanted, staging.path(), cancel, reporter)?;
    if cancel.is_cancelled() {
        return Err(KernelError::Cancelled);
    }
    store.publish(staging, &record)?;
    reporter.finished(format!("{} {}", record.name, record.version));
    Ok(record)
}

/// Reads the archive to the end of its file, whose digest is only known there.
fn unpack(tree: &mut Tree, reader: &mut dyn Read, of: &str) -> Result<(), KernelError> {
    let unreadable = |source| BundleError::Archive { of: of.to_owned(), source };
    let mut archive = Decompressed::new(reader).map_err(unreadable)?;
    let read = read_tar(tree, &mut archive, |path| match path.strip_prefix(b"modules/") {
        Some(rest) if !rest.starts_with(b".") => Verdict::Rename(rest.to_vec()),
        _ => match WAITING.iter().find(|(name, _)| name.as_bytes() == path) {
            Some((_, waits)) => Verdict::Rename(waits.as_bytes().to_vec()),
            None => Verdict::Drop,
        },
    });
    read.map_err(|error| match error {
        Ext4Error::Archive(source) => unreadable(source).into(),
        other => KernelError::from(other),
    })?;
    archive.drain().map_err(|source: io::Error| unreadable(source).into())
}

/// Takes a member out of the tree.
fn take(tree: &mut Tree, (name, waits): (&str, &str), most: u64, of: &str) -> Result<Option<Vec<u8>>, KernelError> {
    if tree.length(waits.as_bytes())?.is_some_and(|length| length > most) {
        let why = format!("its `{name}` is larger than {} MiB", most >> 20);
        return Err(BundleError::NotOne { of: of.to_owned(), why }.into());
    }
    let contents = tree.contents(waits.as_bytes(), most)?;
    tree.remove(waits.as_bytes())?;
    Ok(contents)
}

#[cfg(test)]
mod tests;
