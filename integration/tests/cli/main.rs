//! `banger` against a fake daemon and a fake guest: flags, output, exit codes, streams, signals, terminals, other versions.

#![expect(clippy::unwrap_used, reason = "tests")]

mod attach;
mod completion;
mod fixtures;
mod help;
mod interrupts;
mod requests;
mod terminal;
mod usage;
mod versions;
