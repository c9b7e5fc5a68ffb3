//! One run of scenarios: artifacts, baseline, scenarios, and the account of what is left.

use crate::account::{Kind, Snapshot};
use crate::artifacts;
use crate::case::{Case, Outcome, Stop};
use crate::command::POLL;
use crate::registry::{self, Scenario};
use crate::report::{self, say};
use crate::schedule;
use crate::tally::Tally;
use crate::world::World;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Small guests: many fit beside each other, and nothing here needs more. Few taps kept ready, so that some are made late.
pub(crate) const CONFIG: &str = "tap_pool_size = 2\ninsecure_registries = [\"127.0.0.1:5000\", \"127.0.0.1:5001\", \"127.0.0.1:5002\"]\n[vm_defaults]\nvcpu = 1\nmemory_mib = 512\ndisk_size = \"2GiB\"\n";
/// How long things that are on their way out may take to be gone.
const LAST_THINGS: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Options {
    /// Comma-separated names; everything when absent.
    pub(crate) only: Option<String>,
    pub(crate) jobs: usize,
    /// Where the kernel and the image are kept between runs.
    pub(crate) cache: Option<PathBuf>,
}

/// Runs, and gives the exit code.
pub(crate) fn run(world: World, options: &Options) -> Result<u8, Box<dyn Error>> {
    let scenarios = match &options.only {
        Some(names) => registry::select(names)?,
        None => registry::all()?,
    };
    let started = Instant::now();
    let empty = snapshot(&world);
    world.configure(CONFIG)?;
    world.start_helper()?;
    let prepared = prepare(&world, options.cache.as_deref());
    let mut tally = Tally::default();
    if let Err(stop) = prepared {
        say(format!("FAIL artifacts {:.1} s: {}", started.elapsed().as_secs_f64(), reason(&stop)));
        tally.failed += 1;
    } else {
        say(format!("kernel and image are ready after {:.1} s", started.elapsed().as_secs_f64()));
        let idle = snapshot(&world);
        let named = options.only.is_some();
        schedule::run_all(
            &scenarios,
            options.jobs,
            |scenario| one(&world, scenario),
            |verdict| report::verdict(&verdict, named, &mut tally),
        );
        account_for("left by the scenarios", &world, &idle, &[], &mut tally);
    }
    end(&world, &empty, &mut tally)?;
    if tally.failed > 0 {
        dump_logs(&world);
    }
    say(format!("smoke: {tally}"));
    Ok(report::exit_code(tally))
}

fn reason(stop: &Stop) -> &str {
    match stop {
        Stop::Failed(why) | Stop::Skipped(why) => why,
    }
}

/// The kernel and the image, and one VM to its end, so that what is made once is there before anything is counted.
fn prepare(world: &World, cache: Option<&Path>) -> Outcome {
    let case = Case::new(world, "first");
    let result = artifacts::provide(&case, cache).and_then(|()| {
        case.ok(&["vm", "run", "--rm", "--name", &case.vm(), "--", "true"])?;
        case.wait_gone(&case.vm())
    });
    if result.is_err() {
        say(case.take_log());
    }
    result
}

fn one(world: &World, scenario: &Scenario) -> (Result<(), Stop>, String) {
    let case = Case::new(world, scenario.name);
    let result = catch_unwind(AssertUnwindSafe(|| (scenario.run)(&case)))
        .unwrap_or_else(|panic| Err(Stop::Failed(format!("panicked: {:?}", panic.downcast_ref::<String>()))));
    if matches!(result, Err(Stop::Failed(_))) {
        note_vm_logs(&case);
    }
    // A scenario passes only where its VMs can be deleted.
    let result = match case.clean_up() {
        Err(Stop::Failed(why)) if result.is_ok() => Err(Stop::Failed(format!("cannot clean up: {why}"))),
        _ => result,
    };
    (result, case.take_log())
}

fn note_vm_logs(case: &Case<'_>) {
    for vm in case.list().unwrap_or_default() {
        case.note(format!("  {vm}"));
        for log in ["console.log", "vmm.log"] {
            let path = case.world.state.join("vms").join(vm["id"].as_str().unwrap_or_default()).join(log);
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text[text.len().saturating_sub(6000)..]).into_owned();
            case.note(format!("--- the end of {log}\n{text}"));
        }
    }
}

pub(crate) fn snapshot(world: &World) -> Snapshot {
    let directories = world.counted();
    Snapshot::take(&directories.iter().map(PathBuf::as_path).collect::<Vec<_>>())
}

/// Waits until nothing more is there than before; what then is left is a failure.
fn account_for(when: &str, world: &World, before: &Snapshot, ignored: &[Kind], tally: &mut Tally) {
    let started = Instant::now();
    let mut leaks = snapshot(world).more_than(before, ignored);
    while !leaks.is_empty() && started.elapsed() < LAST_THINGS {
        std::thread::sleep(POLL * 5);
        leaks = snapshot(world).more_than(before, ignored);
    }
    if leaks.is_empty() {
        return;
    }
    tally.failed += 1;
    say(format!("FAIL leaks: {} {when}:", leaks.len()));
    leaks.iter().for_each(|leak| say(format!("    {leak}")));
}

/// Stops the daemon and the helper; then only files may be left.
fn end(world: &World, empty: &Snapshot, tally: &mut Tally) -> Result<(), Box<dyn Error>> {
    let stopped = world.banger(&["daemon", "stop"]).run()?;
    if stopped.code() != 0 {
        tally.failed += 1;
        say(format!("FAIL daemon stop: exited with {}: {}", stopped.code(), stopped.err().trim()));
    }
    let said = world.stop_helper()?;
    fs::write(world.base.join("l/bangerd-root.log"), said)?;
    // The bridge and its taps outlive the daemon on purpose: they belong to the VMs that may go on.
    account_for("left by the daemon", world, empty, &[Kind::File, Kind::Interface, Kind::NftTable], tally);
    Ok(())
}

fn dump_logs(world: &World) {
    for path in [world.state.join("bangerd.log"), world.base.join("l/bangerd-root.log")] {
        let text = fs::read(&path).unwrap_or_default();
        say(format!("--- the end of {}", path.display()));
        say(String::from_utf8_lossy(&text[text.len().saturating_sub(20_000)..]));
    }
}
