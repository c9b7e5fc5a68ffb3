//! The daemon's own actors against this server, on a real socket, with the double as the host.

use super::double::Double;
use super::server::{Helper, own_uid};
use actix::{Actor, Supervisor};
use actors::config::Config;
use actors::network::{Network, NetworkSettings, Place, Uplink, UplinkSource};
use actors::privileged::{DnsSockets, Perform, PerformBindDns, PrivilegedClient};
use actors::taps::{Lease, PoolSettings, TapPool};
use messages::ErrorKind;
use messages::ids::{InstanceId, VmId};
use messages::privileged::{PrivilegedOperation, PrivilegedReply, Subnet, default_bridge_name};
use std::net::Ipv4Addr;

const ONE: InstanceId = InstanceId([0xab, 0xcd, 0xef]);

struct Fixed;

impl UplinkSource for Fixed {
    fn read(&self) -> Uplink {
        Uplink { mtu: Some(1400), ..Uplink::default() }
    }
}

fn pool(helper: &Helper) -> actix::Addr<TapPool> {
    let client = PrivilegedClient::new(helper.path.clone()).start();
    let network = NetworkSettings::new(&Config::parse("").unwrap(), ONE, Place::Usual).unwrap();
    let keeper = Network::new(network.clone(), client.clone().recipient()).start();
    let settings = PoolSettings {
        network,
        size: 0,
        uplink: Box::new(Fixed),
        leases: Vec::new(),
        allow: std::collections::HashMap::new(),
    };
    Supervisor::start(move |_| TapPool::new(settings, client.recipient(), keeper.recipient()))
}

#[test]
fn a_lease_makes_the_bridge_the_rules_and_then_the_tap() {
    actix::System::new().block_on(async {
        let host = Double::default();
        let helper = Helper::start(&host, own_uid());
        let pool = pool(&helper);
        let lease = pool.send(Lease { vm: VmId([1; 8]), wanted: None, allow: Vec::new() }).await.unwrap().unwrap();
        assert_eq!((lease.name.as_str(), lease.address), ("btabcdef-0", Ipv4Addr::new(172, 16, 0, 2)));
        host.with(|s| {
            let position = |call: &str| s.calls.iter().position(|c| c.starts_with(call)).unwrap();
            assert!(position("create_bridge") < position("replace_table"));
            assert!(position("replace_table") < position("create_tap"), "no tap before the rules");
            assert!(s.named("btabcdef-0").unwrap().up && s.forwarding);
        });
    });
}

#[test]
fn what_the_kernel_refuses_reaches_the_caller_with_its_reason() {
    actix::System::new().block_on(async {
        let host = Double::default();
        let helper = Helper::start(&host, own_uid());
        let pool = pool(&helper);
        host.fail("create_tap", 1);
        let failed = pool.send(Lease { vm: VmId([1; 8]), wanted: None, allow: Vec::new() }).await.unwrap().unwrap_err();
        assert_eq!(failed.kind, ErrorKind::Host);
        assert!(failed.to_string().contains("Operation not permitted"), "{failed}");
        pool.send(Lease { vm: VmId([1; 8]), wanted: None, allow: Vec::new() }).await.unwrap().unwrap();
    });
}

#[test]
fn status_names_the_owner() {
    actix::System::new().block_on(async {
        let helper = Helper::start(&Double::default(), own_uid());
        let client = PrivilegedClient::new(helper.path.clone()).start();
        let status = client.send(Perform(PrivilegedOperation::Status)).await.unwrap();
        assert!(matches!(status, Ok(PrivilegedReply::Status { owner_uid, .. }) if owner_uid == own_uid()));
    });
}

#[test]
fn the_sockets_of_port_53_arrive_with_their_answer() {
    actix::System::new().block_on(async {
        let host = Double::default();
        let helper = Helper::start(&host, own_uid());
        let client = PrivilegedClient::new(helper.path.clone()).start();
        let (bridge, subnet) =
            (default_bridge_name(ONE), Subnet { gateway: Ipv4Addr::new(172, 16, 0, 1), prefix: 24, ipv6: None });
        let bind = PerformBindDns { instance: ONE, bridge: bridge.clone(), subnet };
        let missing = client.send(bind.clone()).await.unwrap().unwrap_err();
        assert_eq!(missing.kind, ErrorKind::NotFound, "{missing}");
        let made = PrivilegedOperation::EnsureBridge { instance: ONE, bridge, subnet };
        client.send(Perform(made)).await.unwrap().unwrap();
        // Others at the same time get what is theirs.
        let status = || client.send(Perform(PrivilegedOperation::Status));
        let (before, sockets, after) = tokio::join!(status(), client.send(bind.clone()), status());
        assert!(before.unwrap().is_ok() && after.unwrap().is_ok());
        let DnsSockets { udp, tcp } = sockets.unwrap().unwrap();
        let (udp, tcp) = (std::net::UdpSocket::from(udp), std::net::TcpListener::from(tcp));
        assert!(udp.local_addr().unwrap().ip().is_loopback());
        std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();

        host.with(|s| s.port_taken = true);
        let taken = client.send(bind).await.unwrap().unwrap_err();
        assert_eq!(
            (taken.kind, taken.to_string().as_str()),
            (ErrorKind::Conflict, "port 53 of 172.16.0.1 is taken by another program")
        );
    });
}
