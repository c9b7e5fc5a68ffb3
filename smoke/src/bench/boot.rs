//! From the creation of a VM to the first output of a command in it, against a bare QEMU until the agent's first byte on the
//! port with the overlay mounted.

use super::bare::{RawPort, Template};
use super::figures::{Figure, Goal, median};
use super::repeats;
use crate::case::{Case, SETTLE, Stop};
use crate::command::Input;
use std::time::{Duration, Instant};

pub(super) fn measure(case: &Case<'_>) -> Result<Vec<Figure>, Stop> {
    let template = Template::take(case)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let bare = || runtime.block_on(async { Ok::<_, Stop>(template.boot(RawPort::No).await?.took) });
    // The first ones warm the page cache for both.
    let (first, _) = (first_output(case)?, bare()?);
    let (runs, remark) = repeats(first);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        ours.push(first_output(case)?.as_secs_f64());
        theirs.push(bare()?.as_secs_f64());
    }
    Ok(vec![Figure {
        name: "create to first exec output against bare QEMU (s)".to_owned(),
        measured: median(&ours),
        baseline: median(&theirs),
        goal: Goal::AtMost(1.15),
        runs,
        remark,
    }])
}

fn first_output(case: &Case<'_>) -> Result<Duration, Stop> {
    let vm = case.vm();
    let started = Instant::now();
    let arguments = ["vm", "run", "--rm", "--net", "none", "--wait", "agent", "--name", &vm, "--", "echo", "first"];
    let running = case.start(&arguments, Input::Null)?;
    running.wait_for_stdout("first", SETTLE).map_err(Stop::Failed)?;
    let took = started.elapsed();
    case.finish(running)?;
    case.wait_gone(&vm)?;
    Ok(took)
}
