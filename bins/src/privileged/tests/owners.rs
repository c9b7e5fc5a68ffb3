//! Two users of one host, each with a helper: who asks names the instance, and may name the other's.

use super::double::Double;
use crate::privileged::host::LinkKind;
use crate::privileged::nft::KnownRule;
use crate::privileged::ops::{OperationError, Operations};
use messages::ids::{InstanceId, InterfaceName};
use messages::privileged::{
    Grant, GrantTarget, PrivilegedOperation, PrivilegedReply, Subnet, TapNumber, default_bridge_name,
};
use std::net::Ipv4Addr;

const ME: u32 = 1000;
const NEIGHBOUR: u32 = 1001;
const THEIRS: InstanceId = InstanceId([0xab, 0xcd, 0xef]);
const SUBNET: Subnet = Subnet { gateway: Ipv4Addr::new(172, 16, 0, 1), prefix: 24, ipv6: None };

async fn perform(owner: u32, host: &Double, operation: PrivilegedOperation) -> Result<PrivilegedReply, OperationError> {
    Operations::new(host.clone(), owner).perform(&operation).await.map(|performed| performed.reply)
}

fn bridge(name: &InterfaceName, third: u8) -> PrivilegedOperation {
    let subnet = Subnet { gateway: Ipv4Addr::new(172, 16, third, 1), ..SUBNET };
    PrivilegedOperation::EnsureBridge { instance: THEIRS, bridge: name.clone(), subnet }
}

fn nat(name: &InterfaceName) -> PrivilegedOperation {
    PrivilegedOperation::EnsureNat { instance: THEIRS, bridge: name.clone(), subnet: SUBNET }
}

fn tap(name: &InterfaceName, number: u16) -> PrivilegedOperation {
    PrivilegedOperation::EnsureTap { instance: THEIRS, bridge: name.clone(), tap: TapNumber(number), mtu: None }
}

fn grants(name: &InterfaceName, from: u16) -> PrivilegedOperation {
    let grants = vec![Grant { from: TapNumber(from), to: GrantTarget::Tap(TapNumber(0)) }];
    PrivilegedOperation::SetGrants { instance: THEIRS, bridge: name.clone(), subnet: SUBNET, grants }
}

/// A host with the neighbour's network, complete.
async fn neighbours(name: &InterfaceName) -> Double {
    let host = Double::default();
    host.with(|s| s.foreign.insert("DOCKER-USER", Vec::new()));
    for operation in [bridge(name, 0), nat(name), tap(name, 0)] {
        perform(NEIGHBOUR, &host, operation).await.unwrap();
    }
    host
}

#[tokio::test]
async fn anothers_instance_is_out_of_reach() {
    for name in [default_bridge_name(THEIRS), "br-theirs".parse().unwrap()] {
        let host = neighbours(&name).await;
        let state = || {
            host.with(|s| {
                let rules: Vec<KnownRule> = s.foreign.values().flatten().cloned().collect();
                (s.links.clone(), s.addresses.clone(), s.tables.clone(), rules)
            })
        };
        let before = state();
        assert_eq!((before.0.len(), before.2.len(), before.3.len()), (2, 2, 2));
        let own_name = "br-mine".parse().unwrap();
        let (instance, number) = (THEIRS, TapNumber(0));
        let dns = PrivilegedOperation::BindDns { instance, bridge: name.clone(), subnet: SUBNET };
        let names = PrivilegedOperation::RouteNames { instance, bridge: name.clone(), subnet: SUBNET };
        let remove = PrivilegedOperation::RemoveTap { instance, tap: number };
        let refused = [
            bridge(&name, 0),
            bridge(&name, 9),
            bridge(&own_name, 9),
            nat(&name),
            nat(&own_name),
            tap(&name, 0),
            tap(&name, 900),
            tap(&own_name, 900),
            grants(&name, 1),
            dns,
            names,
            remove,
        ];
        for operation in refused {
            let done = perform(ME, &host, operation.clone()).await;
            assert!(done.is_err(), "{operation:?}: {done:?}");
            assert_eq!(state(), before, "{operation:?}");
        }
        // Of what is mine there is nothing.
        let list = perform(ME, &host, PrivilegedOperation::ListTaps { instance }).await.unwrap();
        assert_eq!(list, PrivilegedReply::Taps(Vec::new()));
        perform(ME, &host, PrivilegedOperation::RemoveInstance { instance }).await.unwrap();
        assert_eq!(state(), before);
        // And its owner has it all the same.
        perform(NEIGHBOUR, &host, PrivilegedOperation::RemoveInstance { instance }).await.unwrap();
        let after = state();
        assert_eq!((after.0.len(), after.2.len(), after.3.len()), (0, 0, 0));
    }
}

#[tokio::test]
async fn no_rules_are_about_anothers_taps() {
    // Both were on their way at once, and neither saw the other.
    let host = Double::default();
    let mine = "br-mine".parse().unwrap();
    perform(ME, &host, bridge(&mine, 9)).await.unwrap();
    let theirs = default_bridge_name(THEIRS);
    host.with(|s| {
        s.add_link(theirs.as_str(), LinkKind::Bridge, Some("banger:1001:abcdef"));
    });
    for operation in [bridge(&mine, 9), nat(&mine)] {
        let error = perform(ME, &host, operation).await.unwrap_err();
        assert_eq!(error.to_string(), "uid 1001 has an instance of the same name (`abcdef`) on this host");
    }
    assert!(host.with(|s| s.tables.is_empty()));
}

#[tokio::test]
async fn what_an_older_version_left_is_nobodys() {
    let host = Double::default();
    let name = default_bridge_name(THEIRS);
    host.with(|s| s.add_link(name.as_str(), LinkKind::Bridge, Some("banger:abcdef")));
    let error = perform(ME, &host, bridge(&name, 0)).await.unwrap_err();
    assert!(matches!(error, OperationError::Foreign(_)), "{error:?}");
}
