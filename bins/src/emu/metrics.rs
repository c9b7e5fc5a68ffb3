//! Counters of this process, written as one JSON line by `FlushMetrics` and at the end.

use crate::emu::log::open_output;
use crate::emu::phase::Operation;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// The counters. Cheap to clone; the clones are the same counters.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Mutex<Counters>>);

#[derive(Debug, Default)]
struct Counters {
    file: Option<File>,
    calls: Vec<(Operation, Calls)>,
    /// Streams opened from the host, and those that were refused.
    connects: u64,
    connects_refused: u64,
    guest_connects: u64,
    guest_connects_refused: u64,
    uart_dropped: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    count: u64,
    fails: u64,
    last_us: u64,
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, Counters> {
        // Numbers stay numbers, whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says where flushed metrics go. Only once.
    ///
    /// # Errors
    /// The file cannot be opened, or there is one already.
    pub fn set_path(&self, path: &Path) -> io::Result<()> {
        let mut counters = self.lock();
        if counters.file.is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "Reinitialization of metrics not allowed."));
        }
        counters.file = Some(open_output(path)?);
        Ok(())
    }

    /// One API call has ended.
    pub fn call(&self, operation: Operation, failed: bool, took_us: u64) {
        let mut counters = self.lock();
        let calls = &mut counters.calls;
        let at = calls.iter().position(|(known, _)| known.as_str() == operation.as_str()).unwrap_or_else(|| {
            calls.push((operation, Calls::default()));
            calls.len() - 1
        });
        let calls = &mut calls[at].1;
        calls.count += 1;
        calls.fails += u64::from(failed);
        calls.last_us = took_us;
    }

    /// The host asked for a stream.
    pub fn connect(&self, refused: bool) {
        let mut counters = self.lock();
        counters.connects += 1;
        counters.connects_refused += u64::from(refused);
    }

    /// The guest asked for a stream.
    pub fn guest_connect(&self, refused: bool) {
        let mut counters = self.lock();
        counters.guest_connects += 1;
        counters.guest_connects_refused += u64::from(refused);
    }

    /// The console's rate limiter dropped bytes.
    pub fn uart_dropped(&self, bytes: u64) {
        self.lock().uart_dropped += bytes;
    }

    /// Writes one line, where a path has been set.
    ///
    /// # Errors
    /// The file system's.
    pub fn flush(&self) -> io::Result<()> {
        let mut counters = self.lock();
        let line = format!("{}\n", counters.snapshot());
        match &mut counters.file {
            Some(file) => file.write_all(line.as_bytes()),
            None => Ok(()),
        }
    }
}

impl Counters {
    fn snapshot(&self) -> Value {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let mut calls = Map::new();
        for (operation, numbers) in &self.calls {
            let numbers = json!({"count": numbers.count, "fails": numbers.fails, "last_us": numbers.last_us});
            calls.insert(operation.as_str().to_owned(), numbers);
        }
        json!({
            "utc_timestamp_ms": u64::try_from(now).unwrap_or(u64::MAX),
            "api_requests": calls,
            "vsock": {
                "connects": self.connects,
                "connects_refused": self.connects_refused,
                "guest_connects": self.guest_connects,
                "guest_connects_refused": self.guest_connects_refused,
            },
            "uart": {"rate_limiter_dropped_bytes": self.uart_dropped},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_appends_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics");
        let metrics = Metrics::default();
        metrics.set_path(&path).unwrap();
        assert!(metrics.set_path(&path).is_err());
        metrics.call(Operation::Drives, true, 7);
        metrics.call(Operation::Drives, false, 8);
        metrics.connect(true);
        metrics.flush().unwrap();
        metrics.flush().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(line["api_requests"]["drives"], json!({"count": 2, "fails": 1, "last_us": 8}));
        assert_eq!(line["vsock"]["connects_refused"], 1);
    }
}
