//! Wires the tap pool, the network and the helper's client to each other, and to the VMs.

use super::TreeError;
use super::sources::TapSource;
use crate::config::Loaded;
use crate::dns::{DnsSettings, DnsStatus, FollowVm, HostUpstreams, ZoneKeeper};
use crate::network::{HostUplink, Network, NetworkSettings, Place, Uplink, UplinkSource};
use crate::paths::Paths;
use crate::privileged::{Perform, PrivilegedClient};
use crate::store::{Phase, VmRecord};
use crate::taps::{Lease, PoolSettings, Return, TapPool};
use crate::vm::ports::TapGrant;
use actix::{Addr, Recipient, Supervisor};
use futures::future::BoxFuture;
use messages::error::{ErrorKind, WireError};
use messages::ids::VmId;
use messages::privileged::{PrivilegedOperation, PrivilegedReply, TapNumber};
use messages::reply::NamesView;
use messages::vm::NetAllow;
use std::net::Ipv6Addr;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// The actors of the network.
#[derive(Clone, Debug)]
pub(super) struct PoolTaps {
    helper: Addr<PrivilegedClient>,
    pool: Addr<TapPool>,
    names: Addr<ZoneKeeper>,
    dns: watch::Receiver<DnsStatus>,
}

/// The host's uplink, the daemon's own resolver once it serves guests, and their IPv6 network where they have one.
struct GuestUplink {
    dns: watch::Receiver<DnsStatus>,
    ipv6: watch::Receiver<Option<Ipv6Addr>>,
}

impl UplinkSource for GuestUplink {
    fn read(&self) -> Uplink {
        Uplink { own_resolver: self.dns.borrow().guests_resolver(), ipv6: *self.ipv6.borrow(), ..HostUplink.read() }
    }
}

impl PoolTaps {
    /// Starts helper client, names, network and pool. The helper need not be there: whoever wants a tap is told.
    pub(super) fn start(
        paths: &Paths,
        loaded: &Loaded,
        records: &[VmRecord],
        runtime: Handle,
    ) -> Result<Self, TreeError> {
        let network = NetworkSettings::new(loaded, paths.instance(), place(paths)).map_err(TreeError::Network)?;
        let socket = paths.root_socket.clone();
        let helper = Supervisor::start(move |_| PrivilegedClient::new(socket));
        let upstreams =
            Box::new(HostUpstreams { default_dns: network.default_dns.clone(), own: network.subnet.gateway });
        let (keeper, dns) = ZoneKeeper::new(DnsSettings {
            instance: network.instance,
            bridge: network.bridge.clone(),
            subnet: network.subnet,
            runtime,
            helper: helper.clone().recipient(),
            router: helper.clone().recipient(),
            upstreams,
        });
        let names = Supervisor::start(move |_| keeper);
        let (settings, asked) = (network.clone(), helper.clone().recipient::<Perform>());
        let served = names.clone().recipient();
        let keeper = Network::new(settings, asked).with_names(served);
        let ipv6 = keeper.ipv6();
        let keeper = Supervisor::start(move |_| keeper);
        let settings = PoolSettings {
            network,
            size: usize::from(loaded.config.tap_pool_size),
            uplink: Box::new(GuestUplink { dns: dns.clone(), ipv6 }),
            leases: leases(records),
            allow: records.iter().map(|record| (record.id, record.net_allow.clone())).collect(),
        };
        let (asked, keeper) = (helper.clone().recipient(), keeper.recipient());
        let pool = Supervisor::start(move |_| TapPool::new(settings, asked, keeper));
        Ok(Self { helper, pool, names, dns })
    }

    /// Who is told of every VM's watch.
    pub(super) fn names(&self) -> Recipient<FollowVm> {
        self.names.clone().recipient()
    }

    /// Where names are answered.
    pub(super) fn dns(&self) -> NamesView {
        self.dns.borrow().view()
    }

    /// The helper's version, or why it cannot be reached.
    pub(super) fn helper(&self) -> BoxFuture<'static, Result<String, String>> {
        let helper = self.helper.clone();
        Box::pin(async move {
            match helper.send(Perform(PrivilegedOperation::Status)).await {
                Ok(Ok(PrivilegedReply::Status { build, pid, .. })) => Ok(format!("{build} (pid {pid})")),
                Ok(Ok(other)) => Err(format!("an unexpected answer: {other:?}")),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}

/// A state directory of its own makes an instance that lives beside the usual one.
fn place(paths: &Paths) -> Place {
    let usual = Paths::resolve(paths.uid, |name| match name {
        crate::paths::STATE_DIR_ENV => None,
        name => std::env::var_os(name).map(Into::into),
    });
    if usual.is_ok_and(|usual| usual.state_dir == paths.state_dir) { Place::Usual } else { Place::Own }
}

/// The taps of VMs that may still run on them. A stopped VM asks for its number again; until then others may have it.
fn leases(records: &[VmRecord]) -> Vec<(VmId, TapNumber)> {
    let may_run = |record: &&VmRecord| !matches!(record.phase, Phase::Stopped | Phase::Failed);
    records.iter().filter(may_run).filter_map(|record| Some((record.id, record.tap?))).collect()
}

impl TapSource for PoolTaps {
    fn lease(
        &self,
        vm: VmId,
        wanted: Option<TapNumber>,
        allow: Vec<NetAllow>,
    ) -> BoxFuture<'static, Result<TapGrant, WireError>> {
        let pool = self.pool.clone();
        Box::pin(async move {
            let sent = pool.send(Lease { vm, wanted, allow }).await;
            let lease = sent.map_err(|error| WireError::from_error(ErrorKind::Unavailable, &error))??;
            Ok(TapGrant { number: lease.number, name: lease.name.clone(), guest: lease.into() })
        })
    }

    fn give_back(&self, vm: VmId) -> BoxFuture<'static, ()> {
        let pool = self.pool.clone();
        Box::pin(async move {
            match pool.send(Return { vm }).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%vm, %error, "cannot take a tap back"),
                Err(error) => tracing::error!(%vm, %error, "the tap pool is gone"),
            }
        })
    }
}
