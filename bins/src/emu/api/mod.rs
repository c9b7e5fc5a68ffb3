//! The HTTP API: bodies, routes, server. It only parses and answers; the controller decides.

pub mod bodies;
pub mod request;
pub mod server;
#[cfg(test)]
mod spec_tests;
