//! `bangerd-root`, the only part of banger that runs with privileges: a closed list of operations on this host's network.
//!
//! It holds no truth: each operation makes the kernel match what was asked for, so the helper may be killed and restarted
//! at any time. It uses `messages` and `link` and nothing else of banger's. `docs/threat-model.md` says what it defends.
//!
//! ```text
//! run: socket ─▶ confine ─▶ serve ─▶ peer ─▶ ops: validate ─▶ host (kernel | double)
//! ```

mod background;
mod confine;
mod host;
mod kernel;
mod nft;
mod ops;
mod peer;
mod resolved;
mod run;
mod serve;
mod socket;
mod sys;
#[cfg(test)]
mod tests;
mod validate;

pub use run::{Args, DEFAULT_SOCKET, RunError, SOCKET_VARIABLE, main};
