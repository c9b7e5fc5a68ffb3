//! All VMs: their names, the admission of new ones, and an actor for each that is not at rest.
//!
//! The registry owns names and actors' addresses. What a VM is doing it reads from the VM's own watch; it never waits for
//! one. A VM actor that ends without its VM being gone is built anew from the store.

mod actor;
mod admission;
mod clocks;
mod names;
mod queries;
mod tending;
#[cfg(test)]
mod tests;

pub use actor::{Check, Create, Get, Handle, Registry, RegistryContext, RenameVm};
pub use admission::{DiskFacts, Taken, VMS_MAX, admit_count, admit_disk, admit_memory, memory_reserve_mib};
pub use clocks::{SetClocks, keep_clocks};
pub use names::Names;
pub use queries::{List, Show, Summarize, Summary};
