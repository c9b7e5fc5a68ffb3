//! `banger vm list` with a thousand stopped VMs, against `banger version`, which does nothing.

use super::figures::{Figure, Goal, median, ms};
use super::{RUNS, time};
use crate::case::{Case, Stop, check};

const VMS: usize = 1000;

pub(super) fn measure(case: &Case<'_>) -> Result<Vec<Figure>, Stop> {
    for number in 0..VMS {
        let name = case.vm_named(&format!("l{number}"));
        let made = case.world.banger(&["vm", "create", "--no-start", "--disk-size", "64M", "--name", &name]).run()?;
        check(made.code() == 0, || format!("VM {number} could not be made: {}", made.err()))?;
    }
    let listed = case.list()?.len();
    check(listed == VMS, || format!("{listed} of {VMS} VMs are listed"))?;
    let (mut list, mut version) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        version.push(ms(time(&case.world.banger(&["version"]))?));
        list.push(ms(time(&case.world.banger(&["vm", "list"]))?));
    }
    Ok(vec![Figure {
        name: format!("vm list with {VMS} stopped VMs against version (ms)"),
        measured: median(&list),
        baseline: median(&version),
        goal: Goal::AtMost(2.0),
        runs: RUNS,
        remark: String::new(),
    }])
}
