//! Fetches one blob: what the cache has of it is hashed, the rest is asked for by range, and whoever follows sees every byte as
//! soon as it is hashed. One thread hashes and writes, one task talks to the registry
//! or server.

use super::blobs::Slot;
use super::follow::{Arrival, Verified};
use super::registry::Blob;
use super::{BlobCache, OciError};
use crate::artifacts::Cancel;
use crate::ext4::spool::{has_room, has_room_for};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use sha2::{Digest as _, Sha256};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Chunks between the network and the disk. Each may be as long as an HTTP client's read buffer grows, which is 400 KiB.
const CHUNKS: usize = 16;
/// How much of a file that is there already is hashed at once.
const READ: usize = 1 << 20;
/// How much comes before the file system is looked at again, in bytes.
const LOOK_EVERY: u64 = 64 << 20;
/// How often a connection that breaks is made anew without a byte having come.
const TRIES: usize = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(300);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The pauses between tries.
fn pauses() -> backon::ExponentialBackoff {
    let builder = ExponentialBuilder::default().with_min_delay(FIRST_PAUSE).with_max_delay(LONGEST_PAUSE);
    builder.with_max_times(TRIES).with_jitter().build()
}

/// Asks again while an answer may yet come.
///
/// # Errors
/// The last answer's.
pub(crate) async fn patiently<T>(request: impl AsyncFn() -> Result<T, OciError>) -> Result<T, OciError> {
    let mut pause = pauses();
    loop {
        let error = match request().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let Some(wait) = pause.next().filter(|_| error.is_transient()) else { return Err(error) };
        tracing::info!(error = %error, "a server failed; trying again");
        tokio::time::sleep(wait).await;
    }
}

/// Waits, but not longer than anybody wants it.
///
/// # Errors
/// The work's, or that it was cancelled.
pub(crate) async fn unless<T>(cancel: &Cancel, work: impl Future<Output = Result<T, OciError>>) -> Result<T, OciError> {
    let token = cancel.token();
    tokio::select! {
        done = work => done,
        () = token.cancelled() => Err(OciError::Cancelled),
    }
}

/// Where the bytes of a blob come from.
pub trait BlobSource: Send + Sync {
    /// Asks for a blob from `offset` on. Not verified.
    fn open<'a>(&'a self, blob: &'a Blob, offset: u64) -> BoxFuture<'a, Result<Part, OciError>>;
}

/// The bytes of a blob, to its end.
pub struct Part {
    /// Where they begin: what was asked for, or 0 where ranges are not known there.
    pub from: u64,
    pub bytes: BoxStream<'static, Result<Bytes, OciError>>,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part").field("from", &self.from).finish_non_exhaustive()
    }
}

/// Counts what has come, of all blobs of a pull.
#[derive(Debug, Clone, Default)]
pub struct Received(pub Arc<AtomicU64>);

