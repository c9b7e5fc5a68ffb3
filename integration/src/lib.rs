//! Runs the real binaries in an environment of their own, and fakes of what they talk to. Needs neither root nor KVM.
//!
//! The binaries are those of `BANGER_BIN_DIR`, which `make test` sets, else those of the target directory that the test runs
//! from; cargo does not build them for another package's tests, so a test without them fails and says `make build`.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure here is a failed test")]

pub mod binaries;
pub mod environment;
pub mod fakes;
pub mod machines;
pub mod output;
pub mod terminal;
pub mod wait;

pub use environment::TestEnvironment;
pub use output::CommandOutput;
pub use wait::until;
