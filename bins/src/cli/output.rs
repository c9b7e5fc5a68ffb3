//! stdout and stderr of the CLI. stdout is data, stderr is talk; a closed stdout is a failure, a closed stderr is not.

use super::failure::Failure;
use messages::error::WireError;
use serde_json::{Value, json};
use std::io::{self, IsTerminal, Write};

/// How the user wants to be spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) json: bool,
    pub(super) quiet: bool,
}

impl Output {
    /// Writes data.
    pub(super) fn data(self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    }

    /// Writes one JSON value: indented for a person at a terminal, else one line.
    pub(super) fn value(self, value: &Value) -> Result<(), Failure> {
        let text = if io::stdout().is_terminal() { format!("{value:#}\n") } else { format!("{value}\n") };
        self.data(&text)
    }

    /// A remark that is no error: what happened, what to do next.
    pub(super) fn remark(self, text: &str) {
        if !self.quiet && !self.json {
            say(text);
        }
    }

    /// A warning: said even when quiet.
    pub(super) fn warn(self, text: &str) {
        if self.json {
            say(&json!({ "event": "warning", "message": text }).to_string());
        } else {
            say(&format!("warning: {text}"));
        }
    }

    /// An event for programs, one line of JSON on stderr.
    pub(super) fn event(self, value: &Value) {
        say(&value.to_string());
    }

    /// An error, as [`error_text`] or as JSON.
    pub(super) fn error(self, error: &WireError) {
        if self.json {
            say(&json!({ "error": error_value(error) }).to_string());
        } else {
            say(error_text(error).trim_end());
        }
    }
}

/// Writes a line to stderr. With nobody to read it there is nobody to tell.
pub(super) fn say(line: &str) {
    writeln!(io::stderr().lock(), "{line}").ok();
}

/// `{"kind", "chain", "hints"}`.
pub(super) fn error_value(error: &WireError) -> Value {
    json!({ "kind": error.kind.as_str(), "chain": error.chain, "hints": error.hints })
}

/// The chain on one line where it is short, its causes on their own lines where it is long, then the hints.
pub(super) fn error_text(error: &WireError) -> String {
    let one_line = error.chain.join(": ");
    let mut text = if one_line.len() <= 200 && !one_line.contains('\n') {
        format!("error: {one_line}\n")
    } else {
        let mut chain = error.chain.iter();
        let mut text = format!("error: {}\n", chain.next().map_or("", String::as_str));
        for cause in chain {
            text.push_str(&format!("  caused by: {cause}\n"));
        }
        text
    };
    for hint in &error.hints {
        text.push_str(&format!("hint: {hint}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use messages::error::ErrorKind;

    #[test]
    fn errors_read_as_one_sentence_and_hints() {
        let error = WireError::new(ErrorKind::Host, "permission denied")
            .context("failed to open `/dev/net/tun`")
            .hint("`sudo banger daemon root start`");
        assert_eq!(
            error_text(&error),
            "error: failed to open `/dev/net/tun`: permission denied\nhint: `sudo banger daemon root start`\n"
        );
        assert_eq!(error_value(&error)["kind"], "host");
    }

    #[test]
    fn a_long_chain_is_broken_into_lines() {
        let error = WireError::new(ErrorKind::Guest, "x".repeat(300)).context("short");
        assert!(error_text(&error).starts_with("error: short\n  caused by: xxx"));
    }
}
