//! The actor: fast leases, a helper that fails or is not there, two hundred VMs, a restart.

use crate::network::{Certainty, EnsureNetwork, Ipv6Use, Network, NetworkSettings, Uplink, UplinkSource};
use crate::privileged::Perform;
use crate::taps::{Lease, PoolFigures, PoolSettings, Return, ReturnAll, TapLease, TapPool, Usage};
use actix::{Actor, Addr, Context, Handler, ResponseFuture, Supervisor};
use messages::WireError;
use messages::error::ErrorKind;
use messages::guest::{GuestNetwork, GuestNetwork6};
use messages::ids::{InstanceId, VmId};
use messages::privileged::{
    Grant, GrantTarget, PrivilegedOperation, PrivilegedReply, Subnet, TapNumber, default_bridge_name,
};
use messages::vm::NetAllow;
use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const ONE: InstanceId = InstanceId([0xab, 0xcd, 0xef]);
const LIMIT: Duration = Duration::from_secs(20);

/// The helper's side of the world.
#[derive(Default)]
struct World {
    bridge: bool,
    taps: BTreeSet<TapNumber>,
    /// Set where the helper is not there.
    absent: bool,
    asked: usize,
    /// Whether the rules are there; false again once somebody took them.
    rules: bool,
    /// What they let through, and how often that was written.
    grants: Vec<Grant>,
    grantings: usize,
}

struct Helper(Arc<Mutex<World>>);

impl Actor for Helper {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1024);
    }
}

impl Handler<Perform> for Helper {
    type Result = ResponseFuture<Result<PrivilegedReply, WireError>>;

    fn handle(&mut self, Perform(operation): Perform, _: &mut Context<Self>) -> Self::Result {
        let world = Arc::clone(&self.0);
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut world = world.lock().unwrap();
            world.asked += 1;
            if world.absent {
                return Err(WireError::new(ErrorKind::Host, "the network helper does not run"));
            }
            match operation {
                PrivilegedOperation::EnsureBridge { .. } => world.bridge = true,
                PrivilegedOperation::EnsureTap { tap, .. } if world.bridge => {
                    world.taps.insert(tap);
                }
                PrivilegedOperation::EnsureTap { .. } | PrivilegedOperation::EnsureNat { .. } if !world.bridge => {
                    return Err(WireError::new(ErrorKind::NotFound, "the bridge does not exist"));
                }
                PrivilegedOperation::RemoveTap { tap, .. } => {
                    world.taps.remove(&tap);
                }
                PrivilegedOperation::ListTaps { .. } => {
                    return Ok(PrivilegedReply::Taps(world.taps.iter().copied().collect()));
                }
                PrivilegedOperation::EnsureNat { .. } if !world.rules => {
                    world.rules = true;
                    world.grants.clear();
                    return Ok(PrivilegedReply::Rewritten);
                }
                PrivilegedOperation::SetGrants { .. } if !world.rules => {
                    return Err(WireError::new(ErrorKind::NotFound, "the table does not exist"));
                }
                PrivilegedOperation::SetGrants { grants, .. } if !grants.is_empty() && !world.bridge => {
                    return Err(WireError::new(ErrorKind::NotFound, "the bridge does not exist"));
                }
                PrivilegedOperation::SetGrants { grants, .. } => {
                    world.grants = grants;
                    world.grantings += 1;
                }
                _ => {}
            }
            Ok(PrivilegedReply::Done)
        })
    }
}

struct FixedUplink;

impl UplinkSource for FixedUplink {
    fn read(&self) -> Uplink {
        Uplink {
            mtu: Some(1400),
            resolvers: vec![Ipv4Addr::new(192, 168, 1, 1)],
            own_resolver: None,
            ipv6: Some(std::net::Ipv6Addr::new(0xfd12, 0, 0, 0, 0, 0, 0, 0)),
        }
    }
}

struct Fixture {
    world: Arc<Mutex<World>>,
    pool: Addr<TapPool>,
    network: Addr<Network>,
}

