//! The CLI's start and end: which commands need a runtime, and how a failure becomes an exit code.

use super::args::{Cli, Command};
use super::client::Client;
use super::failure::{Failure, Outcome};
use super::output::{Output, say};
use super::{artifacts, completion, config, daemon, doctor, ssh, vm};
use clap::Parser;
use clap::error::ErrorKind as ClapKind;
use messages::error::{ErrorKind, WireError};
use messages::frame::{GENERATION, build_id};
use serde_json::json;
use std::ffi::OsString;
use std::process::ExitCode;

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match completion::answer(&arguments) {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => return ExitCode::from(refuse(&error, &arguments)),
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(refuse(&error, &arguments)),
    };
    let output = Output { json: cli.global.json, quiet: cli.global.quiet };
    let code = run(output, cli.command).unwrap_or_else(|failure| {
        if let Failure::Error(error) | Failure::NotRun(error) = &failure {
            output.error(error);
        }
        failure.exit_code()
    });
    ExitCode::from(code)
}

fn run(output: Output, command: Command) -> Outcome {
    match command {
        // These need no runtime, and start in a millisecond.
        Command::Version => version(output),
        Command::Completion { shell } => completion::run(output, shell),
        Command::Config(command) => config::run(output, &command),
        Command::Vm(command) => with_client(output, async |client| vm::run(client, command).await),
        Command::Image(command) => with_client(output, async |client| artifacts::image(client, command).await),
        Command::Kernel(command) => with_client(output, async |client| artifacts::kernel(client, command).await),
        Command::Daemon(command) => with_client(output, async |client| daemon::run(client, command).await),
        Command::SshConfig(args) => ssh::config(&Client::from_env(output)?, args),
        Command::Doctor => doctor::run(output),
    }
}

/// Runs a command on a runtime of one thread.
fn with_client(output: Output, command: impl AsyncFnOnce(&Client) -> Outcome) -> Outcome {
    let client = Client::from_env(output)?;
    block_on(command(&client))
}

/// A runtime of one thread, for as long as one future takes.
pub(super) fn block_on(future: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io(ErrorKind::Host, "failed to start the runtime", &error))?;
    let outcome = runtime.block_on(future);
    // A blocking read that nobody waits for must not hold the program back.
    runtime.shutdown_background();
    outcome
}

fn version(output: Output) -> Outcome {
    if output.json {
        output.value(&json!({ "version": build_id(), "protocol": GENERATION }))?;
    } else {
        output.data(&format!("banger {} (protocol {GENERATION})\n", build_id()))?;
    }
    Ok(0)
}

/// Help goes to stdout, a usage error to stderr: as JSON where that was asked for, which the failed parse cannot say.
fn refuse(error: &clap::Error, arguments: &[OsString]) -> u8 {
    let help = matches!(error.kind(), ClapKind::DisplayHelp | ClapKind::DisplayVersion);
    let json = arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
    if help || !json {
        let printed = error.print();
        return match printed {
            Ok(()) if help => 0,
            Ok(()) => ErrorKind::Usage.exit_code(),
            Err(error) => Failure::from(error).exit_code(),
        };
    }
    let text = error.render().to_string();
    let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let hint = text.lines().find_map(|line| line.trim().strip_prefix("Usage: "));
    let mut wire = WireError::new(ErrorKind::Usage, message);
    wire.hints.extend(hint.map(|usage| format!("`{usage}`")));
    say(&json!({ "error": super::output::error_value(&wire) }).to_string());
    ErrorKind::Usage.exit_code()
}
