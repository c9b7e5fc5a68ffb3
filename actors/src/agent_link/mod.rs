//! The host's end of the link to the agent in one guest, in both of the directions that Firecracker's vsock has.
//!
//! ```text
//!   agent dials host:1024  ──▶ <uds_path>_1024, where AgentLink listens        one control stream, the newest counts
//!   open_operation ──▶ <uds_path>, "CONNECT 1025\n", "OK n\n" ──▶ the agent    one stream for each exec, shell, copy
//!
//!   accepted ──hello, Identify──▶ current ──ended or replaced──▶ gone, its pending calls failed
//! ```
//!
//! **Whatever comes from a guest is hostile.** Frames are bounded in length, lists and rate; every wait for the guest has a
//! deadline; text is cleaned of control characters; a slow reader of the events slows the guest, and nothing grows.
//! Must not decide what a frame means for the VM: that is the VM actor's.

mod budget;
mod calls;
mod connection;
mod listener;
mod operation;
mod server;
#[cfg(test)]
mod tests;
mod untrusted;

pub use calls::{AgentLink, CallError};
pub use connection::IdentifyError;
pub use listener::ListenError;
pub use operation::{DialError, check_size, dial, open_operation};
pub use server::{ConnectionId, LinkEvent, LinkLimits};
