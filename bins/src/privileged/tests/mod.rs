//! What the helper does, tried against a double of the host, and with real packets in a network namespace.

mod client;
mod double;
mod ipv6;
mod operations;
mod owners;
mod packets;
mod properties;
mod server;
