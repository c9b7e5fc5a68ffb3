//! The files that a VMM and its guest write: how they are kept bounded, and how their end is read.
//!
//! A console can be written as fast as a guest likes and its writer keeps its offset, so that a file is shortened from the
//! front by punching a hole: its length stays, its blocks go.

use crate::vmm::api::TokenBucket;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What a serial console may write: 1 MiB a second after a first 4 MiB. A whole verbose boot is less than 1 MiB.
pub const CONSOLE_RATE: TokenBucket = TokenBucket { size: 1 << 20, refill_time: 1000, one_time_burst: Some(4 << 20) };
/// The granularity of holes, in bytes: that of every common file system.
const BLOCK: u64 = 4096;

/// Gives back the blocks of all but the last `keep` bytes (or a block more) of a file that somebody is writing.
///
/// # Errors
/// Of open and fallocate. A file that is not there is fine.
pub fn trim(path: &Path, keep: u64) -> io::Result<()> {
    let file = match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let metadata = file.metadata()?;
    let cut = metadata.len().saturating_sub(keep) / BLOCK * BLOCK;
    // Blocks are counted in units of 512 bytes. Nothing to win: leave it alone.
    if cut == 0 || metadata.blocks() * 512 <= keep + 2 * BLOCK {
        return Ok(());
    }
    let punch = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let cut = i64::try_from(cut).map_err(io::Error::other)?;
    Ok(nix::fcntl::fallocate(file.as_fd(), punch, 0, cut)?)
}

/// The last lines of a file, at most `lines` and `bytes` of them, without control characters.
#[must_use]
pub fn tail(path: &Path, lines: usize, bytes: u64) -> Vec<String> {
    let Ok(text) = read_end(path, bytes) else { return Vec::new() };
    let all: Vec<String> = text.lines().map(crate::vmm::api::clean).filter(|line| !line.is_empty()).collect();
    all[all.len().saturating_sub(lines)..].to_vec()
}

fn read_end(path: &Path, bytes: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut text = Vec::new();
    file.take(bytes).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trimmed_file_keeps_its_end_and_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let text = "a line of the console\n".repeat(100_000);
        std::fs::write(&path, &text).unwrap();
        trim(&path, 64 << 10).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), text.len() as u64);
        assert!(metadata.blocks() * 512 <= (64 << 10) + 2 * BLOCK, "{} blocks", metadata.blocks());
        assert_eq!(tail(&path, 2, 4096), ["a line of the console", "a line of the console"]);
    }

    #[test]
    fn a_tail_is_fit_for_a_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmm.log");
        std::fs::write(&path, b"first\n\x1b[2Jsecond\n\n\xff third\n").unwrap();
        assert_eq!(tail(&path, 2, 4096), ["[2Jsecond", "\u{fffd} third"]);
        assert!(tail(&dir.path().join("none"), 2, 4096).is_empty());
        trim(&dir.path().join("none"), 1).unwrap();
    }
}
