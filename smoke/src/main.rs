//! `banger-smoke`: real guests, end to end. Lists and runs scenarios, measures (`bench`), and opens the sandbox.
//!
//! Everything runs in namespaces of its own (see `host`) under an ordinary uid that exists nowhere else. It must never touch
//! a process, interface or file that it did not make itself.

#![forbid(unsafe_code)]

mod account;
mod args;
mod artifacts;
mod bench;
mod case;
mod command;
mod host;
mod init;
mod outside;
mod registry;
mod report;
mod run;
mod sandbox;
mod scenarios;
mod schedule;
mod tally;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    args::main()
}
