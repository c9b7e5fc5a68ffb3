//! The daemon's own life: started by whoever needs it first, once; of one state directory; gone when told.

use integration::TestEnvironment;
use integration::machines::Machine;
use integration::until;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

#[test]
fn many_clients_at_once_start_one_daemon() {
    let environment = TestEnvironment::with_machine(Machine::Scripted);
    let clients: Vec<_> =
        (0..8).map(|_| environment.spawn(environment.command("banger").args(["vm", "list", "--json"]))).collect();
    for client in clients {
        let output = environment.output(client.wait_with_output().unwrap());
        assert_eq!(output.json(), serde_json::json!([]));
    }
    until("the losers of the race have ended", || (environment.processes().len() == 1).then_some(()));
    environment.finish();
}

#[test]
fn started_shown_stopped() {
    let environment = TestEnvironment::with_machine(Machine::Scripted);
    environment.line("daemon start").success();
    let status = environment.line("daemon status --json").json();
    assert_eq!(status["running"], true);
    assert_eq!(status["helper"]["reachable"], false);
    assert!(environment.line("daemon status").success().contains("pid"));
    assert!(environment.line("daemon start").stderr.contains("runs already"));
    assert!(environment.line("daemon logs").success().contains("listening"));
    environment.line("daemon stop").success();
    assert_eq!(environment.line("daemon status").code, 209);
    environment.finish();
}

/// A daemon on its way out closes its socket with clients in the backlog, or hangs up on one that it took.
#[test]
fn a_daemon_that_ends_while_it_is_called_is_replaced() {
    let environment = TestEnvironment::with_machine(Machine::Scripted);
    for taken in [true, false] {
        let listener = UnixListener::bind(environment.socket()).unwrap();
        environment.give_away();
        let client = environment.spawn(environment.command("banger").args(["vm", "list", "--json"]));
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::NONE).unwrap();
        std::fs::remove_file(environment.socket()).unwrap();
        if taken {
            drop(listener.accept().unwrap());
        }
        drop(listener);
        let output = environment.output(client.wait_with_output().unwrap());
        assert_eq!(output.json(), serde_json::json!([]), "taken: {taken}");
        environment.line("daemon stop").success();
    }
    environment.finish();
}

/// While one still writes its last, the next is tried until the lock is free.
#[test]
fn a_start_waits_for_the_one_before_to_end() {
    let environment = TestEnvironment::with_machine(Machine::Scripted);
    environment.line("daemon start").success();
    environment.line("daemon stop").success();
    let lock = std::fs::File::open(environment.path("state/daemon.lock")).unwrap();
    lock.lock().unwrap();
    let client = environment.spawn(environment.command("banger").args(["vm", "list", "--json"]));
    until("a daemon is refused", || environment.line("daemon logs").success().contains("another bangerd").then_some(()));
    drop(lock);
    assert_eq!(environment.output(client.wait_with_output().unwrap()).json(), serde_json::json!([]));
    environment.finish();
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused() {
    let environment = TestEnvironment::with_machine(Machine::Scripted);
    environment.line("daemon start").success();
    let second = environment.command("bangerd").arg("--foreground").output().unwrap();
    let output = environment.output(second);
    assert_eq!(output.code, 202, "{output:?}");
    assert!(output.stderr.contains("another bangerd") && output.stderr.contains("$ROOT/state"), "{output:?}");
    assert_eq!(environment.line("daemon status").code, 0, "the first one is unharmed");
    environment.finish();
}

#[test]
fn two_instances_know_nothing_of_each_other() {
    let one = TestEnvironment::with_machine(Machine::Scripted);
    let other = TestEnvironment::with_machine(Machine::Scripted);
    one.line("vm create --name same --net none").success();
    other.line("vm create --name same --net none").success();
    one.line("vm delete --force same").success();
    assert_eq!(other.vms(), ["same"]);
    one.finish();
    other.finish();
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let environment = TestEnvironment::with_machine(Machine::Scripted);
    environment.config("colour = true\n");
    let stderr = environment.line("vm list").failure(2);
    assert!(stderr.contains("bangerd ended instead of listening") && stderr.contains("colour"), "{stderr}");
    assert_eq!(environment.processes(), Vec::<i32>::new());
}

#[test]
fn an_unwritable_state_directory_is_said() {
    let environment = TestEnvironment::with_machine(Machine::Scripted);
    let output =
        environment.command("banger").args(["vm", "list"]).env("BANGER_STATE_DIR", "/proc/x").output().unwrap();
    let stderr = environment.output(output).failure(205);
    assert!(stderr.starts_with("error: the state directory `/proc/x` cannot be written"), "{stderr}");
    assert_eq!(environment.processes(), Vec::<i32>::new());
}