impl Received {
    fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Makes sure of a blob; `arrival` tells how far it is. Returns when it is whole and verified.
///
/// # Errors
/// [`OciError`]; the beginning of a blob whose connection broke is kept for the next time.
pub async fn fetch(
    source: &impl BlobSource,
    cache: &BlobCache,
    blob: &Blob,
    arrival: watch::Sender<Arrival>,
    received: Received,
) -> Result<(), OciError> {
    let held = cache.lock(&blob.digest).lock_owned().await;
    let (sender, chunks) = mpsc::channel(CHUNKS);
    let (ready, start) = tokio::sync::oneshot::channel();
    let writer = {
        let (cache, blob) = (cache.clone(), blob.clone());
        tokio::task::spawn_blocking(move || {
            let received = receive(&cache, &blob, &arrival, ready, chunks, &received);
            // Not before the last byte is written, also where nobody waits for us any more.
            drop(held);
            received
        })
    };
    // Nothing is asked for where the cache has it all.
    let fetched = match start.await {
        Ok(offset) if offset < blob.size => transfer(source, blob, offset, &sender).await,
        Ok(_) | Err(_) => Ok(()),
    };
    drop(sender);
    let kept = writer.await.unwrap_or_else(|_| Err(OciError::Cut { digest: blob.digest.clone() }));
    // That a file is shorter than it should be is only the consequence of a transfer that failed.
    match (fetched, kept) {
        (Err(error), Err(OciError::Cut { .. }) | Ok(())) => Err(error),
        (_, kept) => kept,
    }
}

/// Asks for the rest of a blob until it is there.
async fn transfer(
    source: &impl BlobSource,
    blob: &Blob,
    mut offset: u64,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), OciError> {
    let mut pause = pauses();
    loop {
        let before = offset;
        let error = match stream(source, blob, &mut offset, sender).await {
            Ok(()) if offset >= blob.size => return Ok(()),
            Ok(()) => OciError::Cut { digest: blob.digest.clone() },
            Err(error) => error,
        };
        if sender.is_closed() || !error.is_transient() {
            return Err(error);
        }
        if offset > before {
            pause = pauses();
        }
        let Some(wait) = pause.next() else { return Err(error) };
        tracing::info!(digest = blob.digest, offset, error = %error, "a download broke off; going on");
        tokio::time::sleep(wait).await;
    }
}

/// One connection's worth.
async fn stream(
    source: &impl BlobSource,
    blob: &Blob,
    offset: &mut u64,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), OciError> {
    let Part { from, mut bytes } = source.open(blob, *offset).await?;
    // Who knows no ranges sends all of it again: what we have is skipped, and so stays what was hashed.
    let mut skip = *offset - from;
    while let Some(chunk) = bytes.next().await {
        let mut chunk = chunk?;
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
        skip -= skipped as u64;
        chunk = chunk.split_off(skipped);
        if chunk.is_empty() {
            continue;
        }
        *offset += chunk.len() as u64;
        if *offset > blob.size {
            return Err(OciError::TooLong { digest: blob.digest.clone(), size: blob.size });
        }
        if sender.send(chunk).await.is_err() {
            // The writer has a better reason.
            return Ok(());
        }
    }
    Ok(())
}

/// Hashes what is there, then hashes and keeps what comes.
fn receive(
    cache: &BlobCache,
    blob: &Blob,
    arrival: &watch::Sender<Arrival>,
    ready: tokio::sync::oneshot::Sender<u64>,
    mut chunks: mpsc::Receiver<Bytes>,
    received: &Received,
) -> Result<(), OciError> {
    let kept = |source| OciError::Cache { path: blob.digest.clone().into(), source };
    let (file, whole) = match cache.open(&blob.digest)? {
        Slot::Whole(file) => (Arc::new(file), true),
        Slot::Partial(file) => (Arc::new(file), false),
    };
    arrival.send_modify(|arrival| arrival.file = Some(Arc::clone(&file)));
    let told = |available: u64| arrival.send_modify(|arrival| arrival.available = available);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ];
    let mut available = 0;
    // More than the whole can be no beginning of it: the digest will tell.
    while available < blob.size {
        let count = file.read_at(&mut buffer, available).map_err(kept)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        available += count as u64;
        received.add(count);
        told(available);
    }
    drop(buffer);
    let stale = available > 0;
    if whole && available < blob.size {
        cache.forget(&blob.digest);
        arrival.send_modify(|arrival| arrival.end = Some(Verified::No));
        return Err(OciError::Digest { digest: blob.digest.clone(), stale: true });
    }
    // What a registry announces, and what it sends, must not fill the disk that the VMs write to.
    let full = || {
        let why = format!("too little would be left for VMs beside its {} MiB", blob.size >> 20);
        kept(io::Error::new(io::ErrorKind::StorageFull, why))
    };
    if !has_room_for(&file, blob.size - available.min(blob.size)) {
        return Err(full());
    }
    if ready.send(available).is_err() {
        // Nobody waits: the pull was given up.
        return Err(OciError::Cut { digest: blob.digest.clone() });
    }
    while let Some(chunk) = chunks.blocking_recv() {
        hash.update(&chunk);
        file.write_all_at(&chunk, available).map_err(kept)?;
        let looked = available / LOOK_EVERY;
        available += chunk.len() as u64;
        if available / LOOK_EVERY > looked && !has_room(&file) {
            // Others write, too. What is there takes the room that they need.
            cache.forget(&blob.digest);
            return Err(full());
        }
        received.add(chunk.len());
        told(available);
    }
    if available < blob.size {
        arrival.send_modify(|arrival| arrival.end = Some(Verified::No));
        return Err(OciError::Cut { digest: blob.digest.clone() });
    }
    if format!("sha256:{}", hex::encode(hash.finalize())) != blob.digest {
        cache.forget(&blob.digest);
        arrival.send_modify(|arrival| arrival.end = Some(Verified::No));
        return Err(OciError::Digest { digest: blob.digest.clone(), stale });
    }
    if !whole {
        cache.keep(&blob.digest)?;
    }
    arrival.send_modify(|arrival| arrival.end = Some(Verified::Yes));
    Ok(())
}
