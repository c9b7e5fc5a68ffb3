//! `banger-agent`: as PID 1 the `/init` of a guest, as its child the keeper and the agent, with `--process` a test machine.

use guest::machine::process::{self, Link};
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: banger-agent --process --link SOCKET --root DIRECTORY\n\
                     As PID 1 it boots a banger guest.";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    log_to_stderr();
    let Some((link, root)) = process_arguments(&arguments) else { return fail(USAGE) };
    match run(process::run(&link, &root)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("banger-agent: {error}")),
    }
}

/// One thread: commands and host wait for each other anyway, and a turn between threads costs much in an emulated guest.
fn run(work: impl Future<Output = std::io::Result<()>>) -> std::io::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn process_arguments(arguments: &[OsString]) -> Option<(Link, PathBuf)> {
    let mut arguments = arguments.iter();
    let (mut process, mut link, mut root) = (false, None, None);
    while let Some(argument) = arguments.next() {
        match argument.to_str()? {
            "--process" => process = true,
            "--link" => link = Some(Link::parse(arguments.next()?.to_str()?)),
            "--root" => root = Some(arguments.next()?.into()),
            _ => return None,
        }
    }
    Some((link?, root?)).filter(|_| process)
}

fn log_to_stderr() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
}

fn fail(message: &str) -> ExitCode {
    // Where stderr is closed there is nobody to tell.
    drop(writeln!(std::io::stderr(), "{message}"));
    ExitCode::FAILURE
}
