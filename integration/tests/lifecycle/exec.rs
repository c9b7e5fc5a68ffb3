//! Commands in a guest, through every program: status, streams, stdin, terminal, users, and a daemon that dies meanwhile.

use integration::TestEnvironment;
use integration::machines::Machine;
use integration::terminal::Terminal;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::process::Stdio;

fn with_vm() -> TestEnvironment {
    let environment = TestEnvironment::with_machine(Machine::Process);
    environment.line("vm create --name v --net none --wait agent").success();
    environment
}

fn sh(script: &str) -> Vec<&str> {
    vec!["vm", "exec", "v", "--", "sh", "-c", script]
}

#[test]
fn status_signal_streams_and_environment() {
    let environment = with_vm();
    assert_eq!(environment.banger(sh("exit 7")).failure(7), "");
    assert_eq!(environment.banger(sh("kill -9 $$")).failure(137), "");
    let output = environment.banger(sh("echo out; echo err >&2"));
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\n", "err\n"));
    let output = environment.banger(["vm", "exec", "--env", "A=b c", "v", "--", "sh", "-c", "echo \"$A\""]);
    assert_eq!(output.success(), "b c\n");
    let missing = environment.line("vm exec v -- /no/such/program");
    assert!(missing.code != 0 && missing.stderr.contains("/no/such/program"), "{missing:?}");
    environment.finish();
}

#[test]
fn stdin_comes_back_byte_for_byte() {
    let environment = with_vm();
    let sent: Vec<u8> = (0..30_000_000_u32).map(|n| b'a' + u8::try_from(n % 23).unwrap()).collect();
    let output = environment.banger_with_stdin(&["vm", "exec", "v", "--", "cat"], &sent);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stdout.as_bytes() == sent, "{} of {} bytes", output.stdout.len(), sent.len());
    environment.finish();
}

#[test]
fn a_daemon_killed_in_the_middle_does_not_matter() {
    let environment = with_vm();
    let before = environment.vm("v", "vmm_pid");
    let mut child = environment.spawn(
        environment.command("banger").args(sh("echo ready; read line; echo got $line; exit 3")).stdin(Stdio::piped()),
    );
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    kill(Pid::from_raw(environment.daemon_pid()), Signal::SIGKILL).unwrap();
    child.stdin.take().unwrap().write_all(b"word\n").unwrap();
    let output = environment.output(child.wait_with_output().unwrap());
    assert_eq!((output.code, output.stdout.as_str()), (3, "got word\n"), "{output:?}");
    // The next command starts a daemon, which finds the VM as it was.
    assert_eq!(environment.banger(sh("echo again")).success(), "again\n");
    assert_eq!(environment.vm("v", "vmm_pid"), before);
    environment.finish();
}

#[test]
fn a_terminal_is_one() {
    let environment = with_vm();
    let mut terminal = Terminal::new(31, 97);
    let mut child = terminal.start(environment.command("banger").args([
        "vm",
        "exec",
        "-it",
        "v",
        "--",
        "sh",
        "-c",
        "stty size; read x; exit 4",
    ]));
    terminal.expect("31 97");
    terminal.type_text("\r");
    assert_eq!(child.wait().unwrap().code(), Some(4));
    assert!(terminal.echoes());
    environment.finish();
}

#[test]
fn an_interrupt_goes_to_the_command() {
    let environment = with_vm();
    let script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done";
    let mut child = environment.spawn(environment.command("banger").args(sh(script)));
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = environment.output(child.wait_with_output().unwrap());
    assert_eq!((output.code, output.stdout.as_str()), (9, "caught\n"), "{output:?}");
    environment.finish();
}
