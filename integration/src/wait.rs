//! Waits for a state, within a deadline. Never for an amount of time.

use std::time::{Duration, Instant};

/// More than anything here takes on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(5);

/// Asks until there is an answer.
///
/// # Panics
/// Where there is none in time.
#[track_caller]
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(INTERVAL);
    }
}
