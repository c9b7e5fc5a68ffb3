//! Builds a Debian system and makes an image of it.

use super::identity;
use super::store::ROOTFS;
use super::{ImageError, ImageRecord, ImageStore};
use crate::artifacts::debian::{Recipe, Variant};
use crate::artifacts::{Cancel, NpmError, NpmFile, Reporter, Staging, now_ms};
use crate::catalog::DebianImage;
use crate::ext4::tarball::{Verdict, read_tar};
use crate::ext4::{Label, Meta, Tree, build};
use messages::ids::{ImageName, KernelName};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::panic::resume_unwind;
use std::path::Path;
use std::thread::ScopedJoinHandle;

/// How often, in bytes, the growing image is told of.
const REPORT_EVERY: u64 = 8 << 20;

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
    if let Some(record) = store.find(name.as_str())? {
        reporter.finished(format!("{} is here already", record.name));
        return Ok(record);
    }
    let staging = Staging::create(store.directory(), name.as_str())?;
    let (mut tree, files) = std::thread::scope(|scope| {
        // Side by side with the packages: a network's time, not the processor's.
        let fetches: Vec<_> = debian.npm.iter().map(|file| scope.spawn(|| file.fetch(cancel, reporter))).collect();
        let tree = recipe(debian, mirror).run(staging.path(), cancel, reporter, |tar| -> Result<Tree, ImageError> {
            let mut tree = Tree::create(staging.path())?;
            read_tar(&mut tree, Counted { inner: tar, reporter, read: 0, told: 0 }, |path| match path {
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
    let path = staging.path().join(ROOTFS);
    reporter.amount("writing the file system", 0, Some(tree.content_bytes()));
    let built = build(&tree, &path, Label("banger-root"))?;
    // The spool is as large as the image: gone before anything else takes space.
    drop(tree);
    if cancel.is_cancelled() {
        return Err(crate::artifacts::DebianError::Cancelled.into());
    }
    reporter.step("reckoning its digest");
    let digest = digest(&path).map_err(|source| ImageError::ReadBack { path: path.clone(), source })?;
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
    reporter.step("writing it to disk");
    store.publish(staging, &record)?;
    reporter.finished(format!("{} {} MiB{without}", record.name, record.size_bytes >> 20));
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

/// `sha256:…` of a file.
fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(format!("sha256:{}", hex::encode(hash.finalize()))),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// Reports how much has been read.
struct Counted<'a> {
    inner: &'a mut dyn Read,
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
            self.reporter.amount("packing the system", self.read, None);
        }
        Ok(count)
    }
}
