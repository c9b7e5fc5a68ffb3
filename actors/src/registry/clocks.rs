//! Guests' clocks after the host slept, or was set: a guest's own stands still meanwhile, or goes on as before. Knows when, and has the
//! VMs' actors tell their agents; a guest that does not answer keeps its time.

use super::Registry;
use super::actor::Entry;
use crate::supervise::{Panicked, guard};
use crate::vm::Ask;
use actix::{Addr, Context, Message};
use messages::guest::GuestQuestion;
use messages::vm::VmState;
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::runtime::Handle;

/// How often the host's clocks are compared.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What the wall clock may move against the one that only counts, before guests are told, in nanoseconds.
const TOLERANCE: i128 = 1_000_000_000;

/// The wall clock against the clock that neither sleeps are added to nor anybody sets (clock_gettime(2), `CLOCK_MONOTONIC`).
#[derive(Debug, Default)]
struct Offset(Option<i128>);

impl Offset {
    /// Takes note of it; true where it is another than when this was last true.
    fn moved(&mut self, wall: Duration, counted: Duration) -> bool {
        let nanoseconds = |time: Duration| i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
        let now = nanoseconds(wall) - nanoseconds(counted);
        let Some(before) = self.0 else {
            self.0 = Some(now);
            return false;
        };
        let moved = (now - before).abs() > TOLERANCE;
        if moved {
            self.0 = Some(now);
        }
        moved
    }
}

fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Looks after the clocks for as long as the daemon lives.
pub fn keep_clocks(registry: Addr<Registry>, runtime: &Handle) {
    runtime.spawn(async move {
        let mut offset = Offset::default();
        loop {
            if let Ok(counted) = clock_gettime(ClockId::CLOCK_MONOTONIC)
                && offset.moved(wall(), counted.into())
            {
                tracing::info!("the host slept, or its clock was set: guests are told the time");
                if !matches!(registry.send(SetClocks).await, Ok(Ok(()))) {
                    tracing::warn!("guests were not told the time: the registry was restarted just now");
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
}

/// Tells every guest that is up what time it is. Does not wait for any.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<(), Panicked>")]
pub struct SetClocks;

impl actix::Handler<SetClocks> for Registry {
    type Result = Result<(), Panicked>;

    fn handle(&mut self, _: SetClocks, ctx: &mut Context<Self>) -> Self::Result {
        guard(ctx, |_| {
            for entry in self.vms.values() {
                if let Entry::Live { vm, watch } = entry
                    && watch.borrow().view.state == VmState::Running
                {
                    let unix_ns = u64::try_from(wall().as_nanos()).unwrap_or(u64::MAX);
                    let asked = vm.send(Ask(GuestQuestion::SetClock { unix_ns }));
                    let name = watch.borrow().view.name.clone();
                    self.context.vm.runtime.spawn(async move {
                        if let Ok(Err(error)) = asked.await {
                            tracing::warn!(vm = %name, %error, "a guest's clock was not set");
                        }
                    });
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_and_a_clock_that_is_set_are_noticed_once() {
        let mut offset = Offset::default();
        let seconds = Duration::from_secs;
        assert!(!offset.moved(seconds(1000), seconds(10)), "nothing to compare it with");
        assert!(!offset.moved(seconds(1005), seconds(15)));
        // Slewed: told once it is a second.
        assert!(!offset.moved(seconds(1010) + Duration::from_millis(900), seconds(20)));
        assert!(offset.moved(seconds(1016) + Duration::from_millis(100), seconds(25)));
        assert!(!offset.moved(seconds(1021), seconds(30)));
        assert!(offset.moved(seconds(9000), seconds(35)), "it slept");
        assert!(!offset.moved(seconds(9005), seconds(40)));
        assert!(offset.moved(seconds(5), seconds(45)), "it was set back");
    }
}
