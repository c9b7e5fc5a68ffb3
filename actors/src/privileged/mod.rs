//! The only holder of the connection to `bangerd-root`: turns [`Perform`] into frames and answers into replies.
//!
//! Every privileged operation is idempotent, so an operation whose connection broke is sent again. It knows no policy: what
//! to ask for is decided by `network` and `taps`.
//!
//! ```text
//! Perform ─▶ PrivilegedClient ─ Call (bounded) ─▶ driver task ─▶ socket
//!                                                  │  broken: back-off, connect, send what is unanswered again
//!                                                  └─ helper never there: every waiting call fails at once, with a hint
//! ```

mod actor;
mod driver;
mod error;
#[cfg(test)]
mod tests;

pub use actor::{DnsSockets, Perform, PerformBindDns, PrivilegedClient};
