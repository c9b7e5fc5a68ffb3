//! What a pull cannot do without: fetching the layers, hashing and decompressing them, writing as many bytes to a disk. All
//! layers at once, nothing kept in between.

use super::ask;
use crate::case::{Stop, check, failed};
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

const CHUNK: usize = 256 << 10;
/// Between the beginnings of two layers in the file: more than one has.
const REGION: u64 = 1 << 30;

/// Does it for `big`, and says how long it took.
pub(super) fn measure(directory: &Path) -> Result<Duration, Stop> {
    let path = directory.join("floor");
    let started = Instant::now();
    let manifest: Value = serde_json::from_reader(get("manifests/1")?)?;
    let digests: Vec<String> = manifest["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|layer| layer["digest"].as_str().map(str::to_owned))
        .collect();
    check(!digests.is_empty(), || format!("the manifest has no layers: {manifest}"))?;
    let file = File::create(&path)?;
    let results: Vec<Result<(), Stop>> = std::thread::scope(|scope| {
        let layers: Vec<_> = digests
            .iter()
            .zip(0..)
            .map(|(digest, number)| {
                let file = &file;
                scope.spawn(move || layer(digest, file, number * REGION))
            })
            .collect();
        layers.into_iter().map(|layer| layer.join().unwrap_or_else(|_| failed("a layer's thread panicked"))).collect()
    });
    results.into_iter().collect::<Result<(), _>>()?;
    file.sync_all()?;
    let took = started.elapsed();
    fs::remove_file(&path)?;
    Ok(took)
}

fn layer(digest: &str, file: &File, mut at: u64) -> Result<(), Stop> {
    let mut hashed = Hashed { inner: get(&format!("blobs/{digest}"))?, hash: Sha256::new() };
    let mut plain = MultiGzDecoder::new(&mut hashed);
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = plain.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        file.write_all_at(&chunk[..count], at)?;
        at += count as u64;
    }
    let hex = hex::encode(hashed.hash.finalize());
    check(digest.ends_with(&hex), || format!("{digest} came as {hex}"))
}

/// The body of an answer.
fn get(what: &str) -> Result<impl Read + use<>, Stop> {
    let mut body = BufReader::with_capacity(CHUNK, ask("GET", what)?);
    let mut length = None;
    let mut line = String::new();
    loop {
        line.clear();
        body.read_line(&mut line)?;
        match line.trim_end() {
            "" => break,
            header => {
                if let Some((_, value)) =
                    header.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                {
                    length = value.parse().ok();
                }
            }
        }
    }
    let length: u64 = length.ok_or_else(|| Stop::Failed(format!("the registry does not say how long {what} is")))?;
    Ok(body.take(length))
}

struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}
