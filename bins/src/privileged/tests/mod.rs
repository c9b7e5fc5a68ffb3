//! What the helper does, tried against a double of the host.

mod client;
mod double;
mod operations;
mod properties;
mod server;
