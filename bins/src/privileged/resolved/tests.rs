//! The names keeper against a systemd-resolved of the test's own, on a bus of its own. Skipped, and said so, where there is no
//! `dbus-daemon`.

use super::bus::Bus;
use super::client::NamesKeeper;
use super::keeper::serve;
use super::wire::{REQUEST_LEN, Request, SENTENCE_MAX, encode_answer};
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
            Some(request @ Request::Revert { .. }) => prop_assert_eq!(Request::decode(request.encode()), Some(request)),
            None => prop_assert!(bytes[0] == 0 || bytes[0] > 2),
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

struct FakeResolved {
    told: Told,
    refuse: bool,
}

impl FakeResolved {
    fn note(&self, call: String) -> zbus::fdo::Result<()> {
        self.told.lock().unwrap().push(call);
        if self.refuse { Err(zbus::fdo::Error::AccessDenied("as told".to_owned())) } else { Ok(()) }
    }
}

#[zbus::interface(name = "org.freedesktop.resolve1.Manager")]
impl FakeResolved {
    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, index: i32, addresses: Vec<(i32, Vec<u8>)>) -> zbus::fdo::Result<()> {
        self.note(format!("dns {index} {addresses:?}"))
    }
    #[zbus(name = "SetLinkDomains")]
    fn set_link_domains(&self, index: i32, domains: Vec<(String, bool)>) -> zbus::fdo::Result<()> {
        self.note(format!("domains {index} {domains:?}"))
    }
    #[zbus(name = "SetLinkDefaultRoute")]
    fn set_link_default_route(&self, index: i32, enable: bool) -> zbus::fdo::Result<()> {
        self.note(format!("default-route {index} {enable}"))
    }
    // SetLinkDNSSEC and SetLinkDNSOverTLS are missing, as in an old version.
    #[zbus(name = "RevertLink")]
    fn revert_link(&self, index: i32) -> zbus::fdo::Result<()> {
        self.note(format!("revert {index}"))
    }
}

/// A bus of the test's own; ends with it.
struct PrivateBus {
    daemon: Child,
    address: String,
}

impl PrivateBus {
    fn start() -> Option<Self> {
        let daemon = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut daemon) = daemon else {
            eprintln!("skipped: dbus-daemon is not installed");
            return None;
        };
        let mut address = String::new();
        std::io::BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Some(Self { daemon, address: address.trim().to_owned() })
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        self.daemon.kill().and_then(|()| self.daemon.wait()).ok();
    }
}

/// A names keeper in a thread, for a bus; only interface 7 is banger's.
fn keeper(address: String) -> (NamesKeeper, JoinHandle<()>) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        serve(theirs, &Bus::At(address), &runtime, |index, _| index == 7).unwrap();
    });
    (NamesKeeper::Started(ours, Command::new("true").spawn().unwrap()), thread)
}

async fn resolved(bus: &PrivateBus, refuse: bool) -> (zbus::Connection, Told) {
    let told = Told::default();
    let service = FakeResolved { told: Arc::clone(&told), refuse };
    let connection = zbus::connection::Builder::address(bus.address.as_str())
        .serve_at("/org/freedesktop/resolve1", service)
        .name("org.freedesktop.resolve1")
        .build()
        .await
        .unwrap();
    (connection, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_domain_is_routed_and_taken_back_when_the_helper_ends() {
    let Some(bus) = PrivateBus::start() else { return };
    let (mut keeper, thread) = keeper(bus.address.clone());
    assert_eq!(keeper.route(7, GATEWAY).await.unwrap_err(), "systemd-resolved does not run on this host");
    let (_service, told) = resolved(&bus, false).await;
    keeper.route(7, GATEWAY).await.unwrap();
    let expected =
        ["domains 7 [(\"vm\", true)]", "default-route 7 false", "dns 7 [(2, [172, 16, 0, 1])]"].map(str::to_owned);
    assert_eq!(*told.lock().unwrap(), expected);
    // Again is fine; what is not banger's is neither set nor reverted.
    keeper.route(7, GATEWAY).await.unwrap();
    assert_eq!(keeper.route(8, GATEWAY).await.unwrap_err(), "that interface is no bridge of banger's");
    keeper.revert(8).await.unwrap();
    assert_eq!(told.lock().unwrap().len(), 6);
    // The helper's end closes, as when it is killed.
    drop(keeper);
    thread.join().unwrap();
    assert_eq!(told.lock().unwrap()[6..], ["revert 7".to_owned()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_a_sentence_and_the_next_request_is_served() {
    let Some(bus) = PrivateBus::start() else { return };
    let (mut keeper, thread) = keeper(bus.address.clone());
    let (service, told) = resolved(&bus, true).await;
    let refused = keeper.route(7, GATEWAY).await.unwrap_err();
    assert!(refused.starts_with("systemd-resolved refused SetLinkDomains") && refused.contains("as told"), "{refused}");
    drop(service);
    let (_service, told_later) = resolved(&bus, false).await;
    keeper.revert(7).await.unwrap();
    assert_eq!(*told_later.lock().unwrap(), ["revert 7".to_owned()], "what may be half done is taken back");
    assert_eq!(told.lock().unwrap().len(), 1);
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
