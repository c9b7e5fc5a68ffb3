//! `banger completion SHELL`: a script made from the flags. Needs no daemon and no runtime.

use super::args::Cli;
use super::failure::{Failure, Outcome};
use super::output::Output;
use clap::CommandFactory;
use clap_complete::Shell;
use messages::error::ErrorKind;

/// Prints the script.
pub(super) fn run(output: Output, shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "banger", &mut script);
    let script = String::from_utf8(script)
        .map_err(|error| Failure::io(ErrorKind::Internal, "the completion script is no text", &error))?;
    output.data(&script)?;
    Ok(0)
}
