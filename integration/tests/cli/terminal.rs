//! What happens on a terminal only: raw mode and back, its size, keys that reach the guest unchanged.

use crate::fixtures::{attached, daemon, deleted};
use crate::requests::counting;
use integration::fakes::agent::Heard;
use integration::fakes::{FakeAgent, FakeDaemon, Step};
use integration::terminal::Terminal;
use integration::{TestEnvironment, until};
use messages::guest::{ExecCommand, OutputFrame};
use messages::request::RequestBody;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::{Arc, Barrier};

#[test]
fn a_shell_has_the_terminal_raw_and_gives_it_back() {
    let environment = TestEnvironment::new();
    let fake = daemon(&environment, |mut agent| {
        agent.started();
        agent.say(&OutputFrame::Stdout(b"guest$ "));
        let mut typed = Vec::new();
        while !typed.ends_with(b"\x04") {
            if let Heard::Stdin(bytes) = agent.hear() {
                typed.extend(bytes);
            }
        }
        agent.say(&OutputFrame::Stdout(format!("got {typed:?}\r\n").as_bytes()));
        agent.exit(5);
    });
    let mut terminal = Terminal::new(33, 111);
    let mut child = terminal.start(environment.command("banger").args(["vm", "run"]).env("TERM", "vt220"));
    terminal.expect("guest$ ");
    assert!(!terminal.echoes(), "the guest's terminal echoes, not ours");
    // Ctrl-C and Ctrl-D are the guest's.
    terminal.type_text("x\x03\x04");
    terminal.expect("got [120, 3, 4]");
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert!(terminal.echoes(), "the terminal is as it was");
    terminal.expect("VM brave-otter keeps running");

    let requests = fake.requests();
    let RequestBody::RunVm { exec, .. } = &requests[0].body else { panic!("{requests:?}") };
    assert_eq!(exec.command, ExecCommand::LoginShell);
    let size = exec.terminal.unwrap();
    assert_eq!((size.rows, size.columns), (33, 111));
    assert!(exec.env.contains(&("TERM".to_owned(), "vt220".to_owned())));
}

#[test]
fn what_is_typed_after_the_end_of_a_shell_is_for_the_next_program() {
    let environment = TestEnvironment::new();
    let typed = Arc::new(Barrier::new(2));
    let waits = Arc::clone(&typed);
    let fake = FakeDaemon::start(&environment.socket(), move |request| match &request.body {
        RequestBody::RunVm { .. } => vec![Step::Hand(
            attached(),
            FakeAgent::play(|mut agent| {
                agent.started();
                agent.exit(0);
            })
            .0,
        )],
        // Removing a VM takes its time.
        RequestBody::DeleteVms { .. } => {
            waits.wait();
            vec![Step::Reply(deleted())]
        }
        other => panic!("{other:?}"),
    });
    let mut terminal = Terminal::new(24, 80);
    let mut child = terminal.start(environment.command("banger").args(["vm", "run", "--rm"]));
    until("the VM is to be removed", || (fake.requests().len() == 2).then_some(()));
    terminal.type_text("next\n");
    // Its echo: the terminal has it, and whoever reads from it would have it by now.
    terminal.expect("next");
    typed.wait();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(terminal.unread(), "next\n");
}

#[test]
fn the_terminal_comes_back_after_a_lost_guest() {
    let environment = TestEnvironment::new();
    let _daemon = daemon(&environment, |mut agent| {
        agent.started();
        agent.say(&OutputFrame::Stdout(b"guest$ "));
        until("a key", || matches!(agent.hear(), Heard::Stdin(_)).then_some(()));
    });
    let mut terminal = Terminal::new(24, 80);
    let mut child = terminal.start(environment.command("banger").args(["vm", "exec", "-it", "x", "--", "sh"]));
    terminal.expect("guest$ ");
    assert!(!terminal.echoes());
    terminal.type_text("x");
    assert_eq!(child.wait().unwrap().code(), Some(211));
    assert!(terminal.echoes());
}

#[test]
fn without_a_command_a_terminal_feeds_the_guest_though_stdout_is_none() {
    let environment = TestEnvironment::new();
    let fake = daemon(&environment, |mut agent| {
        agent.started();
        agent.say(&OutputFrame::Stderr(b"ready"));
        let mut typed = Vec::new();
        agent.read_stdin(|_, bytes| typed.extend_from_slice(bytes));
        agent.say(&OutputFrame::Stdout(&typed));
        agent.exit(0);
    });
    let mut terminal = Terminal::new(24, 80);
    let mut command = environment.command("banger");
    let child = environment.spawn(command.args(["vm", "run"]).stdin(terminal.stream()).stderr(terminal.stream()));
    terminal.expect("ready");
    assert!(terminal.echoes(), "lines are edited here");
    terminal.type_text("uname -a\n\x04");
    assert_eq!(environment.output(child.wait_with_output().unwrap()).success(), "uname -a\n");
    let requests = fake.requests();
    let RequestBody::RunVm { exec, .. } = &requests[0].body else { panic!("{requests:?}") };
    assert!(exec.stdin && exec.terminal.is_none());
    assert_eq!(exec.command, ExecCommand::Image { entrypoint: None, command: vec![] });
}

#[test]
fn a_new_size_is_told_to_the_guest() {
    let environment = TestEnvironment::new();
    let _daemon = daemon(&environment, |mut agent| {
        agent.started();
        agent.say(&OutputFrame::Stdout(b"guest$ "));
        let size = loop {
            if let Heard::Resize { rows, columns } = agent.hear() {
                break (rows, columns);
            }
        };
        agent.say(&OutputFrame::Stdout(format!("{size:?}").as_bytes()));
        agent.exit(0);
    });
    let mut terminal = Terminal::new(24, 80);
    let mut child = terminal.start(environment.command("banger").args(["vm", "exec", "-t", "x", "--", "sh"]));
    terminal.expect("guest$ ");
    terminal.resize(50, 132);
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGWINCH).unwrap();
    terminal.expect("(50, 132)");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_command_has_no_terminal_unless_it_asks() {
    let environment = TestEnvironment::new();
    let fake = daemon(&environment, |mut agent| {
        agent.started();
        agent.exit(0);
    });
    let terminal = Terminal::new(24, 80);
    let mut child = terminal.start(environment.command("banger").args(["vm", "exec", "x", "--", "ls"]));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let requests = fake.requests();
    let RequestBody::ExecVm { exec, .. } = &requests[0].body else { panic!("{requests:?}") };
    assert!(exec.terminal.is_none() && !exec.stdin, "a terminal's stdin is passed on with -i only");
}

#[test]
fn watched_stats_stay_in_their_place_until_interrupted() {
    let environment = TestEnvironment::new();
    let _daemon = counting(&environment, 1000);
    let mut terminal = Terminal::new(24, 80);
    let mut child = terminal.start(environment.command("banger").args(["vm", "stats", "--watch", "web"]));
    terminal.expect("50 % busy since its boot");
    let seen = terminal.expect("12 KiB (4 KiB/s)");
    let (_, second) = seen.split_once("processes:").unwrap();
    assert!(second.contains("\u{1b}["), "the first is cleared: {second:?}");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "leaving is how it ends");
}
