//! A figure, its baseline and its goal; how they are judged, printed and written.

use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// What a ratio has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// Printed for people to watch.
    None,
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "<= {bound}"),
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::None => f.write_str("none"),
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    /// Says what, and in which unit.
    pub(crate) name: String,
    pub(crate) measured: f64,
    /// What it is compared with, in the same unit.
    pub(crate) baseline: f64,
    pub(crate) goal: Goal,
    /// How often each was measured; the figures are medians.
    pub(crate) runs: usize,
    /// Why there were fewer than 20, or anything else that a reader needs.
    pub(crate) remark: String,
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    measured: f64,
    baseline: f64,
    ratio: f64,
    goal: String,
    verdict: &'static str,
    runs: usize,
    remark: &'a str,
}

impl Figure {
    pub(crate) fn ratio(&self) -> f64 {
        self.measured / self.baseline
    }

    pub(crate) fn verdict(&self) -> &'static str {
        let good = match self.goal {
            Goal::AtMost(bound) => self.ratio() <= bound,
            Goal::AtLeast(bound) => self.ratio() >= bound,
            Goal::None => true,
        };
        if good { "ok" } else { "short" }
    }

    /// `name, measured, baseline, ratio, goal, ok|short`.
    pub(crate) fn line(&self) -> String {
        let (measured, baseline) = (rounded(self.measured), rounded(self.baseline));
        let remark = if self.remark.is_empty() { String::new() } else { format!("  # {}", self.remark) };
        format!("{}, {measured}, {baseline}, {:.3}, {}, {}{remark}", self.name, self.ratio(), self.goal, self.verdict())
    }

    pub(crate) fn json(&self) -> Result<Value, serde_json::Error> {
        serde_json::to_value(Row {
            name: &self.name,
            measured: rounded(self.measured),
            baseline: rounded(self.baseline),
            ratio: (self.ratio() * 1000.0).round() / 1000.0,
            goal: self.goal.to_string(),
            verdict: self.verdict(),
            runs: self.runs,
            remark: &self.remark,
        })
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The middle one; the mean of the two middle ones of an even count.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

/// In milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(measured: f64, baseline: f64, goal: Goal) -> Figure {
        Figure { name: "thing (ms)".to_owned(), measured, baseline, goal, runs: 20, remark: String::new() }
    }

    #[test]
    fn medians() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn verdicts_at_the_bounds() {
        assert_eq!(figure(2.0, 1.0, Goal::AtMost(2.0)).verdict(), "ok");
        assert_eq!(figure(2.1, 1.0, Goal::AtMost(2.0)).verdict(), "short");
        assert_eq!(figure(0.7, 1.0, Goal::AtLeast(0.7)).verdict(), "ok");
        assert_eq!(figure(0.6, 1.0, Goal::AtLeast(0.7)).verdict(), "short");
        assert_eq!(figure(f64::NAN, 1.0, Goal::AtMost(2.0)).verdict(), "short");
    }

    #[test]
    fn a_line_has_six_parts_and_the_json_the_same_keys() {
        let figure = figure(3.0, 2.0, Goal::AtMost(1.15));
        assert_eq!(figure.line(), "thing (ms), 3, 2, 1.500, <= 1.15, short");
        let json = figure.json().unwrap();
        assert_eq!(json["goal"], "<= 1.15");
        assert_eq!(json["verdict"], "short");
        assert_eq!(json["ratio"], 1.5);
        assert_eq!(json["measured"], 3.0);
    }
}
