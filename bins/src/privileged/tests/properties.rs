//! Whatever arrives: nothing invalid reaches the host, and nothing foreign is touched.

use super::double::Double;
use crate::privileged::host::{LinkKind, Route};
use crate::privileged::ops::Operations;
use crate::privileged::validate::check;
use messages::ids::{InstanceId, InterfaceName};
use messages::limits::TAPS_MAX;
use messages::privileged::{Grant, GrantTarget, PrivilegedOperation, Subnet, TapNumber, default_bridge_name};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

const OWNER: u32 = 1000;

fn instance() -> impl Strategy<Value = InstanceId> {
    // Few ids, so that they meet.
    (0..3_u8, 0..3_u8).prop_map(|(a, b)| InstanceId([a, b, 0xaa]))
}

fn interface() -> impl Strategy<Value = InterfaceName> {
    prop_oneof![
        instance().prop_map(default_bridge_name),
        "[a-z][a-z0-9-]{0,14}".prop_map(|name| name.parse().unwrap()),
        prop::sample::select(vec!["lo", "eth0", "docker0", "bt0000aa-1", "br-theirs", "all"])
            .prop_map(|n| n.parse().unwrap()),
    ]
}

fn subnet() -> impl Strategy<Value = Subnet> {
    let address = prop_oneof![any::<u32>().prop_map(Ipv4Addr::from), (0..=255_u8).prop_map(|n| [172, 16, 0, n].into())];
    let ipv6 = prop_oneof![
        Just(None),
        (any::<[u8; 7]>(), any::<bool>()).prop_map(|(middle, whole)| {
            let mut octets = [0; 16];
            octets[0] = 0xfd;
            octets[1..8].copy_from_slice(&middle);
            octets[15] = u8::from(whole);
            Some(Ipv6Addr::from(octets))
        }),
        any::<u128>().prop_map(|bits| Some(Ipv6Addr::from(bits))),
        prop::sample::select(vec!["fd00:ec2::", "fd20:ce:0:1::", "fd00:ec3::", "2001:db8::", "fe80::", "::", "fc00::"])
            .prop_map(|text| Some(text.parse().unwrap())),
    ];
    (address, any::<u8>(), ipv6).prop_map(|(gateway, prefix, ipv6)| Subnet { gateway, prefix: prefix % 40, ipv6 })
}

fn grant() -> impl Strategy<Value = Grant> {
    let tap = || prop_oneof![(0..16_u16).prop_map(TapNumber), any::<u16>().prop_map(TapNumber)];
    let to = prop_oneof![
        tap().prop_map(GrantTarget::Tap),
        any::<u16>().prop_map(GrantTarget::Tcp),
        (0..2_u16).prop_map(GrantTarget::Udp),
    ];
    (tap(), to).prop_map(|(from, to)| Grant { from, to })
}

fn operation() -> impl Strategy<Value = PrivilegedOperation> {
    use PrivilegedOperation as Op;
    let tap = any::<u16>().prop_map(TapNumber);
    let few = (0..4_u16).prop_map(TapNumber);
    let tap = prop_oneof![tap, few];
    prop_oneof![
        (instance(), interface(), subnet()).prop_map(|(instance, bridge, subnet)| Op::EnsureBridge {
            instance,
            bridge,
            subnet
        }),
        (instance(), interface(), tap.clone(), any::<Option<u16>>())
            .prop_map(|(instance, bridge, tap, mtu)| Op::EnsureTap { instance, bridge, tap, mtu }),
        (instance(), tap).prop_map(|(instance, tap)| Op::RemoveTap { instance, tap }),
        (instance(), interface(), subnet()).prop_map(|(instance, bridge, subnet)| Op::EnsureNat {
            instance,
            bridge,
            subnet
        }),
        (instance(), interface(), subnet()).prop_map(|(instance, bridge, subnet)| Op::BindDns {
            instance,
            bridge,
            subnet
        }),
        (instance(), interface(), subnet()).prop_map(|(instance, bridge, subnet)| Op::RouteNames {
            instance,
            bridge,
            subnet
        }),
        (instance(), interface(), subnet(), prop::collection::vec(grant(), 0..4))
            .prop_map(|(instance, bridge, subnet, grants)| Op::SetGrants { instance, bridge, subnet, grants }),
        instance().prop_map(|instance| Op::ListTaps { instance }),
        instance().prop_map(|instance| Op::RemoveInstance { instance }),
    ]
}