impl Fixture {
    fn start(world: World, prefix: u8, size: usize, leases: Vec<(VmId, TapNumber)>) -> Self {
        let world = Arc::new(Mutex::new(world));
        let network = NetworkSettings {
            instance: ONE,
            bridge: default_bridge_name(ONE),
            subnet: Subnet { gateway: Ipv4Addr::new(172, 16, 0, 1), prefix, ipv6: None },
            ipv6: Ipv6Use::WithTheHost,
            default_dns: Vec::new(),
        };
        let helper = Helper(Arc::clone(&world)).start();
        let keeper = Network::new(network.clone(), helper.clone().recipient()).start();
        let settings = PoolSettings { network, size, uplink: Box::new(FixedUplink), leases, allow: HashMap::new() };
        let asked = keeper.clone().recipient();
        let pool = Supervisor::start(move |_| TapPool::new(settings, helper.recipient(), asked));
        Self { world, pool, network: keeper }
    }

    async fn lease(&self, vm: u8) -> Result<TapLease, WireError> {
        self.pool.send(Lease { vm: id(vm), wanted: None, allow: Vec::new() }).await.unwrap()
    }

    async fn lease_allowed(&self, vm: u8, wanted: u16, allow: Vec<NetAllow>) -> TapNumber {
        let lease = Lease { vm: id(vm), wanted: Some(TapNumber(wanted)), allow };
        self.pool.send(lease).await.unwrap().unwrap().number
    }

    fn grants(&self) -> Vec<Grant> {
        self.world.lock().unwrap().grants.clone()
    }

    async fn figures(&self) -> PoolFigures {
        self.pool.send(Usage).await.unwrap().unwrap()
    }

    async fn until(&self, what: &str, holds: impl Fn(&PoolFigures, &World) -> bool) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let figures = self.figures().await;
            if holds(&figures, &self.world.lock().unwrap()) {
                return;
            }
            assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}; {figures:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn id(vm: u8) -> VmId {
    VmId([vm; 8])
}

fn taps(numbers: impl IntoIterator<Item = u16>) -> BTreeSet<TapNumber> {
    numbers.into_iter().map(TapNumber).collect()
}

#[test]
fn a_lease_from_a_full_pool_is_quick_and_complete() {
    actix::System::new().block_on(async {
        let fixture = Fixture::start(World::default(), 24, 4, Vec::new());
        fixture.until("four taps are ready", |f, _| f.ready == 4).await;
        let mut times = Vec::new();
        for vm in 0..40 {
            let start = Instant::now();
            fixture.lease(vm).await.unwrap();
            times.push(start.elapsed());
            fixture.until("the pool is full again", |f, _| f.ready == 4).await;
        }
        times.sort();
        // The promise is 1 ms; a machine that is busy with other tests gets ten.
        assert!(times[times.len() / 2] < Duration::from_millis(10), "{times:?}");
        let lease = fixture.lease(0).await.unwrap();
        assert_eq!((lease.name.as_str(), lease.address), ("btabcdef-0", Ipv4Addr::new(172, 16, 0, 2)));
        assert_eq!(
            GuestNetwork::from(lease),
            GuestNetwork {
                mac: [6, 0xab, 0xcd, 0xef, 0, 0],
                address: Ipv4Addr::new(172, 16, 0, 2),
                prefix: 24,
                gateway: Ipv4Addr::new(172, 16, 0, 1),
                mtu: Some(1400),
                resolvers: vec![Ipv4Addr::new(192, 168, 1, 1)],
                ipv6: Some(GuestNetwork6 {
                    address: "fd12::172.16.0.2".parse().unwrap(),
                    gateway: "fd12::1".parse().unwrap(),
                    gateway_mac: [2, 0xab, 0xcd, 0xef, 0xff, 0xff],
                }),
            }
        );
    });
}

#[test]
fn two_hundred_vms_at_once_get_two_hundred_taps() {
    actix::System::new().block_on(async {
        let fixture = Fixture::start(World::default(), 24, 4, Vec::new());
        let leases = futures::future::join_all((0..200).map(|vm| fixture.lease(vm))).await;
        let distinct: BTreeSet<TapNumber> = leases.iter().map(|lease| lease.as_ref().unwrap().number).collect();
        assert_eq!(distinct.len(), 200);
        assert!(distinct.is_subset(&fixture.world.lock().unwrap().taps), "every lease has its device");
        let returns = (0..200).map(|vm| fixture.pool.send(Return { vm: id(vm) }));
        futures::future::join_all(returns).await;
        fixture.until("the surplus is gone", |f, w| f.leased == 0 && f.ready == 4 && w.taps.len() == 4).await;
    });
}

#[test]
fn a_full_network_refuses_with_the_figures() {
    actix::System::new().block_on(async {
        let fixture = Fixture::start(World::default(), 29, 8, Vec::new());
        for vm in 0..5 {
            fixture.lease(vm).await.unwrap();
        }
        let refused = fixture.lease(9).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Resources);
        assert_eq!(refused.chain, ["all 5 addresses of the VMs' network are taken"]);
        fixture.pool.send(Return { vm: id(2) }).await.unwrap().unwrap();
        assert_eq!(fixture.lease(9).await.unwrap().number, TapNumber(2));
    });
}

