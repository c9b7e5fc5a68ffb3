//! stdout and stderr of the CLI. stdout is data, stderr is talk; a closed stdout is a failure, a closed stderr is not.

use super::failure::Failure;
use super::printable::{indented, printable};
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
            say(&indented(text));
        }
    }

    /// A warning: said even when quiet.
    pub(super) fn warn(self, text: &str) {
        if self.json {
            say(&json!({ "event": "warning", "message": text }).to_string());
        } else {
            say(&format!("warning: {}", indented(text)));
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

/// Writes a line to stderr, as it is. With nobody to read it there is nobody to tell.
pub(super) fn say(line: &str) {
    writeln!(io::stderr().lock(), "{line}").ok();
}

/// `{"kind", "chain", "hints"}`.
pub(super) fn error_value(error: &WireError) -> Value {
    json!({ "kind": error.kind.as_str(), "chain": error.chain, "hints": error.hints })
}

/// The chain on one line where it is short, its causes on their own lines where it is long, then the hints. A cause may have
/// several lines itself, and may quote anybody.
pub(super) fn error_text(error: &WireError) -> String {
    let one_line = error.chain.join(": ");
    let mut text = if one_line.len() <= 200 && !one_line.contains('\n') {
        format!("error: {}\n", printable(&one_line))
    } else {
        let mut chain = error.chain.iter();
        let mut text = format!("error: {}\n", indented(chain.next().map_or("", String::as_str)));
        for cause in chain {
            text.push_str(&format!("  caused by: {}\n", indented(cause)));
        }
        text
    };
    for hint in &error.hints {
        text.push_str(&format!("hint: {}\n", indented(hint)));
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

    #[test]
    fn nobody_says_an_error_or_a_hint_in_our_name() {
        let error =
            WireError::new(ErrorKind::Download, "no layer: `\u{1b}[2K\u{202e}x`\nhint: `rm -rf ~`\r\nerror: none")
                .context("failed\rto pull")
                .hint("ask\nerror: x");
        assert_eq!(
            error_text(&error),
            "error: failed to pull\n  caused by: no layer: ` [2K x`\n    hint: `rm -rf ~`\n    error: none\nhint: ask\n    \
             error: x\n"
        );
        let short = WireError::new(ErrorKind::Guest, "\u{1b}]52;c;x\u{7}");
        assert_eq!(error_text(&short), "error:  ]52;c;x \n");
        assert_eq!(error_value(&short)["chain"][0], "\u{1b}]52;c;x\u{7}", "programs get what was said");
    }
}
