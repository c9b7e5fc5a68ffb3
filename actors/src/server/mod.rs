//! The socket of `bangerd`: one request for each connection, progress while it is worked on, one reply.
//!
//! Every connection is a task of its own, with limits and deadlines; its work is another, so that a client that does not read
//! holds up nothing. The server knows who may ask whom; what is done is the actors' business.

mod artifacts;
mod commit;
mod connection;
mod context;
mod daemon;
mod fleet;
mod listener;
mod progress;
mod ready;
mod run;
#[cfg(test)]
mod tests;

pub use artifacts::{Library, Prepared};
pub use context::{Answer, DaemonFacts, ServerContext};
pub use listener::{Listener, ListenerError, SHUTDOWN_GRACE};
