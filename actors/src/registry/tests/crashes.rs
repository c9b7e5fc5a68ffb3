//! The daemon dies at every named step of create, start, stop and delete; the next one finds and leaves everything in order.

use super::*;
use crate::store::Phase;
use crate::vm::BeginOperation;
use messages::guest::StopKind;
use messages::ids::OperationId;
use messages::vm::{Lifetime, RestartPolicy};

/// Every step that a create, a stop, a start and a delete pass.
const STEPS: [&str; 13] = [
    "begin",
    "leased",
    "intended",
    "made_dir",
    "prepared",
    "listening",
    "launched",
    "written",
    "released",
    "let_go",
    "removed_files",
    "buried",
    "never",
];

#[derive(Clone, Copy, Debug)]
enum Doing {
    Create,
    CreateStopped,
    Start,
    Stop,
    Kill,
    Delete,
}

async fn act(daemon: &Daemon, doing: Doing, spec: &VmSpec) {
    match doing {
        Doing::Create | Doing::CreateStopped => {
            drop(daemon.create(9, spec.clone(), matches!(doing, Doing::Create)).await.unwrap());
        }
        Doing::Start => drop(daemon.get("web").await.unwrap().command(Command::Start).await),
        Doing::Stop => drop(daemon.get("web").await.unwrap().command(Command::Stop(None)).await),
        Doing::Kill => drop(daemon.get("web").await.unwrap().command(Command::Kill).await),
        Doing::Delete => drop(daemon.get("web").await.unwrap().command(Command::Delete { force: true }).await),
    }
}

/// One life up to the step, another one after it.
fn crash(doing: Doing, step: &'static str, spec: &VmSpec) -> (World, Vec<Arc<VmView>>) {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    life(async {
        let daemon = Daemon::start(dir.path(), &world).await;
        match doing {
            Doing::Create | Doing::CreateStopped => {}
            Doing::Start => {
                let mut vm = daemon.create(1, spec.clone(), false).await.unwrap();
                until_made(&mut vm.watch, 1, PATIENCE).await.unwrap();
            }
            Doing::Stop | Doing::Kill | Doing::Delete => drop(daemon.running(1, spec.clone()).await),
        }
        // Let the writes of the set-up pass, so that the step is one of the action's own.
        let written = match doing {
            Doing::Create | Doing::CreateStopped => None,
            Doing::Start => Some(((Phase::Stopped, false), 1)),
            Doing::Stop | Doing::Kill | Doing::Delete => Some(((Phase::Running, true), 2)),
        };
        if let Some((written, times)) = written {
            daemon.until_written(written).await;
            // A record is there before the step behind its write has been passed.
            daemon.until_passed("written", times).await;
        }
        world.script().freeze_at = Some(step);
        act(&daemon, doing, spec).await;
        // Steps that this action does not pass: it ends, and the daemon dies at rest.
        let frozen = tokio::time::timeout(Duration::from_millis(300), world.until_frozen()).await;
        if frozen.is_err() {
            daemon.settled().await;
        }
    });
    let world = world.after_a_crash();
    let list = life(async {
        // What the tree does before it starts the registry: directories that no record knows are removed.
        let known: Vec<VmId> =
            Store::open(&dir.path().join("banger.db")).unwrap().all().await.unwrap().iter().map(|r| r.id).collect();
        world.outside().dirs.retain(|vm| known.contains(vm));
        world.outside().disks.retain(|vm| known.contains(vm));
        let daemon = Daemon::start(dir.path(), &world).await;
        let list = daemon.settled().await;
        daemon.assert_no_leaks().await;
        // The name is either the VM's or free, and a new VM can be made.
        match list.as_slice() {
            [] => drop(daemon.running(77, spec.clone()).await),
            _ => drop(daemon.running(77, VmSpec { name: None, ..spec.clone() }).await),
        }
        daemon.assert_no_leaks().await;
        list
    });
    (world, list)
}

fn states(list: &[Arc<VmView>]) -> Vec<VmState> {
    list.iter().map(|view| view.state).collect()
}

#[test]
fn a_crash_in_a_create_leaves_all_of_the_vm_or_nothing() {
    for step in STEPS {
        let (_, list) = crash(Doing::Create, step, &spec("web"));
        // Once its VMM runs, the VM is there and becomes ready; before, nothing is left.
        let expected: &[VmState] = match step {
            "begin" | "leased" | "intended" | "made_dir" | "prepared" | "listening" => &[],
            _ => &[VmState::Running],
        };
        assert_eq!(states(&list), expected, "at {step}");
    }
}

#[test]
fn a_crash_in_a_create_without_a_start_leaves_all_or_nothing() {
    for step in STEPS {
        let (world, list) = crash(Doing::CreateStopped, step, &spec("web"));
        let made = !["begin", "leased", "intended", "made_dir", "prepared"].contains(&step);
        assert_eq!(states(&list), if made { vec![VmState::Stopped] } else { vec![] }, "at {step}");
        assert_eq!(world.outside().launches.len(), 1, "only the probe was started");
    }
}

