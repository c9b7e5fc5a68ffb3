//! Shows the steps of a request while they happen. On a terminal one live line, elsewhere plain lines, with `--json` events.
//!
//! What takes less than a second leaves nothing behind. Owns stderr while it lives.

use super::human;
use super::output::{Output, say};
use super::printable::printable;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use messages::reply::{Progress, Stage};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A step shorter than this is not worth a line.
const WORTH_A_LINE: Duration = Duration::from_secs(1);
/// Between two plain lines of one step.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Where progress goes.
#[derive(Debug)]
enum Style {
    Events,
    Silent,
    Plain { said: Instant },
    Live { bar: Option<ProgressBar> },
}

/// The view of one request's progress.
#[derive(Debug)]
pub(super) struct ProgressView {
    style: Style,
    output: Output,
    began: Instant,
    /// The step that the live line shows.
    stage: Option<Stage>,
}

impl ProgressView {
    /// A view that suits the user's flags and their terminal.
    pub(super) fn new(output: Output) -> Self {
        let style = if output.json {
            Style::Events
        } else if output.quiet {
            Style::Silent
        } else if console::Term::stderr().is_term() {
            Style::Live { bar: None }
        } else {
            Style::Plain { said: Instant::now() }
        };
        Self { style, output, began: Instant::now(), stage: None }
    }

    /// Shows one step.
    pub(super) fn show(&mut self, step: &Progress) {
        if self.output.json {
            self.output.event(&event(step));
            return;
        }
        if step.stage == Stage::Spec {
            self.line(&format!("spec: {}", printable(&step.detail)));
            return;
        }
        let elapsed = Duration::from_micros(step.elapsed_us);
        match &mut self.style {
            Style::Events | Style::Silent => {}
            Style::Plain { said } => {
                let changed = self.stage != Some(step.stage);
                let due = said.elapsed() >= PLAIN_INTERVAL || changed;
                if elapsed >= WORTH_A_LINE && (step.finished || due) {
                    *said = Instant::now();
                    self.stage = Some(step.stage);
                    say(&plain_line(step));
                }
            }
            Style::Live { bar } => {
                self.stage = Some(step.stage);
                if step.finished {
                    if elapsed >= WORTH_A_LINE {
                        let line = plain_line(step);
                        bar.as_ref().map_or_else(|| say(&line), |bar| bar.suspend(|| say(&line)));
                    }
                } else if self.began.elapsed() >= WORTH_A_LINE || elapsed >= WORTH_A_LINE {
                    bar.get_or_insert_with(live_line).set_message(live_text(step));
                }
            }
        }
    }

    /// Takes the live line away.
    pub(super) fn close(&mut self) {
        if let Style::Live { bar } = &mut self.style
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str) {
        match &self.style {
            Style::Live { bar: Some(bar) } => bar.suspend(|| say(text)),
            _ => self.output.remark(text),
        }
    }
}

impl Drop for ProgressView {
    fn drop(&mut self) {
        self.close();
    }
}

fn live_line() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}").expect("the template is constant"));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Details may quote what a program printed.
fn live_text(step: &Progress) -> String {
    format!("{}: {}{}", step.stage.as_str(), printable(&step.detail), amount(step))
}

fn plain_line(step: &Progress) -> String {
    let took = human::took(Duration::from_micros(step.elapsed_us));
    let state = if step.finished { format!("done in {took}") } else { format!("{took} so far") };
    format!("{}, {state}", live_text(step))
}

fn amount(step: &Progress) -> String {
    match (step.done, step.total) {
        (Some(done), Some(total)) if total > 0 => {
            format!(" ({} of {}, {})", human::size(done), human::size(total), human::percent(done, total))
        }
        (Some(done), _) if done > 0 => format!(" ({})", human::size(done)),
        _ => String::new(),
    }
}

fn event(step: &Progress) -> Value {
    json!({
        "event": "progress",
        "stage": step.stage.as_str(),
        "detail": step.detail,
        "done": step.done,
        "total": step.total,
        "elapsed_us": step.elapsed_us,
        "finished": step.finished,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(finished: bool) -> Progress {
        Progress {
            stage: Stage::ImagePull,
            detail: "debian\u{1b}-bookworm".to_owned(),
            done: Some(1 << 20),
            total: Some(4 << 20),
            elapsed_us: 2_500_000,
            finished,
        }
    }

    #[test]
    fn lines_say_what_how_far_and_how_long() {
        assert_eq!(plain_line(&step(false)), "image: debian -bookworm (1 MiB of 4 MiB, 25 %), 2.50 s so far");
        assert_eq!(plain_line(&step(true)), "image: debian -bookworm (1 MiB of 4 MiB, 25 %), done in 2.50 s");
    }

    #[test]
    fn events_are_flat_objects() {
        let value = event(&step(true));
        assert_eq!(value["event"], "progress");
        assert_eq!(value["stage"], "image");
        assert_eq!(value["total"], 4 << 20);
    }
}
