//! Everything that can be said of the files below a directory, as one line each.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// Lines by path.
pub(super) type Listing = BTreeMap<Vec<u8>, String>;

pub(super) fn of(root: &Path) -> io::Result<Listing> {
    let mut listing = Listing::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let relative = path.strip_prefix(root).unwrap_or(&path).as_os_str().as_bytes().to_vec();
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            for entry in fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        }
        // Made by every mkfs, and by none of the layers.
        if relative != b"lost+found" {
            listing.insert(relative, line(&path, &meta)?);
        }
    }
    Ok(listing)
}

fn line(path: &Path, meta: &fs::Metadata) -> io::Result<String> {
    let kind = meta.file_type();
    let what = if kind.is_dir() {
        "directory".to_owned()
    } else if kind.is_symlink() {
        format!("link to {}", fs::read_link(path)?.as_os_str().as_bytes().escape_ascii())
    } else if kind.is_file() {
        format!("file {} {} nlink {}", meta.len(), hex::encode(Sha256::digest(fs::read(path)?)), meta.nlink())
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else {
        let which = if kind.is_char_device() { "char" } else { "block" };
        format!("{which} {}:{}", nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()))
    };
    let mut attributes = Vec::new();
    for name in xattr::list(path)? {
        let value = xattr::get(path, &name)?.unwrap_or_default();
        attributes.push(format!("{}={}", name.as_bytes().escape_ascii(), hex::encode(value)));
    }
    attributes.sort();
    Ok(format!(
        "{what} mode {:o} owner {}:{} mtime {}.{:09} [{}]",
        meta.mode() & 0o7777,
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec(),
        attributes.join(" ")
    ))
}

/// What is not the same.
pub(super) fn differences(expected: &Listing, ours: &Listing) -> Vec<String> {
    let mut paths: Vec<&Vec<u8>> = expected.keys().chain(ours.keys()).collect();
    paths.sort();
    paths.dedup();
    let missing = "nothing".to_owned();
    paths
        .into_iter()
        .filter_map(|path| {
            let (theirs, ours) = (expected.get(path).unwrap_or(&missing), ours.get(path).unwrap_or(&missing));
            (theirs != ours).then(|| format!("`{}`: {ours}, where umoci has {theirs}", path.escape_ascii()))
        })
        .collect()
}
