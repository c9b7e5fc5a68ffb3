//! What the programs talk to, played by the test: exact answers, at exact moments, of any version.

pub mod agent;
pub mod daemon;

pub use agent::FakeAgent;
pub use daemon::{FakeDaemon, Step};
