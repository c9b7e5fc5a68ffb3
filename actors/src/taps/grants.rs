//! What the kernel has to let through, from who holds which tap and what each was allowed. Pure.

use messages::ids::VmId;
use messages::limits::GRANTS_MAX;
use messages::privileged::{Grant, GrantTarget, TapNumber};
use messages::vm::NetAllow;
use std::collections::{BTreeMap, HashMap};

/// What each VM was allowed; VMs by their ids.
pub(super) type Allowed = HashMap<VmId, Vec<NetAllow>>;

/// The grants of this moment, sorted. A VM that holds no tap neither reaches nor is reached.
pub(super) fn grants(leases: &[(VmId, TapNumber)], allowed: &Allowed) -> Vec<Grant> {
    let taps: BTreeMap<VmId, TapNumber> = leases.iter().copied().collect();
    let mut grants: Vec<Grant> = taps
        .iter()
        .filter_map(|(vm, from)| Some((*from, allowed.get(vm)?)))
        .flat_map(|(from, list)| list.iter().filter_map(|what| target(what, &taps)).map(move |to| Grant { from, to }))
        .collect();
    grants.sort_unstable();
    grants.dedup();
    // More than the helper takes in one transaction: 512 VMs with 32 each. Those left out stay shut.
    grants.truncate(GRANTS_MAX);
    grants
}

fn target(what: &NetAllow, taps: &BTreeMap<VmId, TapNumber>) -> Option<GrantTarget> {
    match what {
        NetAllow::Vm(vm) => taps.get(&vm.as_str().parse().ok()?).map(|tap| GrantTarget::Tap(*tap)),
        NetAllow::HostTcp(port) => Some(GrantTarget::Tcp(*port)),
        NetAllow::HostUdp(port) => Some(GrantTarget::Udp(*port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_follow_the_taps() {
        let (one, two) = (VmId([1; 8]), VmId([2; 8]));
        let peer = NetAllow::Vm(two.to_string().parse().unwrap());
        let allowed = Allowed::from([(one, vec![NetAllow::HostTcp(80), peer, NetAllow::HostTcp(80)])]);
        let from = TapNumber(4);
        let port = Grant { from, to: GrantTarget::Tcp(80) };
        let pair = |tap| Grant { from, to: GrantTarget::Tap(TapNumber(tap)) };
        assert_eq!(grants(&[(one, from), (two, TapNumber(9))], &allowed), [pair(9), port]);
        assert_eq!(grants(&[(one, from), (two, TapNumber(3))], &allowed), [pair(3), port], "another tap");
        assert_eq!(grants(&[(one, from)], &allowed), [port], "the peer is not there");
        assert_eq!(
            grants(&[(one, from), (VmId([3; 8]), TapNumber(9))], &allowed),
            [port],
            "nor is its tap's next holder"
        );
        assert_eq!(grants(&[(two, from)], &allowed), []);
    }
}
