//! The actors of `bangerd`, one folder each. They exchange the typed messages of `messages`; no program logic lives here.

pub mod agent_link;
pub mod artifacts;
pub mod bundle;
pub mod catalog;
pub mod config;
pub mod dns;
pub mod download;
pub mod ext4;
pub mod host;
pub mod images;
pub mod kernels;
pub mod network;
pub mod oci;
pub mod paths;
pub mod privileged;
pub mod registry;
pub mod server;
pub mod ssh;
pub mod store;
pub mod supervise;
pub mod taps;
pub mod tree;
pub mod vm;
pub mod vmm;
