//! Ends a build whose daemon was killed with SIGKILL. mmdebstrap does not notice: asked to end, it waits for its children, one of
//! which waits for it.

use super::DebianError;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Reads the process group to guard, then waits: a word ends the watch, the end of its input (our death) ends the group.
/// `kill -s KILL --` is POSIX's form; dash takes no group after `kill -KILL --`.
const SCRIPT: &str = r#"read -r group || exit 0; read -r word && exit 0; kill -s KILL -- "-$group""#;

/// A shell that waits for our end.
#[derive(Debug)]
pub(super) struct Watchdog {
    child: Child,
    /// Closed by the kernel when this process ends, however it ends. Close-on-exec: no other child holds it open.
    line: Option<ChildStdin>,
}

impl Watchdog {
    /// Starts it; it guards nothing yet. Before the child that it is to guard, so that this one is never without it for longer
    /// than a write takes.
    pub(super) fn start() -> Result<Self, DebianError> {
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT, "banger-build-watchdog"])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal is for us, not for it.
            .process_group(0)
            .spawn()
            .map_err(DebianError::Start)?;
        let line = child.stdin.take();
        Ok(Self { child, line })
    }

    /// Names the process group.
    pub(super) fn guard(&mut self, group: i32) -> Result<(), DebianError> {
        match &mut self.line {
            Some(line) => writeln!(line, "{group}").map_err(DebianError::Start),
            None => Ok(()),
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some(mut line) = self.line.take()
            && let Err(error) = line.write_all(b"done\ndone\n")
        {
            tracing::debug!(%error, "the watchdog had gone");
        }
        if let Err(error) = self.child.wait() {
            tracing::debug!(%error, "the watchdog could not be waited for");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn sleeper() -> (Child, i32) {
        let child = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        let group = i32::try_from(child.id()).unwrap();
        (child, group)
    }

    #[test]
    fn our_end_is_the_groups_end() {
        let (mut child, group) = sleeper();
        let mut watchdog = Watchdog::start().unwrap();
        watchdog.guard(group).unwrap();
        // What the kernel does when we die.
        watchdog.line = None;
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn a_watch_that_is_called_off_kills_nobody() {
        let (mut child, group) = sleeper();
        let mut watchdog = Watchdog::start().unwrap();
        watchdog.guard(group).unwrap();
        drop(watchdog);
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        drop(Watchdog::start().unwrap());
    }
}
