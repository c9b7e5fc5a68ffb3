//! The names keeper against a systemd-resolved and a firewalld of the test's own, on a bus of its own. Skipped, and said so, where there is no
//! `dbus-daemon`.

use super::bus::Bus;
use super::client::NamesKeeper;
use super::keeper::serve;
use super::wire::{REQUEST_LEN, Request, SENTENCE_MAX, encode_answer};
use futures::StreamExt as _;
use proptest::prelude::*;
use std::io::BufRead;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);

proptest! {
    #[test]
    fn requests_survive_and_nothing_else_is_one(bytes: [u8; REQUEST_LEN]) {
        match Request::decode(bytes) {
            Some(request @ Request::Route { .. }) => prop_assert_eq!(request.encode(), bytes),
            Some(request) => prop_assert_eq!(Request::decode(request.encode()), Some(request)),
            None => prop_assert!(bytes[0] == 0 || bytes[0] > 4),
        }
    }

    #[test]
    fn sentences_are_bounded(sentence in ".{0,700}") {
        let bytes = encode_answer(&Err(sentence));
        prop_assert!(bytes.len() <= SENTENCE_MAX + 2);
        prop_assert!(std::str::from_utf8(&bytes[2..]).is_ok());
    }
}

/// What systemd-resolved was told, in order.
type Told = Arc<Mutex<Vec<String>>>;

/// A bus of the test's own; ends with it.
pub(in crate::privileged) struct PrivateBus {
    daemon: Child,
    pub(in crate::privileged) address: String,
    /// Of its socket, which a daemon that is killed leaves behind.
    _directory: tempfile::TempDir,
}

impl PrivateBus {
    pub(in crate::privileged) fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let socket = format!("--address=unix:path={}", directory.path().join("bus").display());
        let daemon = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address", &socket])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut daemon) = daemon else {
            eprintln!("skipped: dbus-daemon is not installed");
            return None;
        };
        let mut address = String::new();
        std::io::BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Some(Self { daemon, address: address.trim().to_owned(), _directory: directory })
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        self.daemon.kill().and_then(|()| self.daemon.wait()).ok();
    }
}

/// A names keeper in a thread, for a bus; only interface 7 is banger's.
fn keeper(address: String) -> (NamesKeeper, JoinHandle<()>) {
    keeper_of(address, |index| (index == 7).then(|| "bb0".to_owned()))
}

fn keeper_of(address: String, own_bridge: fn(u32) -> Option<String>) -> (NamesKeeper, JoinHandle<()>) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        serve(theirs, &Bus::At(address), &runtime, own_bridge).unwrap();
    });
    (NamesKeeper::Started(ours, Command::new("true").spawn().unwrap()), thread)
}

/// One that takes each interface for the bridge of the packets' tests: `/sys` shows another namespace than theirs.
pub(in crate::privileged) fn keeper_of_bridges(bus: &PrivateBus) -> NamesKeeper {
    keeper_of(bus.address.clone(), |_| Some("bbabcdef".to_owned())).0
}

/// The names of the calls that this systemd-resolved has, an old one; what it is asked for beyond them it does not know.
const KNOWN: [&str; 5] = ["SetLinkDNS", "SetLinkDomains", "SetLinkDefaultRoute", "SetLinkLLMNR", "RevertLink"];

/// A systemd-resolved that notes what it is told; gone when the task is aborted.
struct FakeResolved {
    told: Told,
    task: tokio::task::JoinHandle<()>,
}

impl FakeResolved {
    async fn start(bus: &PrivateBus, refuse: bool) -> Self {
        let connection = zbus::connection::Builder::address(bus.address.as_str()).build().await.unwrap();
        let mut calls = zbus::MessageStream::from(&connection);
        connection.request_name("org.freedesktop.resolve1").await.unwrap();
        let told = Told::default();
        let noted = Arc::clone(&told);
        let task = tokio::spawn(async move {
            while let Some(Ok(call)) = calls.next().await {
                let header = call.header();
                if header.message_type() != zbus::message::Type::MethodCall {
                    continue;
                }
                assert_eq!(header.path().unwrap().as_str(), "/org/freedesktop/resolve1");
                assert_eq!(header.interface().unwrap().as_str(), "org.freedesktop.resolve1.Manager");
                let member = header.member().unwrap().to_string();
                if !KNOWN.contains(&member.as_str()) {
                    connection.reply_error(&header, "org.freedesktop.DBus.Error.UnknownMethod", &"no").await.unwrap();
                    continue;
                }
                noted.lock().unwrap().push(describe(&member, &call));
                if refuse {
                    let name = "org.freedesktop.DBus.Error.AccessDenied";
                    connection.reply_error(&header, name, &"as told").await.unwrap();
                } else {
                    connection.reply(&header, &()).await.unwrap();
                }
            }
        });
        Self { told, task }
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }

    async fn stop(self) {
        self.task.abort();
        self.task.await.ok();
    }
}

