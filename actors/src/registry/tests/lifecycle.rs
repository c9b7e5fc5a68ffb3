//! What happens to VMs while one daemon lives.

use super::*;
use crate::registry::SetClocks;
use crate::vm::BeginOperation;
use crate::vm::fake::Guest;
use messages::error::ErrorKind;
use messages::guest::{AgentFrame, StopKind};
use messages::ids::OperationId;
use messages::vm::{Lifetime, RestartPolicy};

fn daemon<F: Future<Output = ()>>(test: impl FnOnce(Daemon, World) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    life(async {
        let daemon = Daemon::start(dir.path(), &world).await;
        test(daemon, world.clone()).await;
    });
}

#[test]
fn a_vm_is_made_stopped_started_and_deleted() {
    daemon(|daemon, world| async move {
        let mut vm = daemon.running(1, spec("web")).await;
        let view = vm.view();
        assert_eq!((view.state, view.readiness, view.vmm_pid), (VmState::Running, Some(Readiness::System), Some(4242)));
        assert!(view.address.is_some());
        daemon.assert_no_leaks().await;

        let accepted = vm.command(Command::Stop(None)).await.unwrap();
        let down = until_down(&mut vm.watch, accepted.attempt, PATIENCE).await.unwrap();
        assert_eq!((down.view.state, down.how), (VmState::Stopped, Some("halted")));
        assert_eq!(world.inside().taps.len(), 0);
        assert!(!vm.command(Command::Stop(None)).await.unwrap().changed, "a stop of a stopped VM is fine");

        let accepted = vm.command(Command::Start).await.unwrap();
        assert_eq!(accepted.attempt, 2);
        until_ready(&mut vm.watch, 2, Readiness::System, PATIENCE).await.unwrap();
        assert_eq!(vm.command(Command::Delete { force: false }).await.unwrap_err().kind, ErrorKind::WrongState);
        vm.command(Command::Delete { force: true }).await.unwrap();
        until_gone(&mut vm.watch, PATIENCE).await.unwrap();
        assert!(daemon.list().await.is_empty());
        daemon.assert_no_leaks().await;
        assert_eq!(daemon.get("web").await.unwrap_err().kind, ErrorKind::NotFound);
        daemon.running(2, spec("web")).await;
    });
}

#[test]
fn a_repeated_create_finds_the_first() {
    daemon(|daemon, world| async move {
        let first = daemon.running(1, VmSpec::default()).await;
        let again = daemon.create(1, VmSpec::default(), true).await.unwrap();
        assert_eq!((again.id, again.existed), (first.id, true));
        assert_eq!(world.outside().launches.len(), 1);
        let mut vm = first;
        vm.command(Command::Delete { force: true }).await.unwrap();
        until_gone(&mut vm.watch, PATIENCE).await.unwrap();
        let mut late = daemon.create(1, VmSpec::default(), true).await.unwrap();
        let error = until_made(&mut late.watch, 1, PATIENCE).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict, "{error}");
        assert!(daemon.settled().await.is_empty());
    });
}

#[test]
fn a_create_that_fails_leaves_nothing_wherever_it_fails() {
    for step in ["artifacts", "lease_tap", "make_dir", "ensure_disk", "launch"] {
        daemon(|daemon, world| async move {
            world.script().fail = Some(step);
            let mut vm = daemon.create(1, spec("web"), true).await.unwrap();
            let error = until_made(&mut vm.watch, 1, PATIENCE).await.unwrap_err();
            assert!(error.to_string().contains(step), "{step}: {error}");
            assert!(daemon.settled().await.is_empty(), "{step}");
            daemon.assert_no_leaks().await;
            assert!(world.inside().images.is_empty(), "{step}");
            world.script().fail = None;
            daemon.running(2, spec("web")).await;
        });
    }
}

#[test]
fn a_start_that_fails_keeps_the_vm_and_says_why() {
    daemon(|daemon, world| async move {
        let mut vm = daemon.create(1, spec("web"), false).await.unwrap();
        until_made(&mut vm.watch, 1, PATIENCE).await.unwrap();
        assert_eq!(vm.view().state, VmState::Stopped);
        assert_eq!(world.outside().launches.len(), 0);
        world.script().fail = Some("launch");
        let accepted = vm.command(Command::Start).await.unwrap();
        let error = until_ready(&mut vm.watch, accepted.attempt, Readiness::Agent, PATIENCE).await.unwrap_err();
        assert!(error.to_string().contains("launch was told to fail"), "{error}");
        assert_eq!(vm.view().state, VmState::Failed);
        assert!(vm.view().last_error.as_deref().unwrap().contains("launch"));
        daemon.assert_no_leaks().await;
    });
}

