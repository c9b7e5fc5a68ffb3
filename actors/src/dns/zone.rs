//! The zone as pure data: which names there are, and what a question about one is answered. Knows no sockets and no actors.

use hickory_server::proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_server::proto::rr::{DNSClass, LowerName, Name, RData, Record, RecordType};
use messages::ids::{VmId, VmName};
use messages::privileged::Subnet;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};

/// The domain of every VM.
const DOMAIN: &str = "vm";
/// How long a record may be kept, in seconds. None at all: a VM that stops must be gone at once, its address may be
/// another's a moment later, and asking again costs a few microseconds on the same host.
const TTL: u32 = 0;
/// How long "there is no such name" may be kept (the SOA's minimum, RFC 2308), for the same reason.
const NEGATIVE_TTL: u32 = 0;
/// Refresh, retry and expire of a zone that has no secondaries: nobody acts on them, and the SOA must have them.
const SOA_TIMERS: (i32, i32, i32) = (3600, 600, 86400);

/// What a question is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What was asked for.
    Records(Vec<Record>),
    /// The name exists and has none of these; with the SOA.
    NoData(Box<Record>),
    /// The name does not exist; with the SOA.
    NoName(Box<Record>),
    /// Not of this zone.
    Elsewhere,
    /// Of this zone, and not to be had: transfers, other classes.
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Host {
    name: LowerName,
    addresses: Vec<IpAddr>,
}

/// Every name, and every address that has one.
#[derive(Clone, Debug)]
pub struct Zone {
    apex: LowerName,
    /// The apexes of the reverse names that are ours, IPv4's and IPv6's, with the subnet that they are in.
    reverse: Option<(LowerName, Option<LowerName>, Subnet)>,
    hosts: HashMap<VmId, Host>,
    by_name: HashMap<LowerName, VmId>,
    by_address: HashMap<IpAddr, VmId>,
    /// Counts the changes.
    serial: u32,
}

impl Zone {
    /// A zone without VMs; with a subnet, all of its reverse names are the zone's.
    #[must_use]
    pub fn new(subnet: Option<Subnet>) -> Self {
        let apex = Name::from_labels([DOMAIN.as_bytes()]).expect("a label of two letters");
        Self {
            apex: apex.into(),
            reverse: subnet.map(|subnet| (reverse_apex(subnet), subnet.ipv6.map(reverse_apex6), subnet)),
            hosts: HashMap::new(),
            by_name: HashMap::new(),
            by_address: HashMap::new(),
            serial: 1,
        }
    }

    /// Gives a VM its name and addresses, in place of what it had. Says whether anything changed.
    pub fn set(&mut self, vm: VmId, name: &VmName, addresses: Vec<IpAddr>) -> bool {
        let host = Host { name: self.full_name(name), addresses };
        if self.hosts.get(&vm) == Some(&host) {
            return false;
        }
        self.remove(vm);
        // The latest wins: news of a VM that gave name or address up may arrive after news of the one that took it.
        self.by_name.insert(host.name.clone(), vm);
        self.by_address.extend(host.addresses.iter().map(|address| (*address, vm)));
        self.hosts.insert(vm, host);
        self.serial = self.serial.wrapping_add(1);
        true
    }

    /// Forgets a VM. Says whether it was there.
    pub fn remove(&mut self, vm: VmId) -> bool {
        let Some(host) = self.hosts.remove(&vm) else { return false };
        // Back to whom it was taken from, if that one has not let go of it: for a moment two VMs may hold the same.
        if self.by_name.get(&host.name) == Some(&vm) {
            let other = self.hosts.iter().find(|(_, other)| other.name == host.name).map(|(id, _)| *id);
            give(&mut self.by_name, host.name, other);
        }
        for address in host.addresses {
            if self.by_address.get(&address) == Some(&vm) {
                let other = self.hosts.iter().find(|(_, other)| other.addresses.contains(&address)).map(|(id, _)| *id);
                give(&mut self.by_address, address, other);
            }
        }
        self.serial = self.serial.wrapping_add(1);
        true
    }

