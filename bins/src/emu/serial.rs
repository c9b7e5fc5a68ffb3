//! The rate-limited console: what the guest writes too fast is dropped and counted, never queued and never a full disk.

use crate::emu::api::bodies::TokenBucket;
use crate::emu::metrics::Metrics;
use std::fs::File;
use std::io::{self, Write as _};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::time::Instant;

/// One wake-up per byte would cost more than the guest's own work: let some gather first.
const GATHER: Duration = Duration::from_millis(5);
const CHUNK: usize = 64 << 10;

/// Tokens that come back with time.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    config: TokenBucket,
    burst: u64,
    tokens: u64,
    refilled: Instant,
}

impl Bucket {
    /// A full bucket. A size or refill time of nothing is no limit, as with Firecracker.
    #[must_use]
    pub fn new(config: TokenBucket, now: Instant) -> Option<Self> {
        if config.size == 0 || config.refill_time == 0 {
            return None;
        }
        Some(Self { config, burst: config.one_time_burst.unwrap_or(0), tokens: config.size, refilled: now })
    }

    /// Takes as many of `wanted` tokens as there are.
    pub fn take(&mut self, wanted: u64, now: Instant) -> u64 {
        self.refill(now);
        let from_burst = wanted.min(self.burst);
        self.burst -= from_burst;
        let from_tokens = (wanted - from_burst).min(self.tokens);
        self.tokens -= from_tokens;
        from_burst + from_tokens
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.refilled).as_nanos();
        let period = u128::from(self.config.refill_time) * 1_000_000;
        let earned = u128::from(self.config.size) * elapsed / period;
        // Below one token the clock must go on from the old mark, or a busy console would never earn any.
        if earned > 0 {
            let earned = u64::try_from(earned).unwrap_or(u64::MAX);
            self.tokens = self.tokens.saturating_add(earned).min(self.config.size);
            self.refilled = now;
        }
    }
}

/// Copies the console to `output` until QEMU ends, as fast as `limit` allows.
///
/// # Errors
/// The console's socket; what cannot be written to `output` (a full disk) is dropped and counted.
pub async fn copy(mut console: UnixStream, mut output: File, limit: TokenBucket, metrics: Metrics) -> io::Result<()> {
    let mut bucket = Bucket::new(limit, Instant::now());
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = console.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let length = u64::try_from(read).expect("a chunk is small");
        let allowed = bucket.as_mut().map_or(length, |bucket| bucket.take(length, Instant::now()));
        let allowed_bytes = usize::try_from(allowed).expect("no more than was read");
        let dropped = match output.write_all(&buffer[..allowed_bytes]) {
            Ok(()) => length - allowed,
            Err(_) => length,
        };
        metrics.uart_dropped(dropped);
        tokio::time::sleep(GATHER).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(size: u64, burst: u64, refill_ms: u64) -> TokenBucket {
        TokenBucket { size, one_time_burst: Some(burst), refill_time: refill_ms }
    }

    #[test]
    fn tokens_come_back_with_time_and_the_burst_only_once() {
        let start = Instant::now();
        let mut bucket = Bucket::new(limit(100, 50, 1000), start).unwrap();
        assert_eq!(bucket.take(200, start), 150);
        assert_eq!(bucket.take(1, start), 0);
        assert_eq!(bucket.take(200, start + Duration::from_millis(505)), 50);
        assert_eq!(bucket.take(200, start + Duration::from_secs(60)), 100);
        assert!(Bucket::new(limit(0, 0, 1), start).is_none());
    }

    #[test]
    fn slow_and_frequent_use_still_earns() {
        let start = Instant::now();
        let mut bucket = Bucket::new(limit(10, 0, 1000), start).unwrap();
        assert_eq!(bucket.take(10, start), 10);
        let earned: u64 = (1..=100).map(|ms| bucket.take(1, start + Duration::from_millis(ms * 10))).sum();
        assert_eq!(earned, 10);
    }

    #[tokio::test]
    async fn what_is_too_much_is_dropped() {
        use tokio::io::AsyncWriteExt as _;
        let (mut guest, host) = UnixStream::pair().unwrap();
        let output = tempfile::NamedTempFile::new().unwrap();
        guest.write_all(&[b'x'; 1000]).await.unwrap();
        drop(guest);
        copy(host, output.reopen().unwrap(), limit(300, 0, 3_600_000), Metrics::default()).await.unwrap();
        assert_eq!(output.as_file().metadata().unwrap().len(), 300);
    }
}