#[test]
fn a_reboot_typed_in_the_guest_starts_the_vm_again() {
    daemon(|daemon, world| async move {
        let mut vm = daemon.running(1, spec("web")).await;
        world.say(vm.id, AgentFrame::Stopping { kind: StopKind::Reboot }).await;
        // The frame and the end come by different ways; a guest takes far longer between the two.
        let stopping = vm.watch.wait_for(|now| now.view.state == VmState::Stopping);
        drop(tokio::time::timeout(PATIENCE, stopping).await.unwrap().unwrap());
        world.end(vm.id, true);
        until_ready(&mut vm.watch, 2, Readiness::System, PATIENCE).await.unwrap();
        let specs: Vec<_> = world.outside().specs.iter().map(|(_, nonce)| *nonce).collect();
        assert!(specs.len() == 2 && specs[0] != specs[1], "each boot has a nonce of its own");
        assert_eq!(world.outside().disks.len(), 1);
    });
}

/// On a busy host the end of the VMM is known before the frame that says what it means.
#[test]
fn a_reboot_whose_end_overtakes_its_last_words_is_still_a_reboot() {
    daemon(|daemon, world| async move {
        let mut vm = daemon.running(1, spec("web")).await;
        world.script().last_words = Some(AgentFrame::Stopping { kind: StopKind::Reboot });
        world.end(vm.id, true);
        until_ready(&mut vm.watch, 2, Readiness::System, PATIENCE).await.unwrap();
        world.script().last_words = Some(AgentFrame::Stopping { kind: StopKind::Halt });
        world.end(vm.id, false);
        let down = until_down(&mut vm.watch, 2, PATIENCE).await.unwrap();
        assert_eq!(
            (down.view.state, down.view.last_error.clone()),
            (VmState::Stopped, None),
            "it said that it would halt"
        );
        daemon.assert_no_leaks().await;
    });
}

#[test]
fn the_logs_of_what_runs_are_looked_at_and_no_others() {
    daemon(|daemon, world| async move {
        let running = daemon.running(1, spec("web")).await;
        daemon.create(2, spec("db"), false).await.unwrap();
        daemon.settled().await;
        let noting = async {
            while !world.outside().noted.contains(&running.id) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, noting).await.expect("its logs are looked at");
        assert_eq!(world.outside().noted.len(), 1);
    });
}

#[test]
fn words_without_an_end_do_not_keep_a_dead_vm() {
    daemon(|daemon, world| async move {
        let mut vm = daemon.running(1, spec("web")).await;
        world.script().endless_words = true;
        world.end(vm.id, true);
        let down = until_down(&mut vm.watch, 1, PATIENCE).await.unwrap();
        assert_eq!(down.view.state, VmState::Stopped);
        daemon.assert_no_leaks().await;
    });
}

/// A guest asks for its boot spec once. Where it is faster than the report of its launch, it is answered behind that.
#[test]
fn a_guest_that_asks_before_its_launch_is_reported_is_answered_then() {
    daemon(|daemon, world| async move {
        world.script().freeze_at = Some("launched");
        let mut vm = daemon.create(1, spec("web"), true).await.unwrap();
        world.until_frozen().await;
        assert_eq!(world.outside().specs, [], "there is no link to answer on");
        world.thaw();
        until_ready(&mut vm.watch, 1, Readiness::System, PATIENCE).await.unwrap();
        assert_eq!(world.outside().specs.len(), 1, "it asked once and is told once");
    });
}

#[test]
fn a_vmm_that_dies_is_a_failure_and_a_clean_end_is_a_stop() {
    daemon(|daemon, world| async move {
        for (request, clean, state) in [(1, false, VmState::Failed), (2, true, VmState::Stopped)] {
            let mut vm = daemon.running(request, VmSpec::default()).await;
            world.end(vm.id, clean);
            let down = until_down(&mut vm.watch, 1, PATIENCE).await.unwrap();
            assert_eq!(down.view.state, state);
            assert_eq!(down.view.last_error.is_some(), !clean);
        }
        daemon.assert_no_leaks().await;
    });
}

