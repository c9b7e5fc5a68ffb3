//! Ctrl-C while banger is busy with something else than a request.

use crate::fixtures::{attached, deleted, image};
use integration::fakes::{FakeAgent, FakeDaemon, Step};
use integration::{CommandOutput, TestEnvironment, until};
use messages::error::{ErrorKind, WireError};
use messages::reply::Reply;
use messages::request::RequestBody;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::Child;

/// Interrupts it, and sees it end.
fn interrupted(environment: &TestEnvironment, mut child: Child) -> CommandOutput {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    until("the end of what was interrupted", || child.try_wait().unwrap());
    environment.output(child.wait_with_output().unwrap())
}

#[test]
fn a_log_is_left_while_the_daemon_does_not_answer() {
    let environment = TestEnvironment::new();
    let log = environment.path("console.log");
    std::fs::write(&log, "line\n").unwrap();
    let fake = FakeDaemon::start(&environment.socket(), move |request| match &request.body {
        RequestBody::VmLogs { .. } => vec![Step::Hand(Reply::Log { running: true }, File::open(&log).unwrap().into())],
        RequestBody::ShowVm { .. } => vec![Step::AwaitHangup],
        other => panic!("{other:?}"),
    });
    let child = environment.spawn(environment.command("banger").args(["vm", "logs", "--follow", "web"]));
    until("the question whether it runs", || (fake.requests().len() == 2).then_some(()));
    let output = interrupted(&environment, child);
    assert_eq!((output.code, output.stdout.as_str()), (0, "line\n"), "{output:?}");
}

#[test]
fn a_build_is_left_while_it_packs() {
    let environment = TestEnvironment::new();
    // Some seconds' worth of zeros; what is packed of it until the interrupt is gone with the program.
    File::create(environment.path("large")).unwrap().set_len(4 << 30).unwrap();
    let file = environment.path("Containerfile");
    std::fs::write(&file, "FROM base\nCOPY large /\n").unwrap();
    environment.give_away();
    let fake = FakeDaemon::start(&environment.socket(), |request| match &request.body {
        RequestBody::ShowImage { image: asked } if asked.to_string() == "base" => {
            vec![Step::Reply(Reply::Image(image("base")))]
        }
        RequestBody::ShowImage { .. } => vec![Step::Error(WireError::new(ErrorKind::NotFound, "no such image"))],
        RequestBody::RunVm { .. } => {
            vec![Step::Hand(attached(), FakeAgent::play(|mut agent| drop(agent.hear())).0)]
        }
        RequestBody::DeleteVms { .. } => vec![Step::Reply(deleted())],
        RequestBody::ExecVm { .. } => vec![Step::AwaitHangup],
        other => panic!("{other:?}"),
    });
    let arguments = ["image", "build", "--name", "new", "--file", file.to_str().unwrap()];
    let mut child = environment.spawn(environment.command("banger").args(arguments));
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("step 1 of 1") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended before it packed");
    }
    assert_eq!(interrupted(&environment, child).code, 130);
    let requests = fake.requests();
    assert!(matches!(requests.last().unwrap().body, RequestBody::DeleteVms { .. }), "the VM goes with it");
    let copied = requests.iter().any(|request| matches!(request.body, RequestBody::ExecVm { .. }));
    assert!(!copied, "it was only heard when everything was packed");
}
