//! What a program printed and how it ended, with assertions that show all of it when they fail.

use std::path::Path;
use std::process::Output;

/// The end of a program.
#[must_use]
#[derive(Clone, Debug)]
pub struct CommandOutput {
    pub stdout: String,
    pub stderr: String,
    /// The exit code, or 128 + the signal.
    pub code: i32,
}

impl CommandOutput {
    /// The root of the environment becomes `$ROOT`.
    pub(crate) fn new(output: Output, root: &Path) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let code = output.status.code().or(output.status.signal().map(|signal| 128 + signal)).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace(root.to_str().unwrap(), "$ROOT");
        Self { stdout: text(output.stdout), stderr: text(output.stderr), code }
    }

    /// Checks for success; returns stdout.
    #[track_caller]
    pub fn success(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// Checks for a failure with this code that printed no data; returns stderr.
    #[track_caller]
    pub fn failure(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        self.stderr
    }

    /// stdout as JSON, after success.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let text = self.success();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}
