//! The kernel and the image: pulled as a user would, once, and kept in a cache between runs where there is one.

use crate::case::{Case, Outcome, Stop};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

/// What the scenarios run on.
pub(crate) const IMAGE: &str = "debian-bookworm";
/// The kernel that the image names.
pub(crate) const KERNEL: &str = "debian-cloud-6.12";
/// What of the state directory the cache keeps: both are plain directories that the daemon reads at its start.
const KEPT: [&str; 2] = ["images", "kernels"];
/// A pull builds an image from packages: minutes, on two busy processors.
const PULL_DEADLINE: Duration = Duration::from_secs(900);

/// What images and kernels are made from: another recipe is another cache.
const RECIPES: &[u8] = include_bytes!("../../actors/src/catalog/builtin.toml");

/// Brings image and kernel into the world, from the cache or by pulling.
pub(crate) fn provide(case: &Case<'_>, cache: Option<&Path>) -> Outcome {
    let recipes = hex::encode(&Sha256::digest(RECIPES)[..8]);
    let cache = cache.map(|cache| cache.join(recipes));
    let cache = cache.as_deref();
    if let Some(cache) = cache.filter(|cache| KEPT.iter().all(|kept| cache.join(kept).is_dir())) {
        for kept in KEPT {
            copy(&cache.join(kept), &case.world.state)?;
        }
        give_to(case.world.uid, &case.world.state)?;
        if case.ok(&["image", "list"])?.out().contains(IMAGE) {
            return Ok(());
        }
        case.note("the cache holds no usable image: pulling");
    }
    // The kernel would come with the image; pulled by itself, it is tried too.
    for arguments in [["kernel", "pull", KERNEL], ["image", "pull", IMAGE]] {
        let mut pull = case.world.banger(&arguments);
        pull.deadline = PULL_DEADLINE;
        let done = case.run(pull)?;
        if done.code() != 0 {
            let what = arguments.join(" ");
            return Err(Stop::Failed(format!("`{what}` exited with {}: {}", done.code(), done.err().trim())));
        }
    }
    if let Some(cache) = cache {
        keep(case, cache)?;
    }
    Ok(())
}

/// Fills the cache beside its place, then puts it there at once: a run that is killed leaves no half cache.
fn keep(case: &Case<'_>, cache: &Path) -> Outcome {
    let parent = cache.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    let staging = tempfile::Builder::new().prefix(".banger-smoke-").tempdir_in(parent)?;
    for kept in KEPT {
        copy(&case.world.state.join(kept), staging.path())?;
    }
    // Those of other recipes go, and nothing that is not ours; another run may have been faster, and its copy is as good.
    let is_ours = |name: &str| name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    for old in fs::read_dir(parent)?.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_ours)) {
        drop(fs::remove_dir_all(old.path()));
    }
    if fs::rename(staging.path(), cache).is_ok() {
        drop(staging.keep());
    }
    Ok(())
}

fn copy(from: &Path, into: &Path) -> Outcome {
    let (from, into) = (from.display().to_string(), into.display().to_string());
    let argv = ["cp", "-a", "--sparse=always", "--reflink=auto", &from, &into];
    let done = crate::command::Program::tool(&argv).run()?;
    if done.code() == 0 { Ok(()) } else { Err(Stop::Failed(format!("cp: {}", done.err().trim()))) }
}

/// Makes everything under a directory a user's own.
pub(crate) fn give_to(uid: u32, directory: &Path) -> std::io::Result<()> {
    std::os::unix::fs::lchown(directory, Some(uid), Some(uid))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            give_to(uid, &entry.path())?;
        } else if !entry.file_type()?.is_symlink() {
            chown(entry.path(), Some(uid), Some(uid))?;
        }
    }
    Ok(())
}