#[test]
fn what_an_earlier_daemon_left_is_adopted_or_removed() {
    actix::System::new().block_on(async {
        let world = World { bridge: true, taps: taps([0, 1, 2, 3, 7, 9]), ..World::default() };
        let fixture = Fixture::start(world, 24, 2, vec![(id(1), TapNumber(9)), (id(2), TapNumber(30))]);
        // 9 and 30 are held, 0 and 1 are kept ready, 2, 3 and 7 are surplus; 30 is made anew.
        fixture.until("it is settled", |f, w| f.ready == 2 && w.taps == taps([0, 1, 9, 30])).await;
        assert_eq!(fixture.lease(1).await.unwrap().number, TapNumber(9));
        assert_eq!(fixture.lease(2).await.unwrap().number, TapNumber(30));
        fixture.pool.send(ReturnAll { except: vec![id(1)] }).await.unwrap().unwrap();
        fixture.until("only one is held", |f, w| f.leased == 1 && w.taps.len() == 3).await;
    });
}

#[test]
fn an_absent_helper_is_reported_and_recovered_from() {
    actix::System::new().block_on(async {
        let world = World { absent: true, ..World::default() };
        let fixture = Fixture::start(world, 24, 2, vec![(id(1), TapNumber(5))]);
        let failed = fixture.lease(3).await.unwrap_err();
        assert_eq!(failed.kind, ErrorKind::Host);
        assert!(fixture.lease(1).await.is_err());
        // The failed one holds nothing; what a VM had before stays its own.
        assert_eq!(fixture.figures().await.leased, 1);
        fixture.world.lock().unwrap().absent = false;
        assert_eq!(fixture.lease(1).await.unwrap().number, TapNumber(5));
        fixture.until("the pool fills up by itself", |f, _| f.ready == 2).await;
    });
}

#[test]
fn a_bridge_that_vanished_is_made_again() {
    actix::System::new().block_on(async {
        let fixture = Fixture::start(World::default(), 24, 0, Vec::new());
        fixture.lease(1).await.unwrap();
        {
            let mut world = fixture.world.lock().unwrap();
            world.bridge = false;
            world.taps.clear();
        }
        fixture.lease(2).await.unwrap();
        assert!(fixture.world.lock().unwrap().bridge);
        fixture.network.send(EnsureNetwork(Certainty::Remembered)).await.unwrap().unwrap();
    });
}

