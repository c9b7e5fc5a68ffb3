//! The keeper, given watches as VM actors publish them, and a helper that is scripted.

use super::{Fixed, ONE, PATIENCE, ask, question, said, send_udp, sockets, v4};
use crate::dns::actor::{DnsSettings, FollowVm, Panic, ServeBridge, ZoneKeeper};
use crate::dns::server::{Sockets, usual_port};
use crate::dns::status::{BridgeListener, DnsStatus, HostRouting, LoopbackListener};
use crate::privileged::{DnsSockets, Perform, PerformBindDns};
use crate::vm::Published;
use actix::{Actor, Addr, Context, Handler, Supervisor};
use hickory_server::proto::rr::RecordType;
use messages::WireError;
use messages::error::ErrorKind;
use messages::ids::{InstanceId, VmId};
use messages::privileged::{PrivilegedOperation, PrivilegedReply, Subnet};
use messages::vm::{VmState, VmView};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const SUBNET: Subnet = Subnet { gateway: Ipv4Addr::new(127, 0, 9, 1), prefix: 24, ipv6: None };
/// What the issue promises.
const AT_ONCE: Duration = Duration::from_millis(100);

fn published(vm: u8, name: &str, state: VmState, address: Option<[u8; 4]>) -> Published {
    let view = VmView { address: address.map(Ipv4Addr::from), ..fixtures::vm_view(super::id(vm), name, state) };
    Published { attempt: 0, view: Arc::new(view), error: None, gone: false, how: None }
}

fn up(vm: u8, name: &str) -> Published {
    published(vm, name, VmState::Running, Some([127, 0, 9, vm]))
}

/// Binds loopback, or says what it is told to say.
#[derive(Default)]
struct Helper {
    asked: usize,
    refuse: Option<WireError>,
    no_resolved: Option<WireError>,
}

struct FakeHelper(Arc<Mutex<Helper>>);

impl Actor for FakeHelper {
    type Context = Context<Self>;
}

impl Handler<PerformBindDns> for FakeHelper {
    type Result = Result<DnsSockets, WireError>;

    fn handle(&mut self, message: PerformBindDns, _: &mut Context<Self>) -> Self::Result {
        let mut helper = self.0.lock().unwrap();
        helper.asked += 1;
        match &helper.refuse {
            Some(error) => Err(error.clone()),
            None => {
                let (udp, tcp) = sockets(message.subnet.gateway);
                Ok(DnsSockets { udp, tcp })
            }
        }
    }
}

impl Handler<Perform> for FakeHelper {
    type Result = Result<PrivilegedReply, WireError>;

    fn handle(&mut self, Perform(operation): Perform, _: &mut Context<Self>) -> Self::Result {
        assert!(matches!(operation, PrivilegedOperation::RouteNames { subnet: SUBNET, .. }), "{operation:?}");
        match &self.0.lock().unwrap().no_resolved {
            Some(error) => Err(error.clone()),
            None => Ok(PrivilegedReply::Done),
        }
    }
}

struct Fixture {
    keeper: Addr<ZoneKeeper>,
    status: watch::Receiver<DnsStatus>,
    helper: Arc<Mutex<Helper>>,
}

impl Fixture {
    async fn start(instance: InstanceId) -> Self {
        let helper: Arc<Mutex<Helper>> = Arc::default();
        let (keeper, mut status) = ZoneKeeper::new(DnsSettings {
            instance,
            bridge: "bb000000".parse().unwrap(),
            subnet: SUBNET,
            runtime: tokio::runtime::Handle::current(),
            helper: FakeHelper(Arc::clone(&helper)).start().recipient(),
            router: FakeHelper(Arc::clone(&helper)).start().recipient(),
            upstreams: Box::new(Fixed(Vec::new())),
        });
        let keeper = Supervisor::start(move |_| keeper);
        let serving = status.wait_for(|status| matches!(status.loopback, LoopbackListener::Serving(_)));
        drop(tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap());
        Self { keeper, status, helper }
    }

    fn loopback(&self) -> SocketAddr {
        match self.status.borrow().loopback {
            LoopbackListener::Serving(address) => address,
            ref other => panic!("{other:?}"),
        }
    }

    async fn follow(&self, first: Published) -> watch::Sender<Published> {
        let (sender, watch) = watch::channel(first);
        let vm: VmId = watch.borrow().view.id;
        self.keeper.send(FollowVm { vm, watch }).await.unwrap();
        sender
    }

