//! What people read: a line for each scenario, the log of a failure, the summary.

#![expect(clippy::print_stdout, reason = "the report is the product")]

use crate::case::Stop;
use crate::schedule::Verdict;
use crate::tally::Tally;

/// Prints a line at once.
pub(crate) fn say(line: impl AsRef<str>) {
    println!("{}", line.as_ref());
}

/// Prints the verdict on one scenario, with its log where it failed, and counts it. Who is skipped although it was asked
/// for by name has failed.
pub(crate) fn verdict(verdict: &Verdict, named: bool, tally: &mut Tally) {
    let (name, seconds) = (verdict.scenario.name, verdict.took.as_secs_f64());
    match &verdict.result {
        Ok(()) => {
            tally.passed += 1;
            say(format!("PASS {name} {seconds:.1} s"));
        }
        Err(Stop::Skipped(why)) if !named => {
            tally.skipped += 1;
            say(format!("SKIP {name} {seconds:.1} s: {why}"));
        }
        Err(Stop::Failed(why) | Stop::Skipped(why)) => {
            tally.failed += 1;
            say(format!("FAIL {name} {seconds:.1} s: {why}"));
            for line in verdict.log.lines() {
                say(format!("    {line}"));
            }
        }
    }
}

/// The exit code of a run: 0, 1 where anything failed, 77 where everything was skipped.
pub(crate) fn exit_code(tally: Tally) -> u8 {
    match tally {
        Tally { failed: 1.., .. } => 1,
        Tally { passed: 0, skipped: 1.., .. } => 77,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        let tally = |passed, failed, skipped| Tally { passed, failed, skipped };
        assert_eq!(exit_code(tally(3, 0, 1)), 0);
        assert_eq!(exit_code(tally(3, 1, 1)), 1);
        assert_eq!(exit_code(tally(0, 0, 2)), 77);
        assert_eq!(exit_code(tally(0, 1, 2)), 1);
    }
}
