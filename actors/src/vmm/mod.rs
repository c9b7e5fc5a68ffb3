//! Drives VMMs (Firecracker, or banger-emu, which looks the same): which to use, the process, its API, the steps of a start.
//!
//! Knows one VM's files and nothing of VM policy: when to start, stop or restart one is for the VM actor.

pub mod api;
pub mod choose;
#[cfg(test)]
pub(crate) mod fake;
pub mod files;
pub mod launch;
pub mod logs;
pub mod marks;
pub mod process;
#[cfg(test)]
mod tests;

pub use api::{ApiError, CallLimits, Driver};
pub use choose::{Candidates, ChooseError, VmmChoice, VmmKind, choose};
pub use files::{PathTooLong, VmFiles, guest_dialled};
pub use launch::{LaunchError, LaunchLimits, Running, Tap, VmmConfig, launch, launch_within};
pub use process::{Exit, Process, ProcessError, adopt};
