//! SSH: the user's managed key ([`managed`]), each VM's host key ([`host_key`]), and the daemon's own client, whose handshake
//! is what readiness `ssh` means ([`probe`]). Decides nothing about VMs; opens no connection itself.

pub mod host_key;
pub mod managed;
pub mod probe;

pub use host_key::HostKey;
pub use managed::{KeyError, KeyPlace, ManagedKey};
