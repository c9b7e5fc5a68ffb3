//! Reads a pinned file from its beginning while it still comes. Its end is only told once its digest is known to be right.

use super::web::WebFile;
use super::{DownloadError, Location, Pinned};
use crate::artifacts::{Cancel, Reporter, open_file};
use crate::oci::fetch::{Received, fetch, patiently, unless};
use crate::oci::follow::Arrival;
use crate::oci::{Blob, BlobCache, Follower, OciError};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::panic::resume_unwind;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the progress of a download is told.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// How files are fetched, and what of them is kept.
#[derive(Debug, Clone)]
pub struct Downloads {
    pub blobs: BlobCache,
    /// `insecure_registries` of the config: those that may speak plain HTTP.
    pub insecure: Vec<String>,
}

/// Gives the file to `unpack`, which reads it to its end. Blocks; `cancel` ends it. `unpack` runs a second time where the
/// cache's copy turns out to be damaged.
///
/// # Errors
/// What `unpack` says; when the file cannot be read or is another one than was pinned, whatever `unpack` made of it.
pub fn read<T: Send, E: From<DownloadError> + Send>(
    downloads: &Downloads,
    pinned: &Pinned,
    cancel: &Cancel,
    reporter: &Reporter,
    mut unpack: impl FnMut(&mut dyn Read) -> Result<T, E> + Send,
) -> Result<T, E> {
    pinned.url.check(&downloads.insecure)?;
    let url = match &pinned.url {
        Location::File(path) => return from_file(path, pinned, unpack),
        Location::Web(url) => url,
    };
    let fetched = |source| DownloadError::Fetch { location: pinned.url.to_string(), source: Box::new(source) };
    let web = WebFile::new(url).map_err(fetched)?;
    let trim = || {
        if let Err(error) = downloads.blobs.trim() {
            tracing::warn!(%error, "cannot keep the cache within its bound");
        }
    };
    for last in [false, true] {
        reporter.step(format!("asking for {}", pinned.url));
        let blob = blob(&web, downloads, pinned, cancel).map_err(fetched)?;
        match from_web(&web, &blob, downloads, cancel, reporter, &mut unpack) {
            Ok(unpacked) => {
                trim();
                return unpacked;
            }
            Err(OciError::Digest { stale: true, digest }) if !last => {
                tracing::warn!(digest, "a file in the cache was damaged; fetching it anew");
            }
            Err(error) => {
                trim();
                return Err(fetched(error).into());
            }
        }
    }
    unreachable!("the last round returns")
}

/// What is to be fetched, with its length: of the cache's copy where that is whole, so that no network is needed then.
fn blob(web: &WebFile, downloads: &Downloads, pinned: &Pinned, cancel: &Cancel) -> Result<Blob, OciError> {
    let digest = format!("sha256:{}", pinned.sha256.as_str());
    if let Some(size) = downloads.blobs.whole_length(&digest) {
        return Ok(Blob { digest, size });
    }
    let size = Handle::current().block_on(unless(cancel, patiently(async || web.length().await)))?;
    Ok(Blob { digest, size })
}

/// The outer result is the download's, the inner one is `unpack`'s.
fn from_web<T: Send, E: Send>(
    web: &WebFile,
    blob: &Blob,
    downloads: &Downloads,
    cancel: &Cancel,
    reporter: &Reporter,
    unpack: &mut (impl FnMut(&mut dyn Read) -> Result<T, E> + Send),
) -> Result<Result<T, E>, OciError> {
    let runtime = Handle::current();
    let (sender, arrival) = watch::channel(Arrival::default());
    // What was here may be damaged: only the whole digest tells, and has it thrown away.
    let fresh = !downloads.blobs.holds_some(&blob.digest);
    let (received, hopeless, token) = (Received::default(), CancellationToken::new(), cancel.token());
    std::thread::scope(|scope| {
        let unpacker = scope.spawn(|| {
            let mut follower = Follower::new(arrival, runtime.clone());
            let unpacked = unpack(&mut follower);
            if unpacked.is_err() && !follower.is_broken() {
                // No more of it helps.
                hopeless.cancel();
            }
            unpacked
        });
        // Left early, it drops the sender, and the unpacker waits for nobody.
        let fetched = runtime.block_on(async {
            let mut fetching = pin!(fetch(web, &downloads.blobs, blob, sender, received.clone()));
            let mut ticks = tokio::time::interval(REPORT_EVERY);
            loop {
                tokio::select! {
                    done = &mut fetching => return done,
                    () = token.cancelled() => return Err(OciError::Cancelled),
                    () = hopeless.cancelled(), if fresh => return Ok(()),
                    _ = ticks.tick() => {
                        reporter.amount("fetching the bundle", received.0.load(Ordering::Relaxed), Some(blob.size));
                    }
                }
            }
        });
        let unpacked = unpacker.join().unwrap_or_else(|panic| resume_unwind(panic));
        fetched.map(|()| unpacked)
    })
}

fn from_file<T, E: From<DownloadError>>(
    path: &Path,
    pinned: &Pinned,
    mut unpack: impl FnMut(&mut dyn Read) -> Result<T, E>,
) -> Result<T, E> {
    let failed = |source| DownloadError::File { path: path.to_owned(), source };
    let mut file = Hashed { file: open_file(path).map_err(failed)?, hash: Sha256::new() };
    let unpacked = unpack(&mut file);
    // Whatever came of it: another file than was meant is the better reason.
    io::copy(&mut file, &mut io::sink()).map_err(failed)?;
    let found = hex::encode(file.hash.finalize());
    if found != pinned.sha256.as_str() {
        let (location, pinned) = (pinned.url.to_string(), pinned.sha256.as_str().to_owned());
        return Err(DownloadError::Digest { location, found, pinned }.into());
    }
    unpacked
}

struct Hashed {
    file: File,
    hash: Sha256,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}
