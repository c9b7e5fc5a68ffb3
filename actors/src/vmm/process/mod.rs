//! One VMM process: started so that it outlives the daemon, found again after the daemon's restart, seen to end, cleaned up.
//!
//! ```text
//!            flock           posix_spawn        write record
//!   (none) ────────▶ locked ────────────▶ held ────────────▶ held, recorded ──┐
//!      ▲                │ killed here:      │ killed here: adopt finds the     │ killed here: adopt
//!      │                │ the lock is free  │ holder through /proc             │ reads the record
//!      │                ▼                   ▼                                  ▼
//!      └──── sockets and lock file removed ◀──── lock free again ◀──── the process ended (pidfd)
//! ```
//!
//! Must not know what the VMM is asked to run (`vmm::launch`) or why it is stopped (the VM actor).

mod exit;
mod lock;
mod spawn;

pub use exit::{Exit, Process};
pub use spawn::{ProcessError, adopt, spawn};