/// The types are those of org.freedesktop.resolve1(5): another signature fails here.
fn describe(member: &str, call: &zbus::Message) -> String {
    let body = call.body();
    match member {
        "SetLinkDNS" => format!("dns {:?}", body.deserialize::<(i32, Vec<(i32, Vec<u8>)>)>().unwrap()),
        "SetLinkDomains" => format!("domains {:?}", body.deserialize::<(i32, Vec<(String, bool)>)>().unwrap()),
        "SetLinkDefaultRoute" => format!("default-route {:?}", body.deserialize::<(i32, bool)>().unwrap()),
        "SetLinkLLMNR" => format!("llmnr {:?}", body.deserialize::<(i32, String)>().unwrap()),
        _ => format!("revert {}", body.deserialize::<i32>().unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_domain_is_routed_and_taken_back_when_the_helper_ends() {
    let Some(bus) = PrivateBus::start() else { return };
    let (mut keeper, thread) = keeper(bus.address.clone());
    assert_eq!(keeper.route(7, GATEWAY).await.unwrap_err(), "systemd-resolved does not run on this host");
    let service = FakeResolved::start(&bus, false).await;
    keeper.route(7, GATEWAY).await.unwrap();
    let expected = [
        "domains (7, [(\"vm\", true)])",
        "default-route (7, false)",
        "llmnr (7, \"no\")",
        "dns (7, [(2, [172, 16, 0, 1])])",
    ];
    assert_eq!(service.told(), expected);
    // Again is fine; what is not banger's is neither set nor reverted.
    keeper.route(7, GATEWAY).await.unwrap();
    assert_eq!(keeper.route(8, GATEWAY).await.unwrap_err(), "that interface is no bridge of banger's");
    keeper.revert(8).await.unwrap();
    assert_eq!(service.told().len(), 8);
    // The helper's end closes, as when it is killed.
    drop(keeper);
    thread.join().unwrap();
    assert_eq!(service.told()[8..], ["revert 7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_a_sentence_and_the_next_request_is_served() {
    let Some(bus) = PrivateBus::start() else { return };
    let (mut keeper, thread) = keeper(bus.address.clone());
    let service = FakeResolved::start(&bus, true).await;
    let refused = keeper.route(7, GATEWAY).await.unwrap_err();
    assert!(refused.starts_with("systemd-resolved refused SetLinkDomains") && refused.contains("as told"), "{refused}");
    assert_eq!(service.told().len(), 1);
    service.stop().await;
    let service = FakeResolved::start(&bus, false).await;
    keeper.revert(7).await.unwrap();
    assert_eq!(service.told(), ["revert 7"], "what may be half done is taken back");
    drop(keeper);
    thread.join().unwrap();
}

/// A firewalld that knows the zone of one interface; its default zone is `public`.
async fn fake_firewalld(bus: &PrivateBus, zone: &'static str) -> (Told, tokio::task::JoinHandle<()>) {
    let connection = zbus::connection::Builder::address(bus.address.as_str()).build().await.unwrap();
    let mut calls = zbus::MessageStream::from(&connection);
    connection.request_name("org.fedoraproject.FirewallD1").await.unwrap();
    let told = Told::default();
    let noted = Arc::clone(&told);
    let task = tokio::spawn(async move {
        let mut zone = zone.to_owned();
        while let Some(Ok(call)) = calls.next().await {
            let header = call.header();
            if header.message_type() != zbus::message::Type::MethodCall {
                continue;
            }
            let (interface, member) = (header.interface().unwrap().to_string(), header.member().unwrap().to_string());
            let answer = if member == "getDefaultZone" {
                assert_eq!(interface, "org.fedoraproject.FirewallD1");
                "public".to_owned()
            } else {
                assert_eq!(interface, "org.fedoraproject.FirewallD1.zone");
                if member == "getZoneOfInterface" {
                    assert_eq!(call.body().deserialize::<String>().unwrap(), "bb0");
                } else {
                    let (to, name) = call.body().deserialize::<(String, String)>().unwrap();
                    noted.lock().unwrap().push(format!("{member} {to} {name}"));
                    zone = if member == "changeZoneOfInterface" { to } else { String::new() };
                }
                zone.clone()
            };
            connection.reply(&header, &answer).await.unwrap();
        }
    });
    (told, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn firewalld_is_told_once_and_an_administrators_choice_stands() {
    let Some(bus) = PrivateBus::start() else { return };
    let (mut keeper, thread) = keeper(bus.address.clone());
    // No firewalld: nothing to do.
    keeper.trust(7).await.unwrap();
    for (zone, expected) in [
        ("", &["changeZoneOfInterface trusted bb0", "removeInterface trusted bb0"][..]),
        ("public", &["changeZoneOfInterface trusted bb0", "removeInterface trusted bb0"]),
        ("work", &[]),
    ] {
        let (told, task) = fake_firewalld(&bus, zone).await;
        for _ in 0..2 {
            keeper.trust(7).await.unwrap();
        }
        assert_eq!(keeper.trust(8).await.unwrap_err(), "that interface is no bridge of banger's");
        keeper.distrust(8).await.unwrap();
        keeper.distrust(7).await.unwrap();
        assert_eq!(*told.lock().unwrap(), expected, "{zone}");
        task.abort();
        task.await.ok();
    }
    drop(keeper);
    thread.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_bus_it_is_a_sentence_too() {
    let (mut keeper, thread) = keeper("unix:path=/nonexistent/bus".to_owned());
    let error = keeper.route(7, GATEWAY).await.unwrap_err();
    assert!(error.starts_with("this host's D-Bus cannot be reached"), "{error}");
    drop(keeper);
    thread.join().unwrap();
    let mut absent = NamesKeeper::Absent("this host has no D-Bus".to_owned());
    assert_eq!(absent.route(7, GATEWAY).await.unwrap_err(), "this host has no D-Bus");
    absent.revert(7).await.unwrap();
}
