//! `make bench`: what banger costs, each figure beside a baseline from the same run, on the same machine, a moment apart.
//!
//! Figures are medians of at least [`RUNS`] runs, measured and baseline in turns, so that a slow minute slows both. Fewer only
//! where one run takes longer than ten seconds; the line says so.

mod bare;
mod boot;
mod create;
mod exec;
mod figures;
mod footprint;
mod golden;
mod list;
mod names;
mod network;
mod pull;
mod stdin;
mod uplink;

use crate::artifacts;
use crate::case::{Case, Stop};
use crate::command::Program;
use crate::report::say;
use crate::run::CONFIG;
use crate::world::World;
use figures::Figure;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Runs of each measurement.
const RUNS: usize = 20;
/// A run longer than this is repeated [`FEW`] times only.
const LONG: Duration = Duration::from_secs(10);
const FEW: usize = 5;

/// What to measure.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Options {
    /// Comma-separated; everything when absent.
    pub(crate) only: Option<String>,
    /// Where the figures go as JSON.
    pub(crate) report: PathBuf,
    /// Where kernel and image are kept between runs.
    pub(crate) cache: Option<PathBuf>,
}

type Measurement = fn(&Case<'_>) -> Result<Vec<Figure>, Stop>;

/// Each measurement makes figures and leaves no VM. Footprint comes first: it wants a daemon that has done nothing yet.
const ALL: [(&str, Measurement); 11] = [
    ("footprint", footprint::measure),
    ("create", create::measure),
    ("list", list::measure),
    ("network", network::measure),
    ("pull", pull::measure),
    ("golden", golden::measure),
    ("boot", boot::measure),
    ("exec", exec::measure),
    ("stdin", stdin::measure),
    ("uplink", uplink::measure),
    ("names", names::measure),
];

/// Measures, prints and writes. Exits with 0 whatever the figures say, with 1 where one could not be had.
pub(crate) fn run(world: World, options: &Options) -> Result<u8, Box<dyn Error>> {
    let wanted: Option<Vec<&str>> = options.only.as_ref().map(|only| only.split(',').collect());
    let unknown = |name: &&&str| ALL.iter().all(|(known, _)| known != *name);
    if let Some(name) = wanted.iter().flatten().find(unknown) {
        return Err(format!("no measurement is named `{name}`").into());
    }
    world.configure(CONFIG)?;
    world.start_helper()?;
    let case = Case::new(&world, "bench");
    let mut code = 0;
    let mut figures = Vec::new();
    match artifacts::provide(&case, options.cache.as_deref()) {
        Err(Stop::Failed(why) | Stop::Skipped(why)) => {
            say(format!("error: {why}\n{}", case.take_log()));
            code = 1;
        }
        Ok(()) => {
            for (name, measure) in ALL {
                if wanted.as_ref().is_some_and(|wanted| !wanted.contains(&name)) {
                    continue;
                }
                let result = measure(&case);
                let result = case.clean_up().and(result);
                match result {
                    Ok(more) => {
                        more.iter().for_each(|figure| say(figure.line()));
                        figures.extend(more);
                    }
                    Err(Stop::Failed(why) | Stop::Skipped(why)) => {
                        let log = case.take_log();
                        let tail: Vec<&str> = log.lines().rev().take(40).collect();
                        say(format!("error: {name}: {why}"));
                        tail.iter().rev().for_each(|line| say(format!("    {line}")));
                        code = 1;
                    }
                }
                case.take_log();
            }
        }
    }
    drop(world.banger(&["daemon", "stop"]).run());
    world.stop_helper()?;
    let rows = figures.iter().map(Figure::json).collect::<Result<Vec<_>, _>>()?;
    if let Some(parent) = options.report.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&options.report, serde_json::to_string_pretty(&rows)? + "\n")?;
    say(format!(
        "{} figures, {} short",
        figures.len(),
        figures.iter().filter(|figure| figure.verdict() == "short").count()
    ));
    Ok(code)
}

/// Runs a program that must succeed, with its output thrown away, and gives its time from start to end.
fn time(program: &Program) -> Result<Duration, Stop> {
    let mut command = program.command();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Instant::now();
    let status =
        command.status().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.argv[0])))?;
    let took = started.elapsed();
    if status.success() {
        Ok(took)
    } else {
        Err(Stop::Failed(format!("`{}` ended with {status}", program.argv.join(" "))))
    }
}

/// How often to repeat something whose first run took so long, and what to say of it.
fn repeats(first: Duration) -> (usize, String) {
    if first > LONG {
        (FEW, format!("{FEW} runs: one takes {:.0} s", first.as_secs_f64()))
    } else {
        (RUNS, String::new())
    }
}
