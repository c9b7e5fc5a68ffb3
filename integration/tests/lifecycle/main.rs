//! The real `banger`, `bangerd`, `banger-emu` and `banger-agent` together, without a guest kernel.

mod bad_input;
mod daemon;
mod exec;
mod images;
mod ssh;
mod vms;