    /// How many VMs have a name.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether no VM has a name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Answers one question.
    #[must_use]
    pub fn answer(&self, name: &LowerName, class: DNSClass, kind: RecordType) -> Answer {
        let forward = self.apex.zone_of(name);
        let address = if forward { None } else { asked_address(name) };
        let known = address.and_then(|address| self.by_address.get(&address).copied());
        let reverse = self.reverse_apex_of(address);
        let apex = match (forward, reverse, known) {
            (true, _, _) => &self.apex,
            (false, Some(apex), _) => apex,
            // An address outside the subnet that a VM has all the same: the name itself is the whole zone.
            (false, None, Some(_)) => name,
            (false, None, None) => return Answer::Elsewhere,
        };
        if !matches!(class, DNSClass::IN | DNSClass::ANY) || matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            return Answer::Refused;
        }
        let found = if forward { self.forward(name, kind) } else { known.map(|vm| self.pointer(vm, name, kind)) };
        match found {
            Some(records) if records.is_empty() => Answer::NoData(Box::new(self.soa(apex))),
            Some(records) => Answer::Records(records),
            None => Answer::NoName(Box::new(self.soa(apex))),
        }
    }

    /// The apex of the reverse names that an address is among.
    fn reverse_apex_of(&self, address: Option<IpAddr>) -> Option<&LowerName> {
        let (apex, apex6, subnet) = self.reverse.as_ref()?;
        match address? {
            IpAddr::V4(address) => subnet.contains(address).then_some(apex),
            IpAddr::V6(address) => {
                let network = subnet.ipv6?.segments();
                apex6.as_ref().filter(|_| address.segments()[..4] == network[..4])
            }
        }
    }

    /// The records of a name, or `None` where there is no such name.
    fn forward(&self, name: &LowerName, kind: RecordType) -> Option<Vec<Record>> {
        if *name == self.apex {
            let wanted = matches!(kind, RecordType::SOA | RecordType::ANY);
            return Some(wanted.then(|| self.soa(&self.apex)).into_iter().collect());
        }
        let host = self.hosts.get(self.by_name.get(name)?)?;
        let record = |address: &IpAddr| match (address, kind) {
            (IpAddr::V4(v4), RecordType::A | RecordType::ANY) => Some(RData::A(A(*v4))),
            (IpAddr::V6(v6), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(*v6))),
            _ => None,
        };
        Some(host.addresses.iter().filter_map(record).map(|data| Record::from_rdata(name.into(), TTL, data)).collect())
    }

    fn pointer(&self, vm: VmId, name: &LowerName, kind: RecordType) -> Vec<Record> {
        let wanted = matches!(kind, RecordType::PTR | RecordType::ANY);
        let host = self.hosts.get(&vm).filter(|_| wanted);
        host.map(|host| Record::from_rdata(name.into(), TTL, RData::PTR(PTR((&host.name).into()))))
            .into_iter()
            .collect()
    }

    fn soa(&self, apex: &LowerName) -> Record {
        let (refresh, retry, expire) = SOA_TIMERS;
        let server = Name::from(&self.apex);
        let soa = SOA::new(server.clone(), server, self.serial, refresh, retry, expire, NEGATIVE_TTL);
        Record::from_rdata(apex.into(), NEGATIVE_TTL, RData::SOA(soa))
    }

    fn full_name(&self, name: &VmName) -> LowerName {
        let full = Name::from(&self.apex).prepend_label(name.as_str()).expect("a VM's name is one DNS label");
        full.into()
    }
}

fn give<K: Eq + Hash>(map: &mut HashMap<K, VmId>, key: K, to: Option<VmId>) {
    match to {
        Some(vm) => map.insert(key, vm),
        None => map.remove(&key),
    };
}

/// The address that a reverse name asks about, if it is a whole one.
fn asked_address(name: &LowerName) -> Option<IpAddr> {
    let network = Name::from(name).parse_arpa_name().ok()?;
    (network.prefix_len() == network.max_prefix_len()).then(|| network.addr())
}

/// The domain of a subnet's reverse names, at the last whole octet of its prefix.
fn reverse_apex(subnet: Subnet) -> LowerName {
    let whole = usize::from(subnet.prefix / 8);
    let reverse = Name::from(IpAddr::V4(subnet.gateway));
    LowerName::from(reverse.trim_to(whole + 2))
}

/// The same for a /64: sixteen digits, `ip6` and `arpa`.
fn reverse_apex6(network: Ipv6Addr) -> LowerName {
    let reverse = Name::from(IpAddr::V6(network));
    LowerName::from(reverse.trim_to(16 + 2))
}
