//! The operations that bring about the desired state, in an order that leaves no guest unguarded.

use super::NetworkSettings;
use messages::privileged::PrivilegedOperation;

/// The bridge first, since the rules need it; the rules before any tap, so that no guest ever runs without them.
#[must_use]
pub fn plan(settings: &NetworkSettings) -> Vec<PrivilegedOperation> {
    let NetworkSettings { instance, bridge, subnet, .. } = settings.clone();
    vec![
        PrivilegedOperation::EnsureBridge { instance, bridge: bridge.clone(), subnet },
        PrivilegedOperation::EnsureNat { instance, bridge, subnet },
    ]
}
