//! The operations that bring about the desired state, in an order that leaves no guest unguarded.

use super::{HostIpv6, NetworkSettings};
use messages::privileged::{PrivilegedOperation, Subnet};

/// The bridge first, since the rules need it; the rules before any tap, so that no guest ever runs without them.
#[must_use]
pub fn plan(settings: &NetworkSettings, host: HostIpv6) -> Vec<PrivilegedOperation> {
    let NetworkSettings { instance, bridge, subnet, .. } = settings.clone();
    let subnet = Subnet { ipv6: settings.ipv6_network(host), ..subnet };
    vec![
        PrivilegedOperation::EnsureBridge { instance, bridge: bridge.clone(), subnet },
        PrivilegedOperation::EnsureNat { instance, bridge, subnet },
    ]
}
