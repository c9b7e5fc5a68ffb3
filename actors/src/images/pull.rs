//! Builds a Debian system and makes an image of it.

use super::make::Counted;
use super::{ImageError, ImageRecord, ImageStore, identity, make};
use crate::artifacts::debian::{Recipe, Variant};
use crate::artifacts::{Cancel, NpmError, NpmFile, Reporter, Staging, now_ms};
use crate::catalog::DebianImage;
use crate::ext4::tarball::{Verdict, read_tar};
use crate::ext4::{Limits, Meta, Tree};
use messages::ids::{ImageName, KernelName};
use std::panic::resume_unwind;
use std::thread::ScopedJoinHandle;

/// Builds `debian` as `name`, unless an image of that name is here already. Blocks; `cancel` ends it.
///
/// # Errors
/// When the system cannot be built or no image be made of it; nothing is left behind then.
pub fn pull(
    store: &ImageStore,
    debian: &DebianImage,
    kernel: &KernelName,
    name: &ImageName,
    mirror: Option<&str>,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<ImageRecord, ImageError> {
    if let Some(record) = store.present(name.as_str(), reporter)? {
        return Ok(record);
    }
    let staging = Staging::create(store.directory(), name.as_str())?;
    let (mut tree, files) = std::thread::scope(|scope| {
        // Side by side with the packages: a network's time, not the processor's.
        let fetches: Vec<_> = debian.npm.iter().map(|file| scope.spawn(|| file.fetch(cancel, reporter))).collect();
        let tree = recipe(debian, mirror).run(staging.path(), cancel, reporter, |tar| -> Result<Tree, ImageError> {
            let mut tree = Tree::limited(staging.path(), Limits { cancel: cancel.token(), ..Limits::default() })?;
            read_tar(&mut tree, Counted::new(tar, "packing the system", reporter), |path| match path {
                _ if debian.excludes(path) => Verdict::Drop,
                _ => identity::judge(path),
            })?;
            Ok(tree)
        });
        if tree.is_err() {
            // The downloads are for nothing.
            cancel.cancel();
        }
        let join = |fetch: ScopedJoinHandle<'_, _>| fetch.join().unwrap_or_else(|panic| resume_unwind(panic));
        let files: Vec<Result<Vec<u8>, NpmError>> = fetches.into_iter().map(join).collect();
        tree.map(|tree| (tree, files))
    })?;
    let without = add_files(&mut tree, &debian.npm, files)?;
    let (built, digest) = make::write(tree, &staging, cancel, reporter)?;
    let record = ImageRecord {
        name: name.clone(),
        digest,
        size_bytes: built.size_bytes,
        uuid: built.uuid,
        kernel: kernel.clone(),
        source: format!("debian:{}{without}", debian.suite),
        created_at_ms: now_ms(),
        config: debian.config(),
        pulled_digest: None,
        layers: Vec::new(),
        parent: None,
        external: None,
    };
    let record = make::publish(store, staging, record, reporter)?;
    reporter.finished(format!("{}{without}", make::summary(&record)));
    Ok(record)
}

/// Adds what came from npm. An image can do without what is out of reach, and says so; what is not as pinned is refused.
fn add_files(
    tree: &mut Tree,
    files: &[NpmFile],
    fetched: Vec<Result<Vec<u8>, NpmError>>,
) -> Result<String, ImageError> {
    let mut without = String::new();
    for (file, fetched) in files.iter().zip(fetched) {
        match fetched {
            Ok(contents) => tree.file(file.path.as_bytes(), Meta::root(0o755), &mut contents.as_slice())?,
            Err(error) if error.out_of_reach() => {
                tracing::warn!(file = %file.shown(), %error, "left out of the image");
                without.push_str(if without.is_empty() { ", without " } else { " and " });
                without.push_str(&format!("{} ({error})", file.path));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(without)
}

fn recipe(debian: &DebianImage, mirror: Option<&str>) -> Recipe {
    Recipe {
        suite: debian.suite.clone(),
        variant: Variant::Minimal,
        packages: debian.packages.clone(),
        scripts: debian.scripts.clone(),
        mirror: mirror.map(str::to_owned),
    }
}