#[test]
fn restart_always_starts_again_what_died_but_not_what_was_stopped() {
    daemon(|daemon, world| async move {
        let mut vm = daemon.running(1, VmSpec { restart: RestartPolicy::Always, ..spec("web") }).await;
        world.end(vm.id, false);
        until_ready(&mut vm.watch, 2, Readiness::System, PATIENCE).await.unwrap();
        vm.command(Command::Stop(None)).await.unwrap();
        let down = until_down(&mut vm.watch, 2, PATIENCE).await.unwrap();
        assert_eq!((down.view.state, down.attempt), (VmState::Stopped, 2));
    });
}

#[test]
fn an_ephemeral_vm_goes_with_its_command_and_with_nothing_else() {
    daemon(|daemon, world| async move {
        let mut vm = daemon.running(1, VmSpec { lifetime: Lifetime::Ephemeral, ..spec("once") }).await;
        let (main, other) = (OperationId([1; 8]), OperationId([2; 8]));
        vm.vm.send(BeginOperation { operation: main, main: true }).await.unwrap().unwrap();
        vm.vm.send(BeginOperation { operation: other, main: false }).await.unwrap().unwrap();
        let twice = vm.vm.send(BeginOperation { operation: other, main: true }).await.unwrap();
        assert_eq!(twice.unwrap_err().kind, ErrorKind::Conflict, "a repeated request runs no second command");
        world.operation_ended(vm.id, other).await;
        assert!(!vm.command(Command::Abandon(None)).await.unwrap().changed, "it was handed over");
        assert!(!vm.command(Command::Abandon(Some(other))).await.unwrap().changed, "it is not this one's");
        world.operation_ended(vm.id, main).await;
        until_gone(&mut vm.watch, PATIENCE).await.unwrap();
        daemon.assert_no_leaks().await;
        // The delete may not be written yet: who comes after us has to hear of it.
        assert_eq!(world.outside().acknowledged, [other]);
    });
}

#[test]
fn an_ephemeral_vm_is_deleted_when_its_client_leaves_before_the_handover() {
    daemon(|daemon, _| async move {
        let mut vm = daemon.running(1, VmSpec { lifetime: Lifetime::Ephemeral, ..spec("once") }).await;
        vm.command(Command::Abandon(None)).await.unwrap();
        until_gone(&mut vm.watch, PATIENCE).await.unwrap();
        let mut refused = daemon.running(3, VmSpec { lifetime: Lifetime::Ephemeral, ..spec("refused") }).await;
        let operation = OperationId([1; 8]);
        refused.vm.send(BeginOperation { operation, main: true }).await.unwrap().unwrap();
        refused.command(Command::Abandon(Some(operation))).await.unwrap();
        until_gone(&mut refused.watch, PATIENCE).await.unwrap();
        let mut kept = daemon.running(2, spec("kept")).await;
        assert!(!kept.command(Command::Abandon(None)).await.unwrap().changed);
        until_ready(&mut kept.watch, 1, Readiness::System, PATIENCE).await.unwrap();
    });
}

#[test]
fn guests_that_are_up_are_told_the_time() {
    daemon(|daemon, world| async move {
        let up = daemon.running(1, spec("up")).await;
        let mut down = daemon.running(2, spec("down")).await;
        down.command(Command::Kill).await.unwrap();
        until_down(&mut down.watch, 1, PATIENCE).await.unwrap();
        daemon.registry.send(SetClocks).await.unwrap().unwrap();
        let told = async {
            while !world.outside().clocks.contains(&up.id) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, told).await.expect("the clock is set");
        assert_eq!(world.outside().clocks.len(), 1);
    });
}

#[test]
fn an_ephemeral_vm_goes_also_where_it_is_told_to_end() {
    for command in [Command::Kill, Command::Stop(None)] {
        daemon(|daemon, _| async move {
            let mut vm = daemon.running(1, VmSpec { lifetime: Lifetime::Ephemeral, ..spec("once") }).await;
            let operation = OperationId([1; 8]);
            vm.vm.send(BeginOperation { operation, main: true }).await.unwrap().unwrap();
            vm.command(command).await.unwrap();
            let down = until_down(&mut vm.watch, 1, PATIENCE).await.unwrap();
            assert!(down.gone, "{down:?}");
            daemon.assert_no_leaks().await;
        });
    }
}

