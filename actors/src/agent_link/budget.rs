//! How fast a guest may keep us busy: a bucket of tokens that refills steadily.

use std::time::Duration;
use tokio::time::{Instant, sleep};

/// `burst` at once, then `per_second`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) burst: u32,
    pub(super) per_second: u32,
}

#[derive(Debug)]
pub(super) struct Budget {
    rate: Rate,
    /// Below zero while a debt is being slept off.
    tokens: f64,
    filled: Instant,
}

impl Budget {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, tokens: f64::from(rate.burst), filled: Instant::now() }
    }

    /// Takes tokens and sleeps for as long as there were not enough: whoever waits behind this waits too.
    pub(super) async fn spend(&mut self, tokens: u32) {
        let debt = self.take(tokens, Instant::now());
        if !debt.is_zero() {
            sleep(debt).await;
        }
    }

    /// Waits until nothing is owed. Cancel-safe, unlike a wait after the fact.
    pub(super) async fn ready(&mut self) {
        self.spend(0).await;
    }

    /// Takes tokens now; the debt is for [`Budget::ready`].
    pub(super) fn owe(&mut self, tokens: u32) {
        self.take(tokens, Instant::now());
    }

    fn take(&mut self, tokens: u32, now: Instant) -> Duration {
        let earned = now.duration_since(self.filled).as_secs_f64() * f64::from(self.rate.per_second);
        self.filled = now;
        self.tokens = (self.tokens + earned).min(f64::from(self.rate.burst)) - f64::from(tokens);
        Duration::from_secs_f64((-self.tokens).max(0.0) / f64::from(self.rate.per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_the_rest_is_paid_for_in_time() {
        let mut budget = Budget::new(Rate { burst: 10, per_second: 100 });
        let start = budget.filled;
        assert_eq!(budget.take(10, start), Duration::ZERO);
        assert_eq!(budget.take(5, start), Duration::from_millis(50));
        assert_eq!(budget.take(5, start + Duration::from_millis(100)), Duration::ZERO);
        // However long nothing came, no more than the burst is saved up.
        assert_eq!(budget.take(20, start + Duration::from_secs(3600)), Duration::from_millis(100));
    }
}
