//! Each actor of this room panics, and comes back.

use super::*;
use crate::vm::Panic as VmPanic;

#[test]
fn a_vm_actor_that_panics_is_built_anew_and_its_vm_runs_on() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    life(async {
        let daemon = Daemon::start(dir.path(), &world).await;
        let vm = daemon.running(1, spec("web")).await;
        assert!(vm.vm.send(VmPanic).await.is_err());
        let back = async {
            while daemon.get("web").await.is_err() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, back).await.expect("a new actor");
        let settled = daemon.settled().await;
        assert_eq!(settled[0].state, VmState::Running);
        assert_eq!(world.outside().launches.len(), 1, "its VMM was found, not started again");
        let mut again = daemon.get("web").await.unwrap();
        again.command(Command::Stop(None)).await.unwrap();
        until_down(&mut again.watch, 0, PATIENCE).await.unwrap();
        daemon.assert_no_leaks().await;
    });
}

#[test]
fn a_vm_whose_worker_panics_does_what_it_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    life(async {
        let daemon = Daemon::start(dir.path(), &world).await;
        let vm = daemon.running(1, spec("web")).await;
        daemon.until_records(|record| record.was_ready).await;
        daemon.until_passed("written", 2).await;
        world.script().panic_at = Some("written");
        vm.command(Command::Stop(None)).await.unwrap();
        let stopped = async {
            while daemon.get("web").await.map_or(VmState::Starting, |vm| vm.view().state) != VmState::Stopped {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, stopped).await.expect("the next actor carries it out");
        daemon.assert_no_leaks().await;
    });
}

#[test]
fn a_registry_that_panics_keeps_its_vms() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new();
    life(async {
        let daemon = Daemon::start(dir.path(), &world).await;
        daemon.running(1, spec("web")).await;
        let error = daemon.registry.send(super::super::actor::Panic).await.unwrap().unwrap_err();
        assert_eq!(error.0, "asked to");
        let vm = daemon.get("web").await.unwrap();
        assert_eq!(vm.view().state, VmState::Running);
        assert!(daemon.create(2, spec("web"), true).await.is_err(), "the name is still taken");
        daemon.running(3, spec("api")).await;
        daemon.assert_no_leaks().await;
    });
}
