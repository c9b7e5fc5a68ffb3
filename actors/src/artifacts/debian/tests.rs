//! Runs stand-ins for mmdebstrap: what matters here is how a child is driven, not what it builds.

#![cfg(test)]

use super::*;
use messages::reply::Stage;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    command
}

#[test]
fn the_last_lines_explain_a_failure() {
    let cancel = Cancel::new();
    let script = "echo 'I: running apt-get update...' >&2; echo 'E: Unable to locate package nosuch' >&2; exit 3";
    let running = Running::start(shell(script), &cancel, &Reporter::silent(Stage::KernelPull)).unwrap();
    let error = running.wait().unwrap_err();
    let DebianError::Failed { tail, status } = &error else { panic!("{error}") };
    assert_eq!(tail, &["E: Unable to locate package nosuch"]);
    assert_eq!(status.code(), Some(3));
    let wire = WireError::from(&error);
    assert_eq!(wire.kind, ErrorKind::Download);
    assert!(wire.hints[0].contains("debian_mirror"));
}

#[test]
fn lines_become_steps() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let reporter = Reporter::new(Stage::KernelPull, move |progress| sink.lock().unwrap().push(progress.detail));
    let cancel = Cancel::new();
    let script = "echo 'I: using /tmp/x as tempdir' >&2; echo 'I: extracting archives...' >&2; echo noise >&2";
    Running::start(shell(script), &cancel, &reporter).unwrap().wait().unwrap();
    assert_eq!(*seen.lock().unwrap(), ["extracting archives"]);
}

#[test]
fn cancelling_ends_the_whole_process_group() {
    let cancel = Cancel::new();
    let mut running =
        Running::start(shell("sleep 1000 & echo $!; wait"), &cancel, &Reporter::silent(Stage::KernelPull)).unwrap();
    let mut stdout = BufReader::new(running.child.stdout.take().unwrap());
    let mut grandchild = String::new();
    stdout.read_line(&mut grandchild).unwrap();
    cancel.cancel();
    assert!(running.wait().is_err());
    let path = format!("/proc/{}/stat", grandchild.trim());
    let deadline = Instant::now() + Duration::from_secs(10);
    // Gone, or a zombie that init has still to reap.
    while std::fs::read_to_string(&path).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "the grandchild outlived its group");
        std::thread::yield_now();
    }
}

#[test]
fn a_missing_program_is_said_so() {
    let cancel = Cancel::new();
    let command = Command::new("no-such-program-anywhere");
    let error = Running::start(command, &cancel, &Reporter::silent(Stage::KernelPull)).err().unwrap();
    assert!(matches!(error, DebianError::NotInstalled));
}
