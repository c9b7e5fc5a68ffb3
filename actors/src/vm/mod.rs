//! One VM, one actor: a pure state machine ([`state`]), the actor that steps it ([`actor`]), a worker that runs its effects,
//! and a watch that everybody else waits on ([`published`]).
//!
//! Knows no other VM, no admission and no socket to a client: those are the registry's and the server's.

mod actor;
mod boot_spec;
mod effects;
#[cfg(test)]
pub(crate) mod fake;
mod guest;
mod handlers;
mod outcomes;
pub mod ports;
pub mod published;
pub mod state;
mod worker;

pub use actor::{STOP_GRACE, Vm, VmContext, view_at_rest};
#[cfg(test)]
pub(crate) use handlers::Panic;
pub use handlers::{Accepted, Ask, BeginOperation, Command, Rename, SshAnswers};
pub use published::{Published, Watch};
