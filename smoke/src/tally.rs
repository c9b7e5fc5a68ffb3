//! Adds up what test runners say of themselves: `make test` ends with the one line made here.
//!
//! Reads the summaries of cargo-nextest, of `cargo test` and of this program. A log without a summary means a runner that
//! did not get that far, and counts as one failure.

use std::fmt;
use std::ops::AddAssign;

/// How nextest's summary begins.
const NEXTEST: &str = "Summary [";

/// Counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The sum of every summary in a log.
pub(crate) fn of_log(text: &str) -> Tally {
    let mut sum = Tally::default();
    let mut summaries = 0;
    let lines: Vec<String> = text.lines().map(|line| without_colours(line).trim().to_owned()).collect();
    // nextest quotes what a test that failed printed, its own summary of one test among it, and that more than once.
    let nextest = lines.iter().any(|line| line.starts_with(NEXTEST));
    for line in lines.iter().filter(|line| !nextest || line.starts_with(NEXTEST)) {
        if let Some(tally) = of_line(line) {
            sum += tally;
            summaries += 1;
        }
    }
    if summaries == 0 {
        sum.failed = 1;
    }
    sum
}

fn of_line(line: &str) -> Option<Tally> {
    // nextest: `Summary [   0.5s] 3 tests run: 2 passed (1 slow), 1 failed, 0 skipped`
    // cargo test: `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; …`; ours: `smoke: 1 passed, 0 failed, 0 skipped`
    let counts = if line.starts_with(NEXTEST) {
        line.split_once("run: ")?.1
    } else {
        line.strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". ").map(|(_, counts)| counts))
            .or_else(|| line.strip_prefix("smoke: "))?
    };
    let mut tally = Tally::default();
    for part in counts.split([',', ';']) {
        let mut words = part.split_whitespace();
        let Some(Ok(count)) = words.next().map(str::parse::<u64>) else { continue };
        match words.next() {
            Some("passed") => tally.passed += count,
            Some("failed" | "timed" | "exec") => tally.failed += count,
            Some("skipped" | "ignored") => tally.skipped += count,
            _ => {}
        }
    }
    Some(tally)
}

fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, after)| after);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(text: &str) -> (u64, u64, u64) {
        let tally = of_log(text);
        (tally.passed, tally.failed, tally.skipped)
    }

    #[test]
    fn nextest() {
        assert_eq!(counts("     Summary [   0.051s] 12 tests run: 12 passed, 0 skipped\n"), (12, 0, 0));
        assert_eq!(
            counts("Summary [ 1s] 9 tests run: 5 passed (1 slow, 1 leaky), 2 failed, 2 timed out, 4 skipped"),
            (5, 4, 4)
        );
        assert_eq!(counts("Summary [ 1s] 3/9 tests run: 2 passed, 1 failed, 6 skipped"), (2, 1, 6));
        assert_eq!(
            counts(
                "\u{1b}[32;1m     Summary\u{1b}[0m [ 1s] \u{1b}[1m2\u{1b}[0m tests run: \u{1b}[1m2\u{1b}[0m passed, 1 skipped"
            ),
            (2, 0, 1)
        );
    }

    #[test]
    fn what_nextest_quotes_is_not_counted_again() {
        let quoted = "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out\n";
        let log =
            format!("FAIL x\n    {quoted}     Summary [ 1s] 9 tests run: 8 passed, 1 failed, 0 skipped\n{quoted}");
        assert_eq!(counts(&log), (8, 1, 0));
    }

    #[test]
    fn cargo_test() {
        let log = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                   test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(counts(log), (4, 2, 1));
    }

    #[test]
    fn ours() {
        assert_eq!(counts("PASS bare-run 1.0 s\nsmoke: 1 passed, 0 failed, 2 skipped\n"), (1, 0, 2));
    }

    #[test]
    fn no_summary_is_a_failure() {
        assert_eq!(counts("error: could not compile `messages`\n"), (0, 1, 0));
        assert_eq!(counts(""), (0, 1, 0));
    }
}