#[test]
fn a_panic_keeps_the_leases() {
    /// Panics as often as it is told.
    struct Fragile(Arc<Mutex<usize>>);
    impl UplinkSource for Fragile {
        fn read(&self) -> Uplink {
            let mut left = self.0.lock().unwrap();
            if *left > 0 {
                *left -= 1;
                drop(left);
                panic!("as told");
            }
            Uplink::default()
        }
    }
    actix::System::new().block_on(async {
        let plain = Fixture::start(World::default(), 24, 1, Vec::new());
        let helper = Helper(Arc::clone(&plain.world)).start();
        let panics = Arc::new(Mutex::new(0));
        let settings = PoolSettings {
            network: NetworkSettings {
                instance: ONE,
                bridge: default_bridge_name(ONE),
                subnet: Subnet { gateway: Ipv4Addr::new(172, 16, 0, 1), prefix: 24, ipv6: None },
                ipv6: Ipv6Use::WithTheHost,
                default_dns: Vec::new(),
            },
            size: 1,
            uplink: Box::new(Fragile(Arc::clone(&panics))),
            leases: Vec::new(),
            allow: HashMap::new(),
        };
        let asked = plain.network.clone().recipient();
        let pool = Supervisor::start(move |_| TapPool::new(settings, helper.recipient(), asked));
        let lease = |vm| pool.send(Lease { vm: id(vm), wanted: None, allow: Vec::new() });
        let first = lease(1).await.unwrap().unwrap();
        *panics.lock().unwrap() = 1;
        let failed = lease(1).await.unwrap().unwrap_err();
        assert_eq!(failed.kind, ErrorKind::Internal);
        assert_eq!(lease(1).await.unwrap().unwrap().number, first.number);
        assert_ne!(lease(2).await.unwrap().unwrap().number, first.number);
    });
}

#[test]
fn grants_are_there_with_the_lease_and_gone_before_its_next_holder() {
    actix::System::new().block_on(async {
        let fixture = Fixture::start(World::default(), 24, 2, Vec::new());
        let to_two = || vec![NetAllow::Vm(id(2).to_string().parse().unwrap()), NetAllow::HostTcp(80)];
        let (from, to) = (TapNumber(0), TapNumber(1));
        let port = Grant { from, to: GrantTarget::Tcp(80) };
        let pair = Grant { from, to: GrantTarget::Tap(to) };

        assert_eq!(fixture.lease_allowed(1, 0, to_two()).await, from);
        assert_eq!(fixture.grants(), [port], "the peer is not there yet");
        assert_eq!(fixture.lease_allowed(2, 1, Vec::new()).await, to);
        assert_eq!(fixture.grants(), [pair, port]);

        // The peer goes; whoever gets its address is not the peer.
        fixture.pool.send(Return { vm: id(2) }).await.unwrap().unwrap();
        assert_eq!(fixture.lease_allowed(3, 1, Vec::new()).await, to);
        assert_eq!(fixture.grants(), [port]);
        fixture.pool.send(Return { vm: id(1) }).await.unwrap().unwrap();
        assert_eq!(fixture.lease_allowed(4, 0, Vec::new()).await, from);
        assert_eq!(fixture.grants(), []);
        // Those who are allowed nothing cost nothing.
        let before = fixture.world.lock().unwrap().grantings;
        for vm in 5..20 {
            fixture.lease(vm).await.unwrap();
        }
        assert_eq!(fixture.world.lock().unwrap().grantings, before);
    });
}

#[test]
fn grants_come_back_with_the_rules() {
    actix::System::new().block_on(async {
        let fixture = Fixture::start(World::default(), 24, 1, Vec::new());
        let port = Grant { from: TapNumber(0), to: GrantTarget::Udp(69) };
        fixture.lease_allowed(1, 0, vec![NetAllow::HostUdp(69)]).await;
        assert_eq!(fixture.grants(), [port]);
        // A reload of the host's firewall takes everything; the next who needs the rules has them written again.
        {
            let mut world = fixture.world.lock().unwrap();
            world.rules = false;
            world.grants.clear();
        }
        fixture.lease_allowed(2, 1, vec![NetAllow::HostTcp(1)]).await;
        assert_eq!(fixture.grants(), [port, Grant { from: TapNumber(1), to: GrantTarget::Tcp(1) }]);
    });
}
