//! Carries out checked operations: looks at what the kernel has, and does only what is missing.
//!
//! Every operation is idempotent and may be cut off between any two calls: whatever it leaves carries the instance's name
//! or alias, so that the next attempt, or `RemoveInstance`, finds it. Nothing here touches an interface without that mark,
//! which names the owner, too: who asks chooses the instance, and may choose another user's.

use super::host::{Host, HostError, Link, LinkChange, LinkKind, Route};
use super::nft::{FOREIGN_CHAINS, ForeignChain, KnownRule, Passage, rules};
use super::validate::{
    BridgeName, CheckedGrant, CheckedOperation, CheckedSubnet, CheckedTap, Instance, Invalid, PREFIX6, check,
};
use messages::error::{ErrorKind, WireError};
use messages::frame::build_id;
use messages::ids::InterfaceName;
use messages::privileged::{PrivilegedOperation, PrivilegedReply, TapNumber};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

/// Routes shorter than this are ways to everywhere, not networks: the default route, or a VPN's two halves of it.
const NETWORK_PREFIX_MIN: u8 = 4;
/// The same for IPv6: fc00::/7, for one, which a VPN may send somewhere, is not one network.
const NETWORK6_PREFIX_MIN: u8 = 16;

/// Why an operation was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    #[error("the request was refused")]
    Invalid(#[from] Invalid),
    #[error("the interface `{0}` exists and is not this instance's")]
    Foreign(InterfaceName),
    #[error("the tap `{0}` belongs to uid {1}")]
    OtherOwner(InterfaceName, u32),
    #[error("uid {1} has an instance of the same name (`{0}`) on this host")]
    OtherInstance(String, u32),
    #[error("the bridge `{0}` does not exist")]
    NoBridge(InterfaceName),
    #[error("the nftables table `{0}` does not exist")]
    NoTable(String),
    #[error("the subnet {network}/{prefix} overlaps the host's route to {route}/{route_prefix}")]
    Overlap { network: IpAddr, prefix: u8, route: IpAddr, route_prefix: u8 },
    #[error("the bridge `{0}` does not have the address {1}")]
    NoAddress(InterfaceName, IpAddr),
    #[error("the host's resolver does not send .vm here: {0}")]
    Names(String),
    #[error("port 53 of {0} is taken by another program")]
    PortTaken(Ipv4Addr),
    #[error(transparent)]
    Host(#[from] HostError),
}

impl From<OperationError> for WireError {
    fn from(error: OperationError) -> Self {
        match error {
            OperationError::Invalid(invalid) => invalid.into(),
            OperationError::Foreign(_) => Self::from_error(ErrorKind::Conflict, &error)
                .hint("set another `bridge_name` in the config, or remove that interface"),
            OperationError::OtherOwner(..) => Self::from_error(ErrorKind::Conflict, &error),
            OperationError::OtherInstance(..) => Self::from_error(ErrorKind::Conflict, &error)
                .hint("its name derives from the state directory: choose another with BANGER_STATE_DIR"),
            OperationError::NoBridge(_) | OperationError::NoAddress(..) | OperationError::NoTable(_) => {
                Self::from_error(ErrorKind::NotFound, &error)
            }
            OperationError::PortTaken(_) => Self::from_error(ErrorKind::Conflict, &error)
                .hint("`sudo ss -lnp 'sport = :53'` names it; it must not listen on all addresses"),
            OperationError::Overlap { .. } => Self::from_error(ErrorKind::Conflict, &error)
                .hint("set `cidr` (and `bridge_ip`), or `cidr6`, in the config to a private network that this host does not use"),
            OperationError::Host(_) | OperationError::Names(_) => Self::from_error(ErrorKind::Host, &error),
        }
    }
}

/// What was done, and what goes along with the answer.
#[derive(Debug)]
pub(super) struct Performed {
    pub(super) reply: PrivilegedReply,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl From<PrivilegedReply> for Performed {
    fn from(reply: PrivilegedReply) -> Self {
        Self { reply, descriptors: Vec::new() }
    }
}

type Outcome = Result<Performed, OperationError>;

/// The executor: a host, and for whom it works.
#[derive(Debug)]
pub(super) struct Operations<H> {
    host: H,
    owner_uid: u32,
}

impl<H: Host> Operations<H> {
    /// Everything will be marked as `owner_uid`'s, and the taps belong to it.
    pub(super) fn new(host: H, owner_uid: u32) -> Self {
        Self { host, owner_uid }
    }

    /// Checks and carries out one operation.
    ///
    /// # Errors
    /// [`OperationError`]; the kernel is then as before, or part of the way to what was asked for.
    pub(super) async fn perform(&mut self, operation: &PrivilegedOperation) -> Outcome {
        match check(operation, self.owner_uid)? {
            CheckedOperation::Status => {
                let status = PrivilegedReply::Status {
                    build: build_id().to_owned(),
                    pid: std::process::id(),
                    owner_uid: self.owner_uid,
                };
                return Ok(status.into());
            }
            CheckedOperation::ListTaps { instance } => return self.list_taps(instance).await,
            CheckedOperation::EnsureBridge { instance, bridge, subnet } => {
                self.ensure_bridge(instance, &bridge, subnet).await?;
            }
            CheckedOperation::EnsureTap { instance, bridge, tap, mtu } => {
                self.ensure_tap(instance, &bridge, tap, mtu).await?;
            }
            CheckedOperation::RemoveTap { instance, tap } => self.remove_tap(instance, tap).await?,
            CheckedOperation::EnsureNat { instance, bridge, subnet } => {
                return self.ensure_nat(instance, &bridge, subnet).await;
            }
            CheckedOperation::RemoveInstance { instance } => self.remove_instance(instance).await?,
            CheckedOperation::RouteNames { instance, bridge, subnet } => {
                let (link, _) = self.addressed_bridge(instance, &bridge, subnet).await?;
                self.host.route_names(&link, subnet.gateway()).await.map_err(OperationError::Names)?;
            }
            CheckedOperation::BindDns { instance, bridge, subnet } => {
                return self.bind_dns(instance, &bridge, subnet).await;
            }
            CheckedOperation::SetGrants { instance, bridge, subnet, grants } => {
                self.set_grants(instance, &bridge, subnet, &grants).await?;
            }
        }
        Ok(PrivilegedReply::Done.into())
    }

    /// The bridge, if the subnet is its own: else the asker could become the resolver of one of the host's networks, or have the
    /// host put its own address on what it forwards for others. IPv6 is in the answer only where the bridge has that as well: it
    /// has not where the host itself has none.
    async fn addressed_bridge(
        &mut self,
        instance: Instance,
        bridge: &BridgeName,
        subnet: CheckedSubnet,
    ) -> Result<(Link, CheckedSubnet), OperationError> {
        let link = self.required_bridge(instance, bridge).await?;
        let addresses = self.host.addresses(link.index).await?;
        let has = |subnet: CheckedSubnet| subnet.own_addresses().iter().all(|wanted| addresses.contains(wanted));
        match [subnet, subnet.without_ipv6()].into_iter().find(|subnet| has(*subnet)) {
            Some(own) => Ok((link, own)),
            None => Err(OperationError::NoAddress(bridge.interface().clone(), subnet.gateway().into())),
        }
    }

    async fn bind_dns(&mut self, instance: Instance, bridge: &BridgeName, subnet: CheckedSubnet) -> Outcome {
        self.addressed_bridge(instance, bridge, subnet).await?;
        let address = subnet.gateway();
        match self.host.bind_dns(address).await {
            Ok((udp, tcp)) => Ok(Performed { reply: PrivilegedReply::DnsSockets, descriptors: vec![udp, tcp] }),
            Err(error) if error.source.kind() == io::ErrorKind::AddrInUse => Err(OperationError::PortTaken(address)),
            Err(error) => Err(error.into()),
        }
    }

    async fn ensure_bridge(
        &mut self,
        instance: Instance,
        bridge: &BridgeName,
        subnet: CheckedSubnet,
    ) -> Result<(), OperationError> {
        let links = self.host.links().await?;
        refuse_others(instance, &links)?;
        self.remove_former_bridges(instance, bridge, &links).await?;
        let existing = self.own_bridge(instance, bridge).await?;
        self.refuse_overlap(subnet, existing.as_ref().map(|link| link.index)).await?;
        let link = match existing {
            Some(link) => link,
            None => self.make_bridge(instance, bridge).await?,
        };
        if subnet.ipv6().is_some() {
            self.host.allow_ipv6(bridge.interface()).await?;
        }
        let wanted = subnet.own_addresses();
        let addresses = self.host.addresses(link.index).await?;
        for (address, prefix) in addresses.iter().filter(|has| !wanted.contains(has)) {
            self.host.remove_address(&link, *address, *prefix).await?;
        }
        for (address, prefix) in wanted.iter().filter(|wanted| !addresses.contains(wanted)) {
            self.host.add_address(&link, *address, *prefix).await?;
        }
        if !link.up {
            self.host.change_link(&link, &LinkChange { up: true, ..LinkChange::default() }).await?;
        }
        Ok(())
    }

    /// Makes the bridge under its derived name, marks it, and only then gives it a name that says nothing of us: cut off
    /// in between, it is still recognised.
    async fn make_bridge(&mut self, instance: Instance, bridge: &BridgeName) -> Result<Link, OperationError> {
        let first_name = instance.default_bridge();
        if self.host.link(&first_name).await?.is_none() {
            self.host.create_bridge(&first_name).await?;
        }
        let link = self.host.link(&first_name).await?.filter(|link| is_own_bridge(instance, link));
        let link = link.ok_or_else(|| OperationError::Foreign(first_name.clone()))?;
        let marked = LinkChange {
            alias: Some(instance.alias()),
            address: Some(instance.bridge_address()),
            ..LinkChange::default()
        };
        self.host.change_link(&link, &marked).await?;
        if *bridge.interface() != first_name {
            let renamed = LinkChange { name: Some(bridge.interface().clone()), ..LinkChange::default() };
            self.host.change_link(&link, &renamed).await?;
        }
        let made = self.host.link(bridge.interface()).await?;
        made.ok_or_else(|| OperationError::NoBridge(bridge.interface().clone()))
    }

    /// An instance has one bridge: after a change of `bridge_name` the former one would hold on to the subnet.
    async fn remove_former_bridges(
        &mut self,
        instance: Instance,
        bridge: &BridgeName,
        links: &[Link],
    ) -> Result<(), OperationError> {
        let former =
            links.iter().filter(|link| is_own_bridge(instance, link) && link.name != bridge.interface().as_str());
        for link in former {
            self.remove_bridge(link).await?;
        }
        Ok(())
    }

    async fn remove_bridge(&mut self, bridge: &Link) -> Result<(), OperationError> {
        // The host's resolver forgets a link that is gone, too: this is for the moment before.
        if let Err(error) = self.host.revert_names(bridge).await {
            tracing::debug!(error, "names of the bridge were not taken back");
        }
        if let Err(error) = self.host.distrust_bridge(bridge).await {
            tracing::debug!(error, "firewalld still lists the bridge");
        }
        Ok(self.host.delete_link(bridge).await?)
    }

    async fn refuse_overlap(&mut self, subnet: CheckedSubnet, own: Option<u32>) -> Result<(), OperationError> {
        let routes = self.host.routes().await?;
        let overlapped = |route: &Route| match route.destination {
            IpAddr::V4(to) => (route.prefix >= NETWORK_PREFIX_MIN && subnet.overlaps(to, route.prefix))
                .then(|| (IpAddr::V4(subnet.network()), subnet.prefix())),
            IpAddr::V6(to) => subnet
                .ipv6()
                .filter(|ipv6| route.prefix >= NETWORK6_PREFIX_MIN && ipv6.overlaps(to, route.prefix))
                .map(|ipv6| (IpAddr::V6(ipv6.network()), PREFIX6)),
        };
        let others = routes.iter().filter(|route| route.interface.is_none() || route.interface != own);
        match others.filter_map(|route| Some((route, overlapped(route)?))).next() {
            None => Ok(()),
            Some((route, (network, prefix))) => {
                Err(OperationError::Overlap { network, prefix, route: route.destination, route_prefix: route.prefix })
            }
        }
    }

    async fn ensure_tap(
        &mut self,
        instance: Instance,
        bridge: &BridgeName,
        tap: CheckedTap,
        mtu: Option<u16>,
    ) -> Result<(), OperationError> {
        let bridge = self.required_bridge(instance, bridge).await?;
        let name = instance.tap(tap);
        let link = match self.own_tap(instance, &name).await? {
            Some(link) => link,
            None => {
                self.host.create_tap(&name, self.owner_uid).await?;
                self.host.link(&name).await?.ok_or_else(|| OperationError::NoBridge(name.clone()))?
            }
        };
        let alias = instance.alias();
        let change = LinkChange {
            alias: (link.alias.as_ref() != Some(&alias)).then_some(alias),
            mtu: mtu.map(u32::from).filter(|mtu| *mtu != link.mtu),
            controller: (link.controller != Some(bridge.index)).then_some(bridge.index),
            ..LinkChange::default()
        };
        // A port of another bridge that is up would come to this one up, and not isolated yet.
        let moves_up = link.up && change.controller.is_some();
        if moves_up {
            self.host.change_link(&link, &LinkChange { down: true, ..LinkChange::default() }).await?;
        }
        if change != LinkChange::default() {
            self.host.change_link(&link, &change).await?;
        }
        // Isolated before it is up: no moment at which a guest could reach another.
        self.host.isolate_port(&link, instance.guest_mac(tap)).await?;
        if !link.up || moves_up {
            self.host.change_link(&link, &LinkChange { up: true, ..LinkChange::default() }).await?;
        }
        Ok(())
    }

    async fn remove_tap(&mut self, instance: Instance, tap: CheckedTap) -> Result<(), OperationError> {
        let name = instance.tap(tap);
        if let Some(link) = self.own_tap(instance, &name).await? {
            self.host.delete_link(&link).await?;
        }
        Ok(())
    }

    async fn list_taps(&mut self, instance: Instance) -> Outcome {
        let links = self.host.links().await?;
        let mut taps: Vec<TapNumber> = links
            .iter()
            .filter(|link| self.is_own_tap(instance, link))
            .filter_map(|l| instance.tap_number(&l.name))
            .collect();
        taps.sort_unstable();
        Ok(PrivilegedReply::Taps(taps).into())
    }

    async fn ensure_nat(&mut self, instance: Instance, bridge: &BridgeName, subnet: CheckedSubnet) -> Outcome {
        // Rules that drop must never name an interface of somebody else's, nor what its taps' names begin with.
        refuse_others(instance, &self.host.links().await?)?;
        let (link, own) = self.addressed_bridge(instance, bridge, subnet).await?;
        if let Some(ipv6) = subnet.ipv6().filter(|_| own.ipv6().is_none()) {
            return Err(OperationError::NoAddress(bridge.interface().clone(), ipv6.gateway().into()));
        }
        let rewritten = self.host.replace_tables(&rules::tables(instance, bridge, subnet)).await?;
        self.host.answer_for_guests(bridge.interface()).await?;
        self.pass_firewalls(instance, |chain| chain.wanted(instance, bridge)).await?;
        if let Err(error) = self.host.trust_bridge(&link).await {
            tracing::debug!(error, "firewalld was not asked to let the bridge's traffic pass");
        }
        if subnet.ipv6().is_some() {
            self.host.know_neighbours(&link, &instance.neighbours(subnet)).await?;
        }
        // Last: a host that forwards without our rules would be open.
        self.host.enable_forwarding().await?;
        if subnet.ipv6().is_some() {
            self.host.enable_forwarding6(bridge.interface()).await?;
        }
        Ok(if rewritten { PrivilegedReply::Rewritten } else { PrivilegedReply::Done }.into())
    }

    /// Makes these the instance's rules in the chains of other firewalls, where they are.
    async fn pass_firewalls(
        &mut self,
        instance: Instance,
        wanted: impl Fn(ForeignChain) -> Vec<Passage>,
    ) -> Result<(), OperationError> {
        for chain in FOREIGN_CHAINS {
            let Some(known) = self.host.foreign_rules(chain).await? else { continue };
            let wanted = wanted(chain);
            let own: Vec<_> = known.into_iter().filter(|rule| rule.is_of(instance)).collect();
            let is_wanted = |rule: &KnownRule| wanted.iter().any(|wanted| wanted.comment() == rule.comment);
            let surplus: Vec<u64> = own.iter().filter(|rule| !is_wanted(rule)).map(|rule| rule.handle).collect();
            let is_missing = |wanted: &Passage| own.iter().all(|has| has.comment != wanted.comment());
            let missing: Vec<Passage> = wanted.iter().filter(|wanted| is_missing(wanted)).cloned().collect();
            if !surplus.is_empty() || !missing.is_empty() {
                self.host.change_foreign_rules(chain, &missing, &surplus).await?;
            }
        }
        Ok(())
    }

    async fn set_grants(
        &mut self,
        instance: Instance,
        bridge: &BridgeName,
        subnet: CheckedSubnet,
        grants: &[CheckedGrant],
    ) -> Result<(), OperationError> {
        // To take everything back opens nothing, and has to work whatever became of the bridge: the daemon takes "not found"
        // for "there are no rules that could hold a grant".
        let own = match grants {
            [] => subnet,
            _ => self.addressed_bridge(instance, bridge, subnet).await?.1,
        };
        let found = self.host.refill_sets(&instance.table(), &rules::grants(own, grants)).await?;
        if found { Ok(()) } else { Err(OperationError::NoTable(instance.table())) }
    }

    /// Taps, then the bridge, then the table: while a guest can still send, the rules are there.
    async fn remove_instance(&mut self, instance: Instance) -> Result<(), OperationError> {
        let links = self.host.links().await?;
        let taps: Vec<&Link> = links.iter().filter(|link| self.is_own_tap(instance, link)).collect();
        for tap in taps {
            self.host.delete_link(tap).await?;
        }
        for bridge in links.iter().filter(|link| is_own_bridge(instance, link)) {
            self.remove_bridge(bridge).await?;
        }
        self.pass_firewalls(instance, |_| Vec::new()).await?;
        self.host.remove_tables(&instance.table()).await?;
        Ok(())
    }

    async fn required_bridge(&mut self, instance: Instance, bridge: &BridgeName) -> Result<Link, OperationError> {
        let link = self.own_bridge(instance, bridge).await?;
        link.ok_or_else(|| OperationError::NoBridge(bridge.interface().clone()))
    }

    /// The bridge, if it exists and is marked as the instance's.
    async fn own_bridge(&mut self, instance: Instance, bridge: &BridgeName) -> Result<Option<Link>, OperationError> {
        match self.host.link(bridge.interface()).await? {
            None => Ok(None),
            Some(link) if !is_own_bridge(instance, &link) => Err(OperationError::Foreign(bridge.interface().clone())),
            // Half made: whoever needs it has it finished by `make_bridge`.
            Some(link) => Ok(Some(link).filter(|link| !is_unmarked(instance, link))),
        }
    }

    async fn own_tap(&mut self, instance: Instance, name: &InterfaceName) -> Result<Option<Link>, OperationError> {
        match self.host.link(name).await? {
            None => Ok(None),
            Some(link) if self.is_own_tap(instance, &link) => Ok(Some(link)),
            Some(Link { kind: LinkKind::Tap { owner: Some(uid) }, .. }) if uid != self.owner_uid => {
                Err(OperationError::OtherOwner(name.clone(), uid))
            }
            Some(_) => Err(OperationError::Foreign(name.clone())),
        }
    }

    /// A tap of a derived name and the owner's uid; the alias may be missing where its making was cut off.
    fn is_own_tap(&self, instance: Instance, link: &Link) -> bool {
        let marked = link.alias.is_none() || link.alias == Some(instance.alias());
        let owned = matches!(link.kind, LinkKind::Tap { owner } if owner.is_none_or(|uid| uid == self.owner_uid));
        marked && owned && instance.tap_number(&link.name).is_some()
    }
}

/// Taps are named after the instance alone, for want of room. So an instance belongs to one owner, as long as anything is there
/// that says so: else the rules of one would drop what comes from the other's taps.
fn refuse_others(instance: Instance, links: &[Link]) -> Result<(), OperationError> {
    match links.iter().find_map(|link| instance.other_owner(link.alias.as_deref()?)) {
        Some(uid) => Err(OperationError::OtherInstance(instance.to_string(), uid)),
        None => Ok(()),
    }
}

fn is_own_bridge(instance: Instance, link: &Link) -> bool {
    link.kind == LinkKind::Bridge && (link.alias == Some(instance.alias()) || is_unmarked(instance, link))
}

/// A bridge of the derived name whose making was cut off before it was marked.
fn is_unmarked(instance: Instance, link: &Link) -> bool {
    link.alias.is_none() && link.name == instance.default_bridge().as_str()
}