#[test]
fn an_ephemeral_vm_that_cannot_boot_is_kept_for_its_logs() {
    daemon(|daemon, world| async move {
        world.script().guest = Guest::BootFails;
        let spec = VmSpec { lifetime: Lifetime::Ephemeral, ..spec("once") };
        let mut vm = daemon.create(1, spec, true).await.unwrap();
        let error = until_ready(&mut vm.watch, 1, Readiness::System, PATIENCE).await.unwrap_err();
        assert!(error.to_string().contains("no such drive"), "{error}");
        let view = vm.view();
        assert_eq!((view.state, view.lifetime), (VmState::Failed, Lifetime::Kept));
        assert!(world.outside().dirs.contains(&vm.id), "its logs are there");
        daemon.assert_no_leaks().await;
    });
}

#[test]
fn waiters_have_deadlines_of_their_own() {
    daemon(|daemon, world| async move {
        world.script().guest = Guest::Silent;
        let mut vm = daemon.create(1, spec("web"), true).await.unwrap();
        until_made(&mut vm.watch, 1, PATIENCE).await.unwrap();
        let short = Duration::from_millis(20);
        let error = until_ready(&mut vm.watch, 1, Readiness::Agent, short).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout);
        assert_eq!(vm.view().state, VmState::Starting, "a waiter that gives up changes nothing");
        vm.command(Command::Stop(None)).await.unwrap();
        assert_eq!(until_down(&mut vm.watch, 1, PATIENCE).await.unwrap().how, Some("killed"));
    });
}

#[test]
fn a_deaf_guest_is_killed_and_delays_nobody() {
    daemon(|daemon, world| async move {
        world.script().guest = Guest::Deaf;
        let mut deaf = daemon.running(1, spec("deaf")).await;
        deaf.command(Command::Stop(Some(Duration::from_secs(3600)))).await.unwrap();
        let other = daemon.running(2, spec("other")).await;
        assert_eq!(other.view().state, VmState::Running);
        assert_eq!(deaf.view().state, VmState::Stopping);
        deaf.command(Command::Kill).await.unwrap();
        assert_eq!(until_down(&mut deaf.watch, 1, PATIENCE).await.unwrap().how, Some("killed"));
    });
}

#[test]
fn memory_is_admitted_once_and_comes_free() {
    daemon(|daemon, _| async move {
        let large = |name: &str| VmSpec { memory_mib: Some(5000), ..spec(name) };
        let mut first = daemon.running(1, large("first")).await;
        let error = daemon.create(2, large("second"), true).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Resources, "{error}");
        let mut second = daemon.create(3, large("second"), false).await.unwrap();
        until_made(&mut second.watch, 1, PATIENCE).await.unwrap();
        let start = || Get { reference: "second".parse().unwrap(), to_start: true };
        assert_eq!(daemon.registry.send(start()).await.unwrap().unwrap_err().kind, ErrorKind::Resources);
        first.command(Command::Kill).await.unwrap();
        until_down(&mut first.watch, 1, PATIENCE).await.unwrap();
        daemon.registry.send(start()).await.unwrap().unwrap();
        let third = daemon.create(4, large("third"), true).await.unwrap_err();
        assert_eq!(third.kind, ErrorKind::Resources, "a start that was let in counts before it is seen: {third}");
    });
}

#[test]
fn names_are_unique_and_can_be_changed() {
    daemon(|daemon, _| async move {
        daemon.running(1, spec("web")).await;
        daemon.running(2, spec("api")).await;
        assert_eq!(daemon.create(3, spec("web"), true).await.unwrap_err().kind, ErrorKind::Conflict);
        let rename = |from: &str, to: &str| RenameVm { reference: from.parse().unwrap(), name: to.parse().unwrap() };
        assert_eq!(daemon.registry.send(rename("web", "api")).await.unwrap().unwrap_err().kind, ErrorKind::Conflict);
        daemon.registry.send(rename("web", "front")).await.unwrap().unwrap();
        assert_eq!(daemon.get("front").await.unwrap().view().name.as_str(), "front");
        assert_eq!(daemon.get("web").await.unwrap_err().kind, ErrorKind::NotFound);
        let stored = daemon.store.all().await.unwrap();
        assert!(stored.iter().any(|record| record.name.as_str() == "front"));
    });
}