    async fn says(&self, name: &str) -> String {
        said(&ask(self.loopback(), &question(name, RecordType::A)).await)
    }

    /// Waits until a name is answered so, and fails if that took longer than promised.
    async fn becomes(&self, name: &str, expected: &str) {
        let began = Instant::now();
        while self.says(name).await != expected {
            assert!(began.elapsed() < PATIENCE, "{name} is {}, not {expected}", self.says(name).await);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let took = began.elapsed();
        // The machine may be busy; a tenth of what a person notices is the promise on one that is not.
        assert!(took < AT_ONCE * 20, "{name} took {took:?}");
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    actix::System::with_tokio_rt(runtime).block_on(test);
}

#[test]
fn a_name_follows_its_vm_from_start_to_delete() {
    run(async {
        let fixture = Fixture::start(ONE).await;
        assert_eq!(fixture.says("web.vm.").await, "NXDomain");
        let web = fixture.follow(published(2, "web", VmState::Stopped, None)).await;
        assert_eq!(fixture.says("web.vm.").await, "NXDomain");

        web.send_replace(published(2, "web", VmState::Starting, None));
        fixture.becomes("web.vm.", "nothing").await;
        web.send_replace(published(2, "web", VmState::Starting, Some([127, 0, 9, 2])));
        fixture.becomes("web.vm.", "127.0.9.2").await;
        web.send_replace(up(2, "web"));
        fixture.becomes("web.vm.", "127.0.9.2").await;

        web.send_replace(up(2, "site"));
        fixture.becomes("site.vm.", "127.0.9.2").await;
        assert_eq!(fixture.says("web.vm.").await, "NXDomain");
        let reverse = question("2.9.0.127.in-addr.arpa.", RecordType::PTR);
        assert_eq!(said(&ask(fixture.loopback(), &reverse).await), "site.vm.");

        web.send_replace(published(2, "site", VmState::Stopped, None));
        fixture.becomes("site.vm.", "NXDomain").await;
        web.send_replace(up(2, "site"));
        fixture.becomes("site.vm.", "127.0.9.2").await;
        web.send_replace(Published { gone: true, ..published(2, "site", VmState::Deleting, None) });
        fixture.becomes("site.vm.", "NXDomain").await;
        assert_eq!(fixture.status.borrow().names, 0);
    });
}

#[test]
fn a_vm_without_a_network_exists_and_has_no_address() {
    run(async {
        let fixture = Fixture::start(ONE).await;
        let _alone = fixture.follow(published(2, "alone", VmState::Running, None)).await;
        fixture.becomes("alone.vm.", "nothing").await;
    });
}

#[test]
fn a_vm_whose_actor_panicked_keeps_its_name_and_is_followed_again() {
    run(async {
        let fixture = Fixture::start(ONE).await;
        let web = fixture.follow(up(2, "web")).await;
        fixture.becomes("web.vm.", "127.0.9.2").await;
        drop(web);
        // Anything that comes after the news of its end.
        let _other = fixture.follow(up(3, "other")).await;
        fixture.becomes("other.vm.", "127.0.9.3").await;
        assert_eq!(fixture.says("web.vm.").await, "127.0.9.2");
        let web = fixture.follow(up(2, "web")).await;
        web.send_replace(published(2, "web", VmState::Stopped, None));
        fixture.becomes("web.vm.", "NXDomain").await;
    });
}

#[test]
fn a_panic_loses_no_name_and_no_listener() {
    run(async {
        let fixture = Fixture::start(InstanceId([0, 0, 9])).await;
        fixture.keeper.send(ServeBridge).await.unwrap().unwrap();
        let web = fixture.follow(up(2, "web")).await;
        fixture.becomes("web.vm.", "127.0.9.2").await;
        let before = fixture.loopback();
        fixture.keeper.send(Panic).await.unwrap().unwrap_err();
        // Its next message is handled after its restart.
        let _other = fixture.follow(up(3, "other")).await;
        for name in ["web.vm.", "other.vm."] {
            assert_ne!(fixture.says(name).await, "NXDomain", "{name}");
        }
        assert_eq!(fixture.loopback().port(), before.port(), "others may have it in their configuration");
        fixture.keeper.send(ServeBridge).await.unwrap().unwrap();
        let BridgeListener::Serving(bridge) = fixture.status.borrow().bridge.clone() else { panic!("no bridge") };
        let asked = question("web.vm.", RecordType::A).to_vec().unwrap();
        assert_eq!(said(&send_udp(v4("127.0.9.7"), bridge, &asked).await), "127.0.9.2");
        web.send_replace(up(2, "site"));
        fixture.becomes("site.vm.", "127.0.9.2").await;
    });
}

#[test]
fn the_bridge_is_served_once_it_is_there_and_asked_for_once() {
    run(async {
        let fixture = Fixture::start(ONE).await;
        assert_eq!(fixture.status.borrow().guests_resolver(), None);
        for _ in 0..3 {
            fixture.keeper.send(ServeBridge).await.unwrap().unwrap();
        }
        assert_eq!(fixture.helper.lock().unwrap().asked, 1);
        assert_eq!(fixture.status.borrow().guests_resolver(), Some(SUBNET.gateway));
    });
}

#[test]
fn a_taken_port_is_told_and_costs_nothing_else() {
    run(async {
        let fixture = Fixture::start(ONE).await;
        let taken = WireError::new(ErrorKind::Conflict, "port 53 of 127.0.9.1 is taken by another program");
        fixture.helper.lock().unwrap().refuse = Some(taken);
        fixture.keeper.send(ServeBridge).await.unwrap().unwrap();
        let status = fixture.status.borrow().clone();
        assert_eq!(status.guests_resolver(), None);
        assert_eq!(status.view().bridge, Err("port 53 of 127.0.9.1 is taken by another program".to_owned()));
        assert!(status.view().loopback.is_ok());
        // Its owner went away.
        fixture.helper.lock().unwrap().refuse = None;
        fixture.keeper.send(ServeBridge).await.unwrap().unwrap();
        assert!(fixture.status.borrow().guests_resolver().is_some());
    });
}

#[test]
fn an_instance_keeps_to_its_port_and_takes_another_where_that_is_taken() {
    run(async {
        let instance = InstanceId([7, 7, 7]);
        let first = Sockets::on_loopback(instance).unwrap();
        let second = Sockets::on_loopback(instance).unwrap();
        let (first, second) = (first.address().unwrap(), second.address().unwrap());
        assert_eq!(first.port(), usual_port(instance));
        assert_ne!(first.port(), second.port());
        assert!(second.ip().is_loopback());
    });
}

#[test]
fn sockets_of_another_address_are_not_served() {
    let (udp, tcp) = sockets(Ipv4Addr::LOCALHOST);
    assert!(Sockets::adopt(udp, tcp, SUBNET.gateway).is_err());
    let ((udp, _), (_, tcp)) = (sockets(SUBNET.gateway), sockets(SUBNET.gateway));
    assert!(Sockets::adopt(udp, tcp, SUBNET.gateway).is_err(), "two ports");
}

#[test]
fn the_hosts_resolver_is_told_and_where_there_is_none_that_is_a_sentence() {
    for (answer, expected) in
        [(None, Ok(())), (Some("there is no systemd-resolved"), Err("there is no systemd-resolved".to_owned()))]
    {
        run(async move {
            let mut fixture = Fixture::start(ONE).await;
            assert!(fixture.status.borrow().view().routed.is_err());
            fixture.helper.lock().unwrap().no_resolved = answer.map(|why| WireError::new(ErrorKind::Host, why));
            fixture.keeper.send(ServeBridge).await.unwrap().unwrap();
            let told = fixture.status.wait_for(|status| status.routing != HostRouting::NotAsked);
            assert_eq!(tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap().view().routed, expected);
            // Guests are served in either case.
            assert!(fixture.status.borrow().guests_resolver().is_some());
        });
    }
}

#[test]
fn a_vm_from_before_the_daemons_start_is_served_without_a_word_from_the_network() {
    run(async {
        let mut fixture = Fixture::start(ONE).await;
        let _alone = fixture.follow(published(3, "alone", VmState::Running, None)).await;
        assert_eq!(fixture.helper.lock().unwrap().asked, 0, "it needs no bridge");
        let _web = fixture.follow(up(2, "web")).await;
        let serving = fixture.status.wait_for(|status| status.guests_resolver().is_some());
        drop(tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap());
        let _other = fixture.follow(up(4, "other")).await;
        assert_eq!(fixture.helper.lock().unwrap().asked, 1);
    });
}