#[test]
fn a_crash_in_a_start_leaves_the_vm_and_its_disk() {
    for step in STEPS {
        let (world, list) = crash(Doing::Start, step, &spec("web"));
        let expected = match step {
            "begin" | "leased" => VmState::Stopped,
            // It was to run and does not: said, and left to its owner.
            "intended" | "made_dir" | "prepared" | "listening" => VmState::Failed,
            _ => VmState::Running,
        };
        assert_eq!(states(&list), [expected], "at {step}");
        let disk = world.outside().disks.contains(&list[0].id);
        assert_eq!(disk, !["begin", "leased", "intended", "made_dir"].contains(&step), "at {step}");
    }
}

#[test]
fn a_crash_in_a_stop_still_stops() {
    for doing in [Doing::Stop, Doing::Kill] {
        for step in STEPS {
            let (_, list) = crash(doing, step, &spec("web"));
            assert_eq!(states(&list), [VmState::Stopped], "{doing:?} at {step}");
        }
    }
}

#[test]
fn a_crash_in_a_delete_still_deletes() {
    for step in STEPS {
        let (world, list) = crash(Doing::Delete, step, &spec("web"));
        assert_eq!(states(&list), [], "at {step}");
        assert_eq!(world.outside().dirs.len(), 1, "only the probe's, at {step}");
    }
}

#[test]
fn a_running_vm_outlives_its_daemon_and_keeps_its_identity() {
    let (world, list) = crash(Doing::Create, "never", &spec("web"));
    assert_eq!(states(&list), [VmState::Running]);
    assert_eq!(list[0].readiness, Some(Readiness::System));
    let of_web = world.outside().specs.iter().filter(|(vm, _)| *vm == list[0].id).count();
    assert_eq!(of_web, 1, "it was not told to boot again");
}

#[test]
fn restart_always_brings_back_what_died_while_the_daemon_was_away() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    let always = VmSpec { restart: RestartPolicy::Always, ..spec("always") };
    let id = life(async {
        let daemon = Daemon::start(dir.path(), &world).await;
        daemon.running(2, spec("once")).await;
        let stopped = daemon.running(3, VmSpec { restart: RestartPolicy::Always, ..spec("stopped") }).await;
        stopped.command(Command::Stop(None)).await.unwrap();
        until_down(&mut stopped.watch.clone(), 1, PATIENCE).await.unwrap();
        let id = daemon.running(1, always).await.id;
        daemon.until_records(|record| record.was_ready).await;
        id
    });
    // The host was rebooted.
    for vm in world.alive() {
        world.end(vm, false);
    }
    let world = world.after_a_crash();
    life(async {
        let daemon = Daemon::start(dir.path(), &world).await;
        daemon.settled().await;
        // What died is failed until its restart is due.
        let mut brought_back = daemon.get("always").await.unwrap();
        let running = brought_back.watch.wait_for(|now| now.view.state == VmState::Running);
        drop(tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap());
        let state = async |name: &str| daemon.get(name).await.unwrap().view().state;
        assert_eq!(state("once").await, VmState::Failed);
        assert_eq!(state("stopped").await, VmState::Stopped);
        assert_eq!(state("always").await, VmState::Running);
        assert_eq!(world.alive().into_iter().collect::<Vec<_>>(), [id]);
        daemon.assert_no_leaks().await;
    });
}

#[test]
fn an_ephemeral_vm_whose_client_died_with_the_daemon_is_deleted() {
    let ephemeral = VmSpec { lifetime: Lifetime::Ephemeral, ..spec("web") };
    let (world, list) = crash(Doing::Create, "never", &ephemeral);
    assert_eq!(states(&list), []);
    assert!(world.outside().dirs.len() <= 1, "only the probe's");
}

/// A VM that an earlier daemon left running.
fn left_running(spec: VmSpec) -> (tempfile::TempDir, World, VmId) {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    let id = life(async {
        let daemon = Daemon::start(dir.path(), &world).await;
        let id = daemon.running(1, spec).await.id;
        daemon.until_records(|record| record.was_ready).await;
        id
    });
    (dir, world.after_a_crash(), id)
}

async fn until_view(daemon: &Daemon, name: &str, wanted: impl Fn(&VmView) -> bool) {
    let mut vm = daemon.get(name).await.unwrap();
    let seen = vm.watch.wait_for(|now| wanted(&now.view));
    drop(tokio::time::timeout(PATIENCE, seen).await.expect("the VM comes to this").unwrap());
}

#[test]
fn a_daemon_that_cannot_look_takes_nobody_for_dead() {
    let (dir, world, id) = left_running(spec("web"));
    world.script().fail = Some("adopt");
    life(async {
        let daemon = Daemon::start(dir.path(), &world).await;
        // Long enough for a second look.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(daemon.get("web").await.unwrap().view().state, VmState::Starting);
        assert_eq!(world.alive().into_iter().collect::<Vec<_>>(), [id]);
        world.script().fail = None;
        until_view(&daemon, "web", |view| view.state == VmState::Running).await;
        daemon.assert_no_leaks().await;
    });
}