#[test]
fn a_rename_that_cannot_be_written_changes_nothing() {
    daemon(|daemon, _| async move {
        let vm = daemon.running(1, spec("web")).await;
        daemon.until_records(|record| record.was_ready).await;
        // A name that only the store knows to be taken.
        let mut other = daemon.store.all().await.unwrap().remove(0);
        (other.id, other.request, other.name) = (VmId([7; 8]), None, "taken".parse().unwrap());
        daemon.store.create(other.clone()).await.unwrap();
        let rename = RenameVm { reference: "web".parse().unwrap(), name: "taken".parse().unwrap() };
        assert_eq!(daemon.registry.send(rename).await.unwrap().unwrap_err().kind, ErrorKind::Conflict);
        assert_eq!(vm.view().name.as_str(), "web");
        vm.command(Command::Stop(None)).await.unwrap();
        let stopped = |record: &VmRecord| record.id == other.id || record.phase == Phase::Stopped;
        daemon.until_records(stopped).await;
    });
}

#[test]
fn a_start_during_a_create_without_one_starts_it_when_it_is_made() {
    for step in ["begin", "leased", "made_dir"] {
        daemon(|daemon, world| async move {
            world.script().freeze_at = Some(step);
            let mut vm = daemon.create(1, spec("web"), false).await.unwrap();
            world.until_frozen().await;
            let attempt = vm.command(Command::Start).await.unwrap().attempt;
            world.thaw();
            let view = until_ready(&mut vm.watch, attempt, Readiness::System, PATIENCE).await.unwrap();
            assert!(view.address.is_some(), "it has a tap");
            assert!(world.outside().disks.contains(&vm.id), "and a disk");
            daemon.assert_no_leaks().await;
        });
    }
}

#[test]
fn a_stop_takes_back_a_start_during_a_create_without_one() {
    daemon(|daemon, world| async move {
        world.script().freeze_at = Some("leased");
        let vm = daemon.create(1, spec("web"), false).await.unwrap();
        world.until_frozen().await;
        vm.command(Command::Start).await.unwrap();
        vm.command(Command::Stop(None)).await.unwrap();
        world.thaw();
        let list = daemon.settled().await;
        assert_eq!(list[0].state, VmState::Stopped);
        assert!(world.outside().launches.is_empty());
    });
}

#[test]
fn a_create_that_is_stopped_and_fails_leaves_nothing() {
    daemon(|daemon, world| async move {
        world.script().freeze_at = Some("begin");
        let mut vm = daemon.create(1, spec("web"), true).await.unwrap();
        world.until_frozen().await;
        vm.command(Command::Stop(None)).await.unwrap();
        world.script().fail = Some("lease_tap");
        world.thaw();
        until_gone(&mut vm.watch, PATIENCE).await.unwrap();
        let error = vm.watch.borrow().error.clone().unwrap();
        assert!(error.to_string().contains("lease_tap"), "{error}");
        world.script().fail = None;
        daemon.assert_no_leaks().await;
        daemon.running(2, spec("web")).await;
    });
}

#[test]
fn a_guest_that_claims_to_be_another_vm_is_given_its_own_spec() {
    daemon(|daemon, world| async move {
        let vm = daemon.running(1, spec("web")).await;
        let identity = messages::guest::RunningIdentity {
            vm: VmId([9; 8]),
            nonce: messages::ids::BootNonce([9; 16]),
            readiness: Some(Readiness::Ssh),
            warning: Some("\x1b[31mred".into()),
            operations: vec![OperationId([1; 8]); 3],
        };
        world.say(vm.id, AgentFrame::Identify { running: Some(identity), uptime_us: 0, restarts: 0 }).await;
        world
            .say(vm.id, AgentFrame::Ready { level: Readiness::Ssh, warning: Some("\x1b[31mred".into()), uptime_us: 0 })
            .await;
        let mut watch = vm.watch.clone();
        let warned =
            tokio::time::timeout(PATIENCE, watch.wait_for(|p| p.view.warning.is_some())).await.unwrap().unwrap();
        assert_eq!(warned.view.warning.as_deref(), Some("[31mred"), "no control characters");
        assert_eq!(warned.view.readiness, Some(Readiness::System), "an agent cannot claim ssh");
        assert_eq!(warned.view.operations, 0);
        let specs = world.outside().specs.clone();
        assert!(specs.len() >= 2 && specs.iter().all(|(id, _)| *id == vm.id));
    });
}
