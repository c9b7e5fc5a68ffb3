//! A host in memory that records every call and can be told which of them fail, and how often.

use crate::privileged::host::{Host, HostError, HostResult, Link, LinkChange, LinkKind, Route};
use crate::privileged::nft::{ForeignChain, KnownRule, Layer, Passage, Set, Table};
use messages::ids::InterfaceName;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

/// The state of the double; tests look at it and change it.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) links: BTreeMap<u32, Link>,
    pub(super) addresses: BTreeMap<u32, Vec<(IpAddr, u8)>>,
    pub(super) routes: Vec<Route>,
    pub(super) isolated: Vec<u32>,
    /// Who the bridge was told lives behind a port.
    pub(super) pinned: BTreeMap<u32, [u8; 6]>,
    pub(super) tables: BTreeMap<(Layer, String), Table>,
    pub(super) forwarding: bool,
    /// Somebody else has port 53.
    pub(super) port_taken: bool,
    /// The chains of other firewalls.
    pub(super) foreign: BTreeMap<&'static str, Vec<KnownRule>>,
    /// Whom firewalld lets pass, where it runs.
    pub(super) trusted: Option<Vec<String>>,
    /// The call that meets a bug of ours.
    pub(super) panics_at: Option<&'static str>,
    /// Every call, in order: those that only look begin with `?`.
    pub(super) calls: Vec<String>,
    /// How many calls of this name pass from now on, and how many fail after them.
    failures: BTreeMap<&'static str, (usize, usize)>,
    next_index: u32,
}

impl State {
    pub(super) fn add_link(&mut self, name: &str, kind: LinkKind, alias: Option<&str>) -> u32 {
        self.next_index += 1;
        let index = self.next_index;
        let link = Link {
            index,
            name: name.to_owned(),
            kind,
            alias: alias.map(str::to_owned),
            mtu: 1500,
            controller: None,
            up: false,
        };
        self.links.insert(index, link);
        index
    }

    pub(super) fn named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The calls that changed something.
    pub(super) fn changes(&self) -> Vec<&str> {
        self.calls.iter().filter(|call| !call.starts_with('?')).map(String::as_str).collect()
    }

    fn fail(&mut self, call: &'static str) -> HostResult<()> {
        match self.failures.get_mut(call) {
            Some((pass, _)) if *pass > 0 => {
                *pass -= 1;
                Ok(())
            }
            Some((_, left)) if *left > 0 => {
                *left -= 1;
                Err(HostError::new("do as told", call, std::io::Error::from_raw_os_error(libc::EPERM)))
            }
            _ => Ok(()),
        }
    }
}

/// The double; clones share the state.
#[derive(Clone, Debug, Default)]
pub(super) struct Double(Arc<Mutex<State>>);

impl Double {
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    /// Makes the next `times` calls of this name fail.
    pub(super) fn fail(&self, call: &'static str, times: usize) {
        self.with(|state| state.failures.insert(call, (0, times)));
    }

    /// Lets `pass` calls of this name through and fails the next one.
    pub(super) fn fail_after(&self, call: &'static str, pass: usize) {
        self.with(|state| state.failures.insert(call, (pass, 1)));
    }

    fn call<T>(&self, name: &'static str, detail: &str, f: impl FnOnce(&mut State) -> T) -> HostResult<T> {
        // Outside of the lock, which the test goes on using.
        assert!(self.with(|state| state.panics_at) != Some(name), "as told");
        self.with(|state| {
            state.calls.push(format!("{name} {detail}").trim_end().to_owned());
            state.fail(name)?;
            Ok(f(state))
        })
    }
}

impl Host for Double {
    async fn links(&mut self) -> HostResult<Vec<Link>> {
        self.call("?links", "", |s| s.links.values().cloned().collect())
    }

    async fn link(&mut self, name: &InterfaceName) -> HostResult<Option<Link>> {
        self.call("?link", name.as_str(), |s| s.named(name.as_str()).cloned())
    }

