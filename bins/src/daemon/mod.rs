//! The program `bangerd`: config → build → spawn → drain. Policy lives in `actors`.

mod args;
mod lock;
mod log;
mod owner;
mod run;

use clap::Parser as _;
use messages::error::{ErrorKind, WireError};
use std::process::ExitCode;

/// Runs the daemon; its exit code is that of an error kind.
#[must_use]
pub fn main() -> ExitCode {
    let args = args::Args::parse();
    match run::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(error.kind.exit_code())
        }
    }
}

/// On stderr, which is the log when a CLI started this daemon, and a terminal when a person did.
#[expect(clippy::print_stderr, reason = "the one place where this program speaks to whoever started it")]
fn report(error: &WireError) {
    eprintln!("error: {error}");
    for hint in &error.hints {
        eprintln!("hint: {hint}");
    }
}

/// An error of this host's.
fn host_error(what: String, source: &(dyn std::error::Error + 'static)) -> WireError {
    WireError::from_error(ErrorKind::Host, source).context(what)
}