/// The rules again, written the other way round: by what a field must not be.
fn is_acceptable(operation: &PrivilegedOperation) -> bool {
    use PrivilegedOperation as Op;
    let bridge_is_fine = |instance: &InstanceId, bridge: &InterfaceName| {
        let name = bridge.as_str();
        let hex = |s: &str| s.len() == 6 && s.chars().all(|c| c.is_ascii_hexdigit());
        let derived = name.starts_with("bb") && hex(&name[2..])
            || name.starts_with("bt") && name.len() > 8 && hex(&name[2..8]) && name.as_bytes()[8] == b'-';
        !["lo", "all", "default"].contains(&name) && (!derived || name == format!("bb{instance}"))
    };
    let subnet_is_fine = |subnet: &Subnet| {
        let [a, b, ..] = subnet.gateway.octets();
        let private = a == 10 || (a == 172 && (16..32).contains(&b)) || (a == 192 && b == 168);
        let clouds = ["fd00:0ec2", "fd20:00ce"];
        let network_is_fine = subnet.ipv6.is_none_or(|network| {
            let digits = network.segments().map(|segment| format!("{segment:04x}")).join(":");
            digits.starts_with("fd")
                && digits.ends_with(":0000:0000:0000:0000")
                && !clouds.iter().any(|cloud| digits.starts_with(cloud))
        });
        if !network_is_fine || !private || subnet.prefix < 16 || subnet.prefix > 29 {
            return false;
        }
        let hosts = 1_u64 << (32 - subnet.prefix);
        let host = u64::from(u32::from(subnet.gateway)) % hosts;
        host != 0 && host != hosts - 1
    };
    match operation {
        Op::Status | Op::ListTaps { .. } | Op::RemoveInstance { .. } => true,
        Op::EnsureBridge { instance, bridge, subnet }
        | Op::EnsureNat { instance, bridge, subnet }
        | Op::BindDns { instance, bridge, subnet }
        | Op::RouteNames { instance, bridge, subnet } => bridge_is_fine(instance, bridge) && subnet_is_fine(subnet),
        Op::EnsureTap { instance, bridge, tap, mtu } => {
            bridge_is_fine(instance, bridge) && tap.0 < TAPS_MAX && mtu.is_none_or(|mtu| (576..=65521).contains(&mtu))
        }
        Op::RemoveTap { tap, .. } => tap.0 < TAPS_MAX,
        Op::SetGrants { instance, bridge, subnet, grants } => {
            let hosts = 1_u64 << (32 - u32::from(subnet.prefix.min(32)));
            let has_address = |tap: TapNumber| {
                let host = u64::from(tap.0) + 2;
                tap.0 < TAPS_MAX && host < hosts - 1 && host != u64::from(u32::from(subnet.gateway)) % hosts
            };
            bridge_is_fine(instance, bridge)
                && subnet_is_fine(subnet)
                && grants.iter().all(|grant| {
                    has_address(grant.from)
                        && match grant.to {
                            GrantTarget::Tap(tap) => has_address(tap),
                            GrantTarget::Tcp(port) | GrantTarget::Udp(port) => port != 0,
                        }
                })
        }
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #[test]
    fn what_is_invalid_never_reaches_the_host(operation in operation()) {
        let host = Double::default();
        let result = run(Operations::new(host.clone(), OWNER).perform(&operation));
        prop_assert_eq!(check(&operation, OWNER).is_ok(), is_acceptable(&operation));
        if !is_acceptable(&operation) {
            prop_assert!(result.is_err());
            prop_assert_eq!(host.with(|s| s.calls.len()), 0);
        }
    }

    #[test]
    fn what_others_own_is_never_touched(operations in prop::collection::vec(operation(), 1..40)) {
        let host = Double::default();
        let foreign = host.with(|s| {
            s.routes.push(Route { destination: [172, 16, 0, 0].into(), prefix: 28, interface: Some(99) });
            s.add_link("eth0", LinkKind::Other, None);
            s.add_link("docker0", LinkKind::Bridge, None);
            s.add_link("bt0000aa-1", LinkKind::Tap { owner: Some(0) }, None);
            s.add_link("bb0101aa", LinkKind::Bridge, Some("somebody's"));
            // Another user's, who has a helper, too.
            s.add_link("br-theirs", LinkKind::Bridge, Some("banger:1001:0202aa"));
            s.add_link("bt0202aa-2", LinkKind::Tap { owner: Some(1001) }, Some("banger:1001:0202aa"));
            s.links.clone()
        });
        let mut helper = Operations::new(host.clone(), OWNER);
        run(async {
            for operation in &operations {
                helper.perform(operation).await.ok();
            }
        });
        host.with(|s| {
            for (index, link) in &foreign {
                prop_assert_eq!(s.links.get(index), Some(link));
            }
            // Whatever was made carries the mark of an instance, and every tap that is up is isolated.
            for link in s.links.values().filter(|link| !foreign.contains_key(&link.index)) {
                prop_assert!(link.alias.as_ref().is_some_and(|alias| alias.starts_with("banger:1000:")));
                prop_assert!(link.kind == LinkKind::Bridge || s.isolated.contains(&link.index));
                prop_assert!(!link.name.contains("0202aa"));
            }
            prop_assert!(s.tables.keys().all(|(_, name)| name.starts_with("banger_1000_") && !name.ends_with("0202aa")));
            Ok(())
        })?;
    }
}
