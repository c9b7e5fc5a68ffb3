//! Has systemd-resolved send `.vm`, and nothing else, to the bridge: a second process beside the helper, because the bus is
//! for root.
//!
//! systemd-resolved takes a link's settings from uid 0 (or from whoever an administrator's password lets), and a connection to
//! the system bus as uid 0 is as good as root: it can start any unit. The helper, which reads what others send, must not
//! hold one. So, before the helper gives its uid up, it starts this program again as the *names keeper*: uid 0 without any
//! capability, which reads nothing but the fixed frames of [`wire`] from the helper, and does two things, each with its
//! opposite. When the helper ends, however it ends, its end of the pipe closes, and the keeper takes the names back and ends, too.
//!
//! The second thing is firewalld's: it keeps a table that nobody else may write, and takes orders by the same bus.
//!
//! ```text
//! bangerd ─ RouteNames ─▶ bangerd-root (no uid 0) ─ 9 bytes ─▶ names keeper (uid 0, no capability) ─ D-Bus ─▶ systemd-resolved
//! ```

mod bus;
mod client;
mod firewalld;
mod keeper;
#[cfg(test)]
pub(super) mod tests;
mod wire;

pub(super) use client::NamesKeeper;
pub(super) use keeper::main as keep_names;
