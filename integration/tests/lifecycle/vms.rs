//! One VM's life as a user sees it.

use integration::TestEnvironment;
use integration::machines::Machine;
use integration::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::io::Read;

#[test]
fn created_stopped_started_killed_deleted() {
    let environment = TestEnvironment::with_machine(Machine::Process);
    assert_eq!(environment.line("vm create --name web --net none --label a=b --wait agent").success(), "web\n");
    assert_eq!(environment.vm("web", "state"), "running");
    assert_eq!(environment.vm("web", "labels"), json!({ "a": "b" }));
    assert!(environment.line("vm show web").success().contains("running"));
    assert!(environment.line("vm list").success().contains("web"));

    environment.line("exec-is-no-command").failure(2);
    environment.banger(["vm", "exec", "web", "--", "sh", "-c", "echo kept > kept"]).success();
    environment.line("vm stop web").success();
    assert_eq!(environment.vm("web", "state"), "stopped");
    assert!(environment.line("vm stop web").stderr.contains("web was stopped"));
    environment.line("vm exec web -- true").failure(203);

    environment.line("vm start web --wait agent").success();
    assert_eq!(environment.line("vm exec web -- cat kept").success(), "kept\n");
    environment.line("vm restart web --wait agent").success();
    assert_eq!(environment.line("vm exec web -- cat kept").success(), "kept\n");

    environment.line("vm rename web site").success();
    environment.line("vm show web").failure(201);
    environment.line("vm delete site").failure(203);
    environment.line("vm kill site").success();
    assert_eq!(environment.vm("site", "state"), "stopped");
    environment.line("vm delete site").success();
    assert_eq!(environment.vms(), Vec::<String>::new());
    environment.finish();
}

#[test]
fn several_at_once() {
    let environment = TestEnvironment::with_machine(Machine::Scripted);
    for name in ["a", "b", "c"] {
        environment.line(&format!("vm create --net none --name {name}")).success();
    }
    let output = environment.line("vm stop a nope b");
    assert_eq!(output.code, 201, "{output:?}");
    assert!(output.stderr.contains("a stopped") && output.stderr.contains("b stopped"), "{output:?}");
    environment.line("vm delete --force a b c").success();
    environment.finish();
}

#[test]
fn run_and_remove_leaves_nothing() {
    let environment = TestEnvironment::with_machine(Machine::Process);
    let output = environment.banger("vm run --rm --net none --wait agent --".split(' ').chain([
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]));
    assert_eq!((output.code, output.stdout.as_str()), (7, "out\n"), "{output:?}");
    assert!(output.stderr.ends_with("err\n"), "{output:?}");
    assert_eq!(environment.vms(), Vec::<String>::new());
    environment.finish();
}

#[test]
fn an_ephemeral_vm_does_not_outlive_its_client() {
    let environment = TestEnvironment::with_machine(Machine::Process);
    let mut child = environment.spawn(
        environment
            .command("banger")
            .args("vm run --rm --net none --wait agent -- sh -c".split(' ').chain(["echo ready; exec sleep 600"])),
    );
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    assert_eq!(environment.vms().len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    until("the VM is gone", || environment.vms().is_empty().then_some(()));
    environment.finish();
}

#[test]
fn a_detached_command_runs_on() {
    let environment = TestEnvironment::with_machine(Machine::Process);
    let output = environment.banger(
        "vm run --detach --name d --net none --wait agent -- sh -c".split(' ').chain(["echo x > made; exec sleep 600"]),
    );
    assert_eq!(output.success(), "d\n");
    until("its file", || (environment.line("vm exec d -- cat made").code == 0).then_some(()));
    environment.finish();
}

#[test]
fn logs_are_followed_until_the_vm_stops() {
    let environment = TestEnvironment::with_machine(Machine::Process);
    environment.line("vm create --name l --net none --wait agent").success();
    environment.line("vm logs l").success();
    let all = environment.line("vm logs --vmm l").success();
    assert_eq!(environment.line("vm logs --vmm --since 1h l").success(), all, "it began less than an hour ago");
    assert_eq!(environment.line("vm logs --since 1h l").code, 0);
    let follower = environment.spawn(environment.command("banger").args(["vm", "logs", "-f", "l"]));
    environment.line("vm kill l").success();
    let output = environment.output(follower.wait_with_output().unwrap());
    assert_eq!(output.code, 0, "{output:?}");
    environment.finish();
}

#[test]
fn a_vmm_that_dies_is_a_failed_vm_that_starts_again() {
    let environment = TestEnvironment::with_machine(Machine::Process);
    environment.line("vm create --name v --net none --wait agent").success();
    let pid = i32::try_from(environment.vm("v", "vmm_pid").as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    until("the daemon notices", || (environment.vm("v", "state") != "running").then_some(()));
    environment.line("vm start v --wait agent").success();
    assert_eq!(environment.line("vm exec v -- echo again").success(), "again\n");
    environment.finish();
}

#[test]
fn stats_and_ports_come_from_the_guest() {
    let environment = TestEnvironment::with_machine(Machine::Process);
    environment.line("vm create --name s --net none --wait agent").success();
    let stats = environment.line("vm stats s --json").json();
    assert!(stats["memory_total_kib"].as_u64().unwrap() > 0, "{stats}");
    assert!(environment.line("vm stats s").success().contains("memory"));
    assert!(environment.line("vm ports s --json").json().is_array());
    environment.finish();
}