    async fn routes(&mut self) -> HostResult<Vec<Route>> {
        self.call("?routes", "", |s| s.routes.clone())
    }

    async fn addresses(&mut self, index: u32) -> HostResult<Vec<(IpAddr, u8)>> {
        self.call("?addresses", "", |s| s.addresses.get(&index).cloned().unwrap_or_default())
    }

    async fn create_bridge(&mut self, name: &InterfaceName) -> HostResult<()> {
        self.call("create_bridge", name.as_str(), |s| s.add_link(name.as_str(), LinkKind::Bridge, None))?;
        Ok(())
    }

    async fn create_tap(&mut self, name: &InterfaceName, owner: u32) -> HostResult<()> {
        let kind = LinkKind::Tap { owner: Some(owner) };
        self.call("create_tap", &format!("{name} uid={owner}"), |s| s.add_link(name.as_str(), kind, None))?;
        Ok(())
    }

    async fn change_link(&mut self, link: &Link, change: &LinkChange) -> HostResult<()> {
        let mut words = vec![link.name.clone()];
        words.extend(change.alias.iter().map(|alias| format!("alias={alias}")));
        words.extend(change.name.iter().map(|name| format!("name={name}")));
        words.extend(change.address.iter().map(|address| format!("address={address:02x?}")));
        words.extend(change.mtu.iter().map(|mtu| format!("mtu={mtu}")));
        words.extend(change.controller.iter().map(|_| "port".to_owned()));
        words.extend(change.down.then(|| "down".to_owned()));
        words.extend(change.up.then(|| "up".to_owned()));
        let change = change.clone();
        self.call("change_link", &words.join(" "), |s| {
            let link = s.links.get_mut(&link.index).expect("only existing links are changed");
            link.alias = change.alias.or(link.alias.take());
            link.name = change.name.map_or(link.name.clone(), String::from);
            link.mtu = change.mtu.unwrap_or(link.mtu);
            link.controller = change.controller.or(link.controller);
            link.up = (link.up && !change.down) || change.up;
        })
    }

    async fn isolate_port(&mut self, link: &Link, guest: [u8; 6]) -> HostResult<()> {
        assert!(self.with(|s| s.links[&link.index].controller.is_some()), "only ports can be isolated");
        self.call("isolate_port", &link.name, |s| {
            s.isolated.push(link.index);
            s.pinned.insert(link.index, guest);
        })
    }

    async fn delete_link(&mut self, link: &Link) -> HostResult<()> {
        self.call("delete_link", &link.name, |s| {
            s.links.remove(&link.index);
            s.addresses.remove(&link.index);
            s.isolated.retain(|index| *index != link.index);
            s.links.values_mut().filter(|l| l.controller == Some(link.index)).for_each(|l| l.controller = None);
        })
    }

    async fn add_address(&mut self, link: &Link, address: IpAddr, prefix: u8) -> HostResult<()> {
        self.call("add_address", &format!("{} {address}/{prefix}", link.name), |s| {
            s.addresses.entry(link.index).or_default().push((address, prefix));
        })
    }

    async fn remove_address(&mut self, link: &Link, address: IpAddr, prefix: u8) -> HostResult<()> {
        self.call("remove_address", &format!("{} {address}/{prefix}", link.name), |s| {
            s.addresses.entry(link.index).or_default().retain(|has| *has != (address, prefix));
        })
    }

    async fn bind_dns(&mut self, address: Ipv4Addr) -> HostResult<(OwnedFd, OwnedFd)> {
        self.call("bind_dns", &address.to_string(), |_| ())?;
        let taken = self.with(|s| s.port_taken);
        if taken {
            return Err(HostError::new("bind", address, std::io::Error::from_raw_os_error(libc::EADDRINUSE)));
        }
        // The double has no bridge: what it hands out is on loopback.
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Ok((udp.into(), tcp.into()))
    }

