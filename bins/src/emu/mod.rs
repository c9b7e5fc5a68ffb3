//! `banger-emu`: a drop-in for the `firecracker` binary over QEMU's `microvm` machine.
//!
//! Same flags, same HTTP API on a Unix socket, same refusals, same Unix-socket protocol for vsock. It knows no policy of
//! banger: what it does is decided by the API alone. One thread: the API, the machine's control and the guest's streams all
//! run on the main thread, so that the child's death signal (which follows the *thread* that spawned it) is the process's.
//!
//! ```text
//!   api (axum) ──Call──▶ controller ──▶ machine: qemu | process | scripted
//!                           │ phase (pure), resources (pure)      │ the link (virtio-serial port)
//!                           └──────────▶ vsock: `uds_path` ◀──mux─┘
//! ```

pub mod api;
pub mod args;
pub mod config_file;
pub mod controller;
pub mod fault;
pub mod log;
pub mod machine;
pub mod metrics;
pub mod phase;
pub mod resources;
pub mod run;
pub mod script;
pub mod serial;
pub mod snapshot;
pub mod sys;
pub mod tsc;
pub mod vsock;

/// The Firecracker release whose API this is.
pub const FIRECRACKER_VERSION: &str = "1.16.1";
