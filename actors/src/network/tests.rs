//! Settings, plan and uplink are pure; the actor is tried with a scripted helper.

use super::uplink::{default_interface, resolvers};
use super::{Certainty, EnsureNetwork, HostIpv6, Network, NetworkSettings, Place, Uplink, plan};
use crate::config::Config;
use crate::privileged::Perform;
use actix::{Actor, Context, Handler};
use messages::WireError;
use messages::error::ErrorKind;
use messages::ids::InstanceId;
use messages::privileged::{PrivilegedOperation, PrivilegedReply};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const ONE: InstanceId = InstanceId([0xab, 0xcd, 0xef]);

fn settings(config: &str, place: Place) -> NetworkSettings {
    NetworkSettings::new(&Config::parse(config).unwrap(), ONE, place).unwrap()
}

#[test]
fn the_usual_network_is_planned_bridge_first() {
    insta::assert_debug_snapshot!(plan(&settings("", Place::Usual), HostIpv6::No), @r#"
    [
        EnsureBridge {
            instance: InstanceId(abcdef),
            bridge: InterfaceName(
                "bbabcdef",
            ),
            subnet: Subnet {
                gateway: 172.16.0.1,
                prefix: 24,
                ipv6: None,
            },
        },
        EnsureNat {
            instance: InstanceId(abcdef),
            bridge: InterfaceName(
                "bbabcdef",
            ),
            subnet: Subnet {
                gateway: 172.16.0.1,
                prefix: 24,
                ipv6: None,
            },
        },
    ]
    "#);
}

#[test]
fn the_config_names_bridge_and_network() {
    let text = "bridge_name = \"br-banger\"\ncidr = \"192.168.7.0/28\"\nbridge_ip = \"192.168.7.14\"\ndefault_dns = [\"9.9.9.9\"]";
    for place in [Place::Usual, Place::Own] {
        let settings = settings(text, place);
        assert_eq!(settings.bridge.as_str(), "br-banger");
        assert_eq!((settings.subnet.gateway, settings.subnet.prefix), (Ipv4Addr::new(192, 168, 7, 14), 28));
        assert_eq!(settings.default_dns, [Ipv4Addr::new(9, 9, 9, 9)]);
    }
}

#[test]
fn an_instance_of_its_own_gets_a_network_beside_the_usual_one() {
    for last in 0..=255 {
        let config = Config::parse("").unwrap();
        let subnet = NetworkSettings::new(&config, InstanceId([3, 2, last]), Place::Own).unwrap().subnet;
        let [a, b, c, d] = subnet.gateway.octets();
        assert!((a, b, d, subnet.prefix) == (172, 16, 1, 24) && c >= 1, "{subnet:?}");
    }
    assert_ne!(settings("", Place::Own).subnet, settings("", Place::Usual).subnet);
}

#[test]
fn guests_have_ipv6_where_the_host_has_it_or_the_config_says_so() {
    let network = |config: &str, host| settings(config, Place::Usual).ipv6_network(host).map(|n| n.to_string());
    let derived = messages::privileged::default_network6(ONE).to_string();
    assert_eq!(network("", HostIpv6::Yes), Some(derived));
    assert_eq!(network("", HostIpv6::No), None);
    assert_eq!(network("cidr6 = \"off\"", HostIpv6::Yes), None);
    for host in [HostIpv6::Yes, HostIpv6::No] {
        assert_eq!(network("cidr6 = \"fd12::/64\"", host).as_deref(), Some("fd12::"));
    }
    for operation in plan(&settings("", Place::Own), HostIpv6::Yes) {
        let (PrivilegedOperation::EnsureBridge { subnet, .. } | PrivilegedOperation::EnsureNat { subnet, .. }) =
            operation
        else {
            panic!("{operation:?}")
        };
        assert_eq!(subnet.ipv6, Some(messages::privileged::default_network6(ONE)));
    }
}

#[test]
fn a_host_has_ipv6_by_a_default_route_that_leads_somewhere() {
    let zeros = "0".repeat(32);
    let route = |to: &str, length: &str, flags: &str, name: &str| {
        format!("{to} {length} {zeros} 00 {zeros} 00000400 00000002 00000000 {flags} {name}\n")
    };
    let addresses = format!("{zeros} 02 40 00 80     eth0\n{zeros} 03 40 20 80    wlan0\n");
    let of = |routes: &str| HostIpv6::of(routes, &addresses);
    let rejecting = route(&zeros, "00", "00200200", "lo");
    assert_eq!(of(&format!("{}{rejecting}", route(&zeros, "00", "00000003", "eth0"))), HostIpv6::Yes);
    for none in [
        rejecting,
        String::new(),
        route(&zeros, "00", "00000003", "wlan0"),
        route(&"f".repeat(32), "00", "00000003", "eth0"),
        route(&zeros, "40", "00000003", "eth0"),
        "nonsense\n".to_owned(),
    ] {
        assert_eq!(of(&none), HostIpv6::No, "{none}");
    }
}

#[test]
fn the_uplink_is_the_default_route_with_the_smallest_metric() {
    let routes = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
tun0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000080\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
";
    assert_eq!(default_interface(routes), Some("eth0"));
    for none in ["", "Iface\n", "x\t00000000", &routes.replace("00000000\t0101", "00000001\t0101")] {
        assert_eq!(default_interface(none), None);
    }
}

#[test]
fn resolvers_that_a_guest_cannot_reach_are_left_out() {
    let text = "# a comment\nsearch lan\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 0.0.0.0\n\
                nameserver 192.168.1.1 \n nameserver\t10.0.0.1 # second\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver 2001:db8::1\n\
                nameserver 10.0.0.2\nnameserver 10.0.0.3\noptions edns0";
    let found: Vec<String> = resolvers(text, IpAddr::is_ipv4).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["192.168.1.1", "10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let found: Vec<String> = resolvers(text, |_| true).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["192.168.1.1", "10.0.0.1", "2001:db8::1", "10.0.0.2", "10.0.0.3"]);
    assert!(resolvers("nameserver 127.0.0.53\noptions edns0 trust-ad\n", |_| true).is_empty());
}

#[test]
fn guests_ask_the_daemon_first_and_the_hosts_resolvers_while_it_is_away() {
    let hosts: Vec<Ipv4Addr> = (1..=3).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
    let uplink = Uplink { resolvers: hosts.clone(), ..Uplink::default() };
    assert_eq!(uplink.for_guests(), hosts);
    let own = Ipv4Addr::new(172, 16, 0, 1);
    // A host that asks us for `.vm` may list us, too.
    let listed = Uplink { own_resolver: Some(own), resolvers: [&[own][..], &hosts].concat(), ..Uplink::default() };
    assert_eq!(listed.for_guests(), [own, hosts[0], hosts[1]]);
    assert_eq!(Uplink { own_resolver: Some(own), ..uplink }.for_guests(), [own, hosts[0], hosts[1]]);
    assert_eq!(Uplink { own_resolver: Some(own), ..Uplink::default() }.for_guests(), [own]);
}

/// Fails as often as it is told, and counts.
struct Helper {
    failures: usize,
    kind: ErrorKind,
    performed: Arc<Mutex<Vec<PrivilegedOperation>>>,
}

impl Actor for Helper {
    type Context = Context<Self>;
}

impl Handler<Perform> for Helper {
    type Result = Result<PrivilegedReply, WireError>;
    fn handle(&mut self, Perform(operation): Perform, _: &mut Context<Self>) -> Self::Result {
        self.performed.lock().unwrap().push(operation);
        if self.failures == 0 {
            return Ok(PrivilegedReply::Done);
        }
        self.failures -= 1;
        Err(WireError::new(self.kind, "no"))
    }
}

#[test]
fn it_is_brought_about_once_and_again_when_missed() {
    actix::System::new().block_on(async {
        let performed = Arc::new(Mutex::new(Vec::new()));
        let helper = Helper { failures: 1, kind: ErrorKind::Host, performed: Arc::clone(&performed) }.start();
        let network = Network::new(settings("", Place::Usual), helper.recipient()).with_host(|| HostIpv6::No).start();
        let count = || performed.lock().unwrap().len();

        let failed = network.send(EnsureNetwork(Certainty::Remembered)).await.unwrap().unwrap_err();
        assert_eq!((failed.kind, count()), (ErrorKind::Host, 1), "stops at the first failure");

        let asked = (0..50).map(|_| network.send(EnsureNetwork(Certainty::Remembered)));
        assert!(futures::future::join_all(asked).await.into_iter().all(|r| r.unwrap().is_ok()));
        assert_eq!(count(), 3, "fifty askers, one attempt");

        network.send(EnsureNetwork(Certainty::Fresh)).await.unwrap().unwrap();
        assert_eq!(count(), 5);
    });
}

#[test]
fn who_asked_while_a_silent_helper_was_waited_for_does_not_wait_again() {
    actix::System::new().block_on(async {
        let performed = Arc::new(Mutex::new(Vec::new()));
        let helper = Helper { failures: 1, kind: ErrorKind::Timeout, performed: Arc::clone(&performed) }.start();
        let network = Network::new(settings("", Place::Usual), helper.recipient()).with_host(|| HostIpv6::No).start();
        let ask = || network.send(EnsureNetwork(Certainty::Fresh));
        for answer in futures::future::join_all((0..50).map(|_| ask())).await {
            assert_eq!(answer.unwrap().unwrap_err().kind, ErrorKind::Timeout);
        }
        assert_eq!(performed.lock().unwrap().len(), 1, "fifty askers, one attempt");
    });
}

#[test]
fn ipv6_comes_when_the_host_gets_it_and_stays() {
    static HOST: AtomicBool = AtomicBool::new(false);
    let host = || if HOST.load(Ordering::SeqCst) { HostIpv6::Yes } else { HostIpv6::No };
    actix::System::new().block_on(async {
        let performed = Arc::new(Mutex::new(Vec::new()));
        let helper = Helper { failures: 0, kind: ErrorKind::Host, performed: Arc::clone(&performed) }.start();
        let network = Network::new(settings("", Place::Usual), helper.recipient()).with_host(host);
        let published = network.ipv6();
        let network = network.start();
        let expected = messages::privileged::default_network6(ONE);
        for (has, expected) in [(false, None), (true, Some(expected)), (false, Some(expected))] {
            HOST.store(has, Ordering::SeqCst);
            network.send(EnsureNetwork(Certainty::Fresh)).await.unwrap().unwrap();
            assert_eq!(*published.borrow(), expected);
            let asked = performed.lock().unwrap().pop();
            let Some(PrivilegedOperation::EnsureNat { subnet, .. }) = asked else { panic!("{asked:?}") };
            assert_eq!(subnet.ipv6, expected);
        }
    });
}
