//! The pool of taps: a VM leases one with its address and hardware address, and gives it back.
//!
//! Taps are made ahead of their use, so that a lease is a look into memory; they outlive the daemon and the helper, and are
//! found again by their names. [`pool`] decides, without a clock or I/O; [`actor`] carries its effects out. What a VM was
//! allowed to reach ([`grants`]) is opened before its lease is answered, and shut before anybody else gets its address.
//!
//! ```text
//! (absent) ─Make─▶ Making ─made─▶ Ready ─Remove─▶ Removing ─▶ (absent)
//!                    │ failed, free: (absent) · failed, held since before: Absent, made again by the next lease
//! ```

mod actor;
mod addresses;
mod grants;
mod handlers;
mod pool;
#[cfg(test)]
mod tests;

pub use actor::{PoolSettings, TapPool};
pub use addresses::TapLease;
pub use handlers::{Adopt, Lease, PoolFigures, Return, ReturnAll, Usage};