#[test]
fn a_vm_that_was_found_without_the_helper_has_its_address_when_that_is_back() {
    let (dir, world, _) = left_running(spec("web"));
    world.script().fail = Some("lease_tap");
    life(async {
        let daemon = Daemon::start(dir.path(), &world).await;
        until_view(&daemon, "web", |view| view.state == VmState::Running && view.address.is_none()).await;
        world.script().fail = None;
        until_view(&daemon, "web", |view| view.address.is_some()).await;
        daemon.assert_no_leaks().await;
    });
}

#[test]
fn a_stop_of_a_vm_that_is_still_looked_for_asks_its_guest() {
    let (dir, world, id) = left_running(spec("web"));
    world.script().fail = Some("adopt");
    life(async {
        let daemon = Daemon::start(dir.path(), &world).await;
        let mut vm = daemon.get("web").await.unwrap();
        vm.command(Command::Stop(None)).await.unwrap();
        world.script().fail = None;
        until_down(&mut vm.watch, 0, PATIENCE).await.unwrap();
        assert_eq!(world.outside().asked, [(id, StopKind::Halt)]);
        daemon.assert_no_leaks().await;
    });
}

#[test]
fn a_helper_that_hangs_keeps_a_vm_neither_from_running_nor_from_its_stop() {
    let (dir, world, id) = left_running(spec("web"));
    world.script().hang = Some("lease_tap");
    life(async {
        let daemon = Daemon::start(dir.path(), &world).await;
        until_view(&daemon, "web", |view| view.state == VmState::Running && view.address.is_none()).await;
        let mut vm = daemon.get("web").await.unwrap();
        vm.command(Command::Stop(None)).await.unwrap();
        until_down(&mut vm.watch, 0, PATIENCE).await.unwrap();
        assert_eq!(world.outside().asked, [(id, StopKind::Halt)]);
        daemon.assert_no_leaks().await;
    });
}

#[test]
fn a_vm_that_could_not_be_listened_for_is_spoken_to_later() {
    let (dir, world, _) = left_running(spec("web"));
    world.script().fail = Some("listen");
    life(async {
        let daemon = Daemon::start(dir.path(), &world).await;
        until_view(&daemon, "web", |view| view.vmm_pid.is_some()).await;
        world.script().fail = None;
        until_view(&daemon, "web", |view| view.state == VmState::Running && view.address.is_some()).await;
        daemon.assert_no_leaks().await;
    });
}

#[test]
fn an_ephemeral_vm_lives_on_with_its_command_and_goes_when_nobody_runs_it() {
    for runs_on in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let world = World::new();
        let main = OperationId([1; 8]);
        let id = life(async {
            let daemon = Daemon::start(dir.path(), &world).await;
            let vm = daemon.running(1, VmSpec { lifetime: Lifetime::Ephemeral, ..spec("once") }).await;
            vm.vm.send(BeginOperation { operation: main, main: true }).await.unwrap().unwrap();
            daemon.until_records(|record| record.operation == Some(main)).await;
            vm.id
        });
        let world = world.after_a_crash();
        // It was opened and runs; or it ended, or was never opened, and the daemon died before it could act on that.
        world.outside().operations.extend(runs_on.then_some(main));
        life(async {
            let daemon = Daemon::start(dir.path(), &world).await;
            if runs_on {
                until_view(&daemon, "once", |view| view.state == VmState::Running).await;
                world.operation_ended(id, main).await;
            }
            while !daemon.list().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert!(world.alive().is_empty());
            daemon.assert_no_leaks().await;
        });
    }
}

#[test]
fn what_a_power_cut_makes_look_unfinished_is_kept() {
    for host_restarted in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let world = World::new();
        life(async {
            let daemon = Daemon::start(dir.path(), &world).await;
            // The record still says that it is being made, as after a power cut soon after the create.
            world.script().freeze_at = Some("launched");
            daemon.create(1, spec("web"), true).await.unwrap();
            world.until_frozen().await;
        });
        for vm in world.alive() {
            world.end(vm, false);
        }
        let world = world.after_a_crash();
        world.script().host_restarted = host_restarted;
        life(async {
            let daemon = Daemon::start(dir.path(), &world).await;
            let list = daemon.settled().await;
            assert_eq!(states(&list), if host_restarted { vec![VmState::Failed] } else { vec![] });
            if host_restarted {
                let mut vm = daemon.get("web").await.unwrap();
                let attempt = vm.command(Command::Start).await.unwrap().attempt;
                until_ready(&mut vm.watch, attempt, Readiness::System, PATIENCE).await.unwrap();
            }
            daemon.assert_no_leaks().await;
        });
    }
}
