//! Reads a file while somebody else still writes it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// How far a blob has come.
#[derive(Debug, Clone, Default)]
pub struct Arrival {
    /// Where its bytes are; none before the first.
    pub file: Option<Arc<File>>,
    /// How many of them are there, and hashed.
    pub available: u64,
    /// Set at the end: whether it is what its digest says.
    pub end: Option<Verified>,
}

/// How a blob ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    Yes,
    No,
}

/// Reads a blob from its beginning, waiting for what has not come yet. Its end is only told once its digest is known to be
/// right; otherwise the last read fails.
#[derive(Debug)]
pub struct Follower {
    arrival: watch::Receiver<Arrival>,
    read: u64,
    runtime: Handle,
    broken: bool,
}

/// Why a read failed that has nothing to do with what was read.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the blob did not come whole")]
    NotWhole,
    #[error("the download was given up")]
    GivenUp,
}

impl Follower {
    /// Follows what `arrival` tells.
    #[must_use]
    pub const fn new(arrival: watch::Receiver<Arrival>, runtime: Handle) -> Self {
        Self { arrival, read: 0, runtime, broken: false }
    }

    /// True once a read failed for want of the rest of the blob.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        self.broken
    }

    /// True for the error of such a read, through whatever decompressor it came.
    #[must_use]
    pub fn broke(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Broken>())
    }

    fn fail(&mut self, why: Broken) -> io::Error {
        self.broken = true;
        io::Error::other(why)
    }
}

impl Read for Follower {
    /// Blocks: not for a thread that runs tasks.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let arrival = self.arrival.borrow_and_update().clone();
            if let Some(file) = arrival.file.filter(|_| arrival.available > self.read) {
                let left = usize::try_from(arrival.available - self.read).unwrap_or(usize::MAX);
                let most = left.min(buffer.len());
                let count = file.read_at(&mut buffer[..most], self.read)?;
                self.read += count as u64;
                return Ok(count);
            }
            match arrival.end {
                Some(Verified::Yes) => return Ok(0),
                Some(Verified::No) => return Err(self.fail(Broken::NotWhole)),
                None => {}
            }
            if self.runtime.block_on(self.arrival.changed()).is_err() {
                return Err(self.fail(Broken::GivenUp));
            }
        }
    }
}