    async fn route_names(&mut self, link: &Link, address: Ipv4Addr) -> Result<(), String> {
        let routed = self.call("route_names", &format!("{} {address}", link.name), |_| ());
        routed.map_err(|_| "systemd-resolved does not run on this host".to_owned())
    }

    async fn revert_names(&mut self, link: &Link) -> Result<(), String> {
        self.call("?revert_names", &link.name, |_| ()).map_err(|error| error.to_string())
    }

    async fn trust_bridge(&mut self, link: &Link) -> Result<(), String> {
        self.call("?trust_bridge", &link.name, |s| s.trusted.iter_mut().for_each(|names| names.push(link.name.clone())))
            .map_err(|error| error.to_string())
    }

    async fn distrust_bridge(&mut self, link: &Link) -> Result<(), String> {
        self.call("?distrust_bridge", &link.name, |s| {
            s.trusted.iter_mut().for_each(|names| names.retain(|name| *name != link.name));
        })
        .map_err(|error| error.to_string())
    }

    async fn enable_forwarding(&mut self) -> HostResult<()> {
        self.call("enable_forwarding", "", |s| s.forwarding = true)
    }

    async fn allow_ipv6(&mut self, bridge: &InterfaceName) -> HostResult<()> {
        self.call("allow_ipv6", bridge.as_str(), |_| ())
    }

    async fn know_neighbours(&mut self, bridge: &Link, neighbours: &[(Ipv6Addr, [u8; 6])]) -> HostResult<()> {
        self.call("know_neighbours", &format!("{} {}", bridge.name, neighbours.len()), |_| ())
    }

    async fn enable_forwarding6(&mut self, bridge: &InterfaceName) -> HostResult<()> {
        self.call("enable_forwarding6", bridge.as_str(), |_| ())
    }

    async fn answer_for_guests(&mut self, bridge: &InterfaceName) -> HostResult<()> {
        assert!(self.with(|s| s.named(bridge.as_str()).is_some()), "only a bridge that exists can answer");
        self.call("answer_for_guests", bridge.as_str(), |_| ())
    }

    async fn replace_tables(&mut self, tables: &[Table]) -> HostResult<bool> {
        self.call("replace_tables", &tables[0].name, |s| {
            let key = |table: &Table| (table.layer, table.name.clone());
            let there = tables.iter().all(|table| s.tables.contains_key(&key(table)));
            if !there {
                s.tables.extend(tables.iter().map(|table| (key(table), table.clone())));
            }
            !there
        })
    }

    async fn foreign_rules(&mut self, chain: ForeignChain) -> HostResult<Option<Vec<KnownRule>>> {
        self.call("?foreign_rules", chain.name, |s| s.foreign.get(chain.name).cloned())
    }

    async fn change_foreign_rules(&mut self, chain: ForeignChain, add: &[Passage], remove: &[u64]) -> HostResult<()> {
        let comments: Vec<String> = add.iter().map(Passage::comment).collect();
        self.call("change_foreign_rules", &format!("{} add={comments:?} remove={remove:?}", chain.name), |s| {
            let rules = s.foreign.get_mut(chain.name).expect("only a chain that exists is changed");
            rules.retain(|rule| !remove.contains(&rule.handle));
            for comment in comments.clone() {
                let handle = rules.iter().map(|rule| rule.handle).max().unwrap_or(0) + 1;
                rules.push(KnownRule { handle, comment });
            }
        })
    }

    async fn refill_sets(&mut self, table: &str, sets: &[Set]) -> HostResult<bool> {
        self.call("refill_sets", table, |s| {
            let Some(table) = s.tables.get_mut(&(Layer::Host, table.to_owned())) else { return false };
            for set in sets {
                let has = table.sets.iter_mut().find(|has| has.name == set.name);
                *has.expect("only the table's own sets are refilled") = set.clone();
            }
            true
        })
    }

    async fn remove_tables(&mut self, name: &str) -> HostResult<()> {
        self.call("remove_tables", name, |s| s.tables.retain(|(_, has), _| has != name))
    }
}
