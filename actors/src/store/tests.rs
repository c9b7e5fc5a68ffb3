//! The store against a real file.

use super::*;
use messages::privileged::TapNumber;
use messages::vm::{Lifetime, NetAllow, NetworkMode, Provenance, RestartPolicy, VmSize};
use sha2::{Digest as _, Sha256};

fn record(id: u8, name: &str) -> VmRecord {
    VmRecord {
        id: VmId([id; 8]),
        name: name.parse().unwrap(),
        request: Some(RequestId([id; 16])),
        phase: Phase::Creating,
        image: "debian-bookworm".parse().unwrap(),
        kernel: "debian-cloud-6.12".parse().unwrap(),
        size: VmSize {
            vcpus: 2,
            memory_mib: 512,
            disk_bytes: 8 << 30,
            vcpus_from: Provenance::Flag,
            memory_from: Provenance::Host,
            disk_from: Provenance::BuiltIn,
        },
        network: NetworkMode::Nat,
        tap: Some(TapNumber(7)),
        labels: vec![("team".into(), "a \"b\"".into())],
        restart: RestartPolicy::Always,
        lifetime: Lifetime::Ephemeral,
        nonce: Some(messages::ids::BootNonce([9; 16])),
        operation: None,
        was_ready: false,
        created_at_ms: u64::from(id),
        started_at_ms: Some(12),
        last_error: Some("it broke".into()),
        ssh_host_key: Some(crate::ssh::HostKey::from_bytes([5; 64])),
        net_allow: vec![NetAllow::Vm("00ff10a0b0c0d0e0".parse().unwrap()), NetAllow::HostUdp(69)],
    }
}

fn temporary() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("banger.db")).unwrap();
    (dir, store)
}

#[tokio::test]
async fn a_record_comes_back_whole_after_reopening() {
    let (dir, store) = temporary();
    let mut vm = record(1, "one");
    assert_eq!(store.create(vm.clone()).await.unwrap(), Created::New);
    vm.phase = Phase::Running;
    vm.tap = None;
    vm.operation = Some(messages::ids::OperationId([3; 8]));
    store.put(vm.clone(), Durability::Fact).await.unwrap();
    drop(store);
    let store = Store::open(&dir.path().join("banger.db")).unwrap();
    assert_eq!(store.all().await.unwrap(), vec![vm.clone()]);
    assert_eq!(store.get(vm.id).await.unwrap(), Some(vm));
}

#[tokio::test]
async fn a_repeated_request_makes_nothing_even_after_a_delete() {
    let (_dir, store) = temporary();
    let first = record(1, "one");
    assert_eq!(store.create(first.clone()).await.unwrap(), Created::New);
    let again = VmRecord { id: VmId([2; 8]), name: "two".parse().unwrap(), ..first.clone() };
    assert_eq!(store.create(again.clone()).await.unwrap(), Created::Already(first.id));
    store.bury(first.id, 5).await.unwrap();
    store.bury(first.id, 6).await.unwrap();
    assert_eq!(store.create(again).await.unwrap(), Created::Deleted(first.id));
    assert_eq!(store.made_by(RequestId([1; 16])).await.unwrap(), Some(Created::Deleted(first.id)));
    assert_eq!(store.all().await.unwrap(), vec![]);
}

#[tokio::test]
async fn ids_are_never_reused_and_names_can_be() {
    let (_dir, store) = temporary();
    store.create(record(1, "one")).await.unwrap();
    assert!(matches!(store.create(record(2, "one")).await, Err(StoreError::NameTaken(_))));
    store.bury(VmId([1; 8]), 5).await.unwrap();
    let reused = VmRecord { request: None, ..record(1, "other") };
    assert_eq!(store.create(reused).await.unwrap(), Created::Deleted(VmId([1; 8])));
    assert_eq!(store.create(record(2, "one")).await.unwrap(), Created::New);
    let tombstone = store.tombstone(VmId([1; 8]).to_string()).await.unwrap().unwrap();
    assert_eq!(tombstone.name.as_str(), "one");
}

#[tokio::test]
async fn a_deleted_row_is_not_brought_back_by_a_late_write() {
    let (_dir, store) = temporary();
    store.create(record(1, "one")).await.unwrap();
    store.bury(VmId([1; 8]), 5).await.unwrap();
    let late = store.put(record(1, "one"), Durability::Intent).await;
    assert!(matches!(late, Err(StoreError::NotThere(vm)) if vm == VmId([1; 8])), "nor taken for written: {late:?}");
    assert_eq!(store.get(VmId([1; 8])).await.unwrap(), None);
}

#[tokio::test]
async fn a_panic_in_the_thread_is_answered_and_the_next_call_works() {
    let (_dir, store) = temporary();
    store.create(record(1, "one")).await.unwrap();
    assert!(matches!(store.panic().await, StoreError::Panicked(text) if text == "asked to"));
    assert_eq!(store.all().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_newer_database_is_refused_and_left_alone() {
    let (dir, store) = temporary();
    drop(store);
    let path = dir.path().join("banger.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let error = Store::open(&path).unwrap_err();
    assert!(error.to_string().contains("schema 99"), "{error}");
}

/// A database in the field was made by the text that landed: an edit would never reach it.
#[test]
fn migrations_are_never_edited() {
    let digests: Vec<String> =
        database::MIGRATIONS.iter().map(|sql| hex::encode(&Sha256::digest(sql.as_bytes())[..8])).collect();
    assert_eq!(digests, ["50b7f2c329c29d80", "39f395d2769b87ac", "f20421f7268dfb4a", "841dc279d2ac7384"]);
}
