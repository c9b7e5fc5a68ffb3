//! The command line of `banger-smoke`.

#![expect(clippy::print_stderr, reason = "errors go there")]

use crate::host::{Host, HostError};
use crate::init::{self, Inside, Task};
use crate::registry::{self, RegistryError};
use crate::report::say;
use crate::tally::{self, Tally};
use crate::{bench, report, run, sandbox};
use clap::{Parser, Subcommand};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

/// Real guests, end to end.
#[derive(Debug, Parser)]
#[command(name = "banger-smoke", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the scenarios.
    List,
    /// Run scenarios. Exits with 0; 1: something failed; 2: wrong usage; 77: everything was skipped.
    Run {
        /// The scenarios, comma-separated. All of them when absent.
        #[arg(long, value_name = "NAMES")]
        only: Option<String>,
        /// How many at a time; 8 at most. One for each two processors when absent, and at least two.
        #[arg(long)]
        jobs: Option<usize>,
        /// Keeps the kernel and the image here between runs.
        #[arg(long, value_name = "DIR")]
        cache: Option<PathBuf>,
        /// Leave the run's directory where it is.
        #[arg(long)]
        keep: bool,
    },
    /// Measure speed and size against their goals. Exits with 0 whatever the figures are; 1: it could not be measured.
    Bench {
        /// The measurements, comma-separated. All of them when absent.
        #[arg(long, value_name = "NAMES")]
        only: Option<String>,
        /// Where the figures are written as JSON.
        #[arg(long, value_name = "FILE", default_value = "target/bench/report.json")]
        report: PathBuf,
        /// Keeps the kernel and the image here between runs.
        #[arg(long, value_name = "DIR")]
        cache: Option<PathBuf>,
    },
    /// Open a shell in a fresh VM, in a network namespace that is gone afterwards.
    Sandbox {
        /// The directory for state and cache.
        #[arg(long, value_name = "DIR", default_value = "/var/tmp/banger-sandbox")]
        dir: PathBuf,
        /// More for `banger vm run`.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Add up what test runners said in these logs, in one line. Exits with 1 where anything failed.
    Tally {
        #[arg(required = true)]
        logs: Vec<PathBuf>,
    },
    /// What the program does in its own namespaces.
    #[command(hide = true)]
    Inside { task: String },
}

/// Parses the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::List => list(),
        Command::Run { only, jobs, cache, keep } => start_run(only, jobs, cache, keep),
        Command::Bench { only, report, cache } => start_bench(only, report, cache),
        Command::Sandbox { dir, arguments } => start_sandbox(dir, arguments),
        Command::Tally { logs } => add_up(&logs),
        Command::Inside { task } => init::inside(&task),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {}", chain(error.as_ref()));
            ExitCode::from(if error.is::<RegistryError>() { 2 } else { 1 })
        }
    }
}

fn chain(error: &dyn Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn list() -> Result<u8, Box<dyn Error>> {
    for scenario in registry::all()? {
        say(format!("{:<20} {:<8} {}", scenario.name, format!("{:?}", scenario.class).to_lowercase(), scenario.line));
    }
    Ok(0)
}

fn start_run(
    only: Option<String>,
    jobs: Option<usize>,
    cache: Option<PathBuf>,
    keep: bool,
) -> Result<u8, Box<dyn Error>> {
    let selected = match &only {
        Some(names) => registry::select(names)?,
        None => registry::all()?,
    };
    if !nix::unistd::Uid::effective().is_root() {
        return Ok(all_skipped(only.is_some(), selected.len()));
    }
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    let jobs = jobs.unwrap_or((processors / 2).max(2)).clamp(1, crate::schedule::JOBS_MAX);
    in_namespaces(Task::Run(run::Options { only, jobs, cache: absolute(cache)? }), keep)
}

/// Without root there is nothing to run in; who asked by name gets a failure.
fn all_skipped(named: bool, count: usize) -> u8 {
    let count = count as u64;
    say(HostError::NotRoot.to_string());
    let tally =
        if named { Tally { failed: count, ..Tally::default() } } else { Tally { skipped: count, ..Tally::default() } };
    say(format!("smoke: {tally}"));
    report::exit_code(tally)
}

fn start_bench(only: Option<String>, report: PathBuf, cache: Option<PathBuf>) -> Result<u8, Box<dyn Error>> {
    let report = std::path::absolute(report)?;
    in_namespaces(Task::Bench(bench::Options { only, report, cache: absolute(cache)? }), false)
}

fn start_sandbox(dir: PathBuf, arguments: Vec<String>) -> Result<u8, Box<dyn Error>> {
    let dir = std::path::absolute(dir)?;
    in_namespaces(Task::Sandbox(sandbox::Options { dir, arguments }), false)
}

fn absolute(path: Option<PathBuf>) -> std::io::Result<Option<PathBuf>> {
    path.map(std::path::absolute).transpose()
}

/// Makes a slot's namespaces, does the task in them and takes them away; what is left on the host is a failure.
fn in_namespaces(task: Task, keep: bool) -> Result<u8, Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let programs = own.parent().ok_or("this program lies nowhere")?.to_owned();
    let host = Host::open()?;
    let inside = Inside { slot: host.slot, base: host.base.clone(), programs, task };
    let code = host.run(&inside);
    let base = host.base.clone();
    let left = host.close(keep);
    if keep {
        say(format!("kept {}", base.display()));
    }
    left.iter().for_each(|thing| eprintln!("error: left on the host: {thing}"));
    let code = code?;
    Ok(if code == 0 && !left.is_empty() { 1 } else { code })
}

fn add_up(logs: &[PathBuf]) -> Result<u8, Box<dyn Error>> {
    let mut sum = Tally::default();
    for log in logs {
        sum += tally::of_log(&String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()));
    }
    say(sum.to_string());
    Ok(u8::from(sum.failed > 0))
}
