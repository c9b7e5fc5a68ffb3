//! How fast the host's time stamp counter runs, for `tsc_early_khz=`.
//!
//! Without it, an emulated kernel on a loaded host calibrates against the emulated PIT, fails, and hangs early in its boot.
//! Measured against the raw monotonic clock from the start of the process, so that nothing has to wait for it later.

use super::sys::read_tsc;
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Long enough for 20 ppm with the ~100 ns that one reading is off.
const SPAN: Duration = Duration::from_millis(5);

/// A reading of both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    ticks: u64,
    at: Duration,
}

impl Reading {
    /// Reads both as close together as a few tries get them.
    #[must_use]
    pub fn now() -> Self {
        let mut best = None;
        for _ in 0..5 {
            let before = read_tsc();
            let at = clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).map_or(Duration::ZERO, Duration::from);
            let gap = read_tsc().wrapping_sub(before);
            if best.is_none_or(|(smallest, _)| gap < smallest) {
                best = Some((gap, Self { ticks: before.wrapping_add(gap / 2), at }));
            }
        }
        best.expect("the loop ran").1
    }

    /// The rate since this reading, in kHz; waits where it has not been long enough.
    pub async fn khz(self) -> u64 {
        let elapsed = Self::now().at.saturating_sub(self.at);
        if elapsed < SPAN {
            tokio::time::sleep(SPAN - elapsed).await;
        }
        rate(self, Self::now())
    }
}

fn rate(from: Reading, to: Reading) -> u64 {
    let ticks = u128::from(to.ticks.wrapping_sub(from.ticks));
    let nanos = to.at.saturating_sub(from.at).as_nanos().max(1);
    u64::try_from(ticks * 1_000_000 / nanos).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_ticks_by_time() {
        let from = Reading { ticks: u64::MAX - 10, at: Duration::from_millis(3) };
        let to = Reading { ticks: from.ticks.wrapping_add(25_961_440), at: Duration::from_millis(13) };
        assert_eq!(rate(from, to), 2_596_144);
    }

    #[tokio::test]
    async fn two_measurements_agree() {
        let first = Reading::now().khz().await;
        let second = Reading::now().khz().await;
        assert!(first.abs_diff(second) * 500 < first, "{first} and {second} differ by more than 0.2 %");
    }
}
