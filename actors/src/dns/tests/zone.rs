//! What the zone answers, and that no order of news leaves anything behind.

use super::{id, v4};
use crate::dns::audience::{Audience, Place, audience};
use crate::dns::server::usual_port;
use crate::dns::zone::{Answer, Zone};
use hickory_server::proto::rr::{DNSClass, LowerName, Name, RData, RecordType};
use messages::ids::{InstanceId, VmName};
use messages::privileged::Subnet;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr};

const SUBNET: Subnet = Subnet { gateway: Ipv4Addr::new(172, 16, 0, 1), prefix: 24, ipv6: None };

fn vm(name: &str) -> VmName {
    name.parse().unwrap()
}

fn lower(name: &str) -> LowerName {
    LowerName::from(Name::from_ascii(name).unwrap())
}

fn ask(zone: &Zone, name: &str, kind: RecordType) -> String {
    let owner = |record: &hickory_server::proto::rr::Record| record.name.to_string();
    match zone.answer(&lower(name), DNSClass::IN, kind) {
        Answer::Records(records) => records
            .iter()
            .map(|record| {
                assert!(record.ttl <= 5);
                assert_eq!(lower(&owner(record)), lower(name));
                record.data.to_string()
            })
            .collect::<Vec<_>>()
            .join(" "),
        Answer::NoData(soa) => format!("no data, {}", owner(&soa)),
        Answer::NoName(soa) => {
            let RData::SOA(data) = &soa.data else { panic!("{soa:?}") };
            assert!(data.minimum <= 5 && soa.ttl <= 5);
            format!("no name, {}", owner(&soa))
        }
        Answer::Elsewhere => "elsewhere".to_owned(),
        Answer::Refused => "refused".to_owned(),
    }
}

fn zone() -> Zone {
    let mut zone = Zone::new(Some(SUBNET));
    zone.set(id(1), &vm("web"), vec![v4("172.16.0.2")]);
    zone.set(id(2), &vm("db"), vec![v4("172.16.0.3"), v4("fd00::3")]);
    zone.set(id(3), &vm("alone"), vec![]);
    zone
}

#[test]
fn names_have_their_addresses_whatever_their_case() {
    let zone = zone();
    for (name, kind, expected) in [
        ("web.vm.", RecordType::A, "172.16.0.2"),
        ("WeB.Vm.", RecordType::A, "172.16.0.2"),
        ("web.vm.", RecordType::AAAA, "no data, vm."),
        ("web.vm.", RecordType::MX, "no data, vm."),
        ("db.vm.", RecordType::A, "172.16.0.3"),
        ("db.vm.", RecordType::AAAA, "fd00::3"),
        ("db.vm.", RecordType::ANY, "172.16.0.3 fd00::3"),
        // `--net none`: it exists, and has no address.
        ("alone.vm.", RecordType::A, "no data, vm."),
        ("nobody.vm.", RecordType::A, "no name, vm."),
        ("www.web.vm.", RecordType::A, "no name, vm."),
        ("vm.", RecordType::A, "no data, vm."),
        ("web.vm.", RecordType::AXFR, "refused"),
        ("vm.", RecordType::AXFR, "refused"),
        ("example.com.", RecordType::A, "elsewhere"),
        ("notvm.", RecordType::A, "elsewhere"),
        (".", RecordType::NS, "elsewhere"),
    ] {
        assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
    }
    assert_eq!(zone.answer(&lower("web.vm."), DNSClass::CH, RecordType::A), Answer::Refused);
    assert!(ask(&zone, "vm.", RecordType::SOA).starts_with("vm. vm. "));
}

#[test]
fn addresses_have_their_names() {
    let zone = zone();
    let six = Name::from(v4("fd00::3")).to_string();
    for (name, kind, expected) in [
        ("2.0.16.172.in-addr.arpa.", RecordType::PTR, "web.vm."),
        ("2.0.16.172.IN-ADDR.ARPA.", RecordType::PTR, "web.vm."),
        (six.as_str(), RecordType::PTR, "db.vm."),
        ("2.0.16.172.in-addr.arpa.", RecordType::A, "no data, 0.16.172.in-addr.arpa."),
        // Ours, and nobody's: the host's resolvers could not know either.
        ("9.0.16.172.in-addr.arpa.", RecordType::PTR, "no name, 0.16.172.in-addr.arpa."),
        ("9.9.16.172.in-addr.arpa.", RecordType::PTR, "elsewhere"),
        ("8.8.8.8.in-addr.arpa.", RecordType::PTR, "elsewhere"),
        ("0.16.172.in-addr.arpa.", RecordType::PTR, "elsewhere"),
        ("x.0.16.172.in-addr.arpa.", RecordType::PTR, "elsewhere"),
    ] {
        assert_eq!(ask(&zone, name, kind), expected, "{name}");
    }
    let mut narrow = Zone::new(Some(Subnet { gateway: Ipv4Addr::new(10, 1, 2, 17), prefix: 28, ipv6: None }));
    narrow.set(id(1), &vm("web"), vec![v4("10.1.2.18")]);
    assert_eq!(ask(&narrow, "18.2.1.10.in-addr.arpa.", RecordType::PTR), "web.vm.");
    assert_eq!(ask(&narrow, "19.2.1.10.in-addr.arpa.", RecordType::PTR), "no name, 2.1.10.in-addr.arpa.");
    assert_eq!(ask(&narrow, "33.2.1.10.in-addr.arpa.", RecordType::PTR), "elsewhere");
}

#[test]
fn names_and_addresses_change_hands_in_either_order() {
    let mut zone = zone();
    // A rename, and another VM that takes name and address over before the first one's end is known.
    assert!(zone.set(id(1), &vm("site"), vec![v4("172.16.0.2")]));
    assert!(!zone.set(id(1), &vm("site"), vec![v4("172.16.0.2")]), "nothing new");
    assert_eq!(ask(&zone, "web.vm.", RecordType::A), "no name, vm.");
    assert_eq!(ask(&zone, "2.0.16.172.in-addr.arpa.", RecordType::PTR), "site.vm.");
    zone.set(id(4), &vm("site"), vec![v4("172.16.0.2")]);
    assert!(zone.remove(id(1)));
    assert!(!zone.remove(id(1)));
    assert_eq!(ask(&zone, "site.vm.", RecordType::A), "172.16.0.2");
    assert_eq!(ask(&zone, "2.0.16.172.in-addr.arpa.", RecordType::PTR), "site.vm.");
}

#[test]
fn the_longest_name_fits() {
    let mut zone = Zone::new(None);
    let longest = "x".repeat(63);
    zone.set(id(1), &vm(&longest), vec![v4("172.16.0.2")]);
    assert_eq!(ask(&zone, &format!("{longest}.vm."), RecordType::A), "172.16.0.2");
    assert_eq!(ask(&zone, "2.0.16.172.in-addr.arpa.", RecordType::PTR), format!("{longest}.vm."));
}

#[test]
fn who_asks_is_told_by_the_source() {
    let bridge = Place::Bridge(SUBNET);
    for (place, source, expected) in [
        (bridge, "172.16.0.2", Audience::Guest(Ipv4Addr::new(172, 16, 0, 2))),
        (bridge, "::ffff:172.16.0.2", Audience::Guest(Ipv4Addr::new(172, 16, 0, 2))),
        (bridge, "172.16.0.1", Audience::Host),
        (bridge, "127.0.0.1", Audience::Host),
        (bridge, "172.16.1.2", Audience::Stranger),
        (bridge, "8.8.8.8", Audience::Stranger),
        (bridge, "fd00::1", Audience::Stranger),
        (Place::Loopback, "127.0.0.1", Audience::Host),
        (Place::Loopback, "172.16.0.2", Audience::Stranger),
    ] {
        assert_eq!(audience(place, v4(source)), expected, "{source}");
    }
}

#[test]
fn each_instance_has_its_port_on_loopback() {
    for bytes in [[0, 0, 0], [0xff, 0xff, 0xff], [1, 2, 3]] {
        let port = usual_port(InstanceId(bytes));
        assert!((20_000..30_000).contains(&port), "{port}");
        assert_eq!(port, usual_port(InstanceId(bytes)));
    }
}

#[derive(Clone, Debug)]
enum News {
    Set(u8, u8, Option<u8>),
    Remove(u8),
}

fn news() -> impl Strategy<Value = News> {
    prop_oneof![
        (0..6_u8, 0..6_u8, any::<Option<u8>>()).prop_map(|(vm, name, address)| News::Set(vm, name, address)),
        (0..6_u8).prop_map(News::Remove),
    ]
}

proptest! {
    /// Whatever the order: a name is answered for if a VM has it, with an address of a VM of that name; and all is forgotten.
    #[test]
    fn every_order_of_news_ends_well(all in proptest::collection::vec(news(), 0..60)) {
        let mut zone = Zone::new(Some(SUBNET));
        let mut model = std::collections::BTreeMap::new();
        for one in all {
            match one {
                News::Set(number, name, address) => {
                    let addresses: Vec<IpAddr> = address.map(|last| IpAddr::from([172, 16, 0, last])).into_iter().collect();
                    zone.set(id(number), &vm(&format!("n{name}")), addresses.clone());
                    model.insert(number, (name, addresses));
                }
                News::Remove(number) => prop_assert_eq!(zone.remove(id(number)), model.remove(&number).is_some()),
            }
            prop_assert_eq!(zone.len(), model.len());
            for name in 0..6_u8 {
                let holders: Vec<_> = model.values().filter(|(held, _)| *held == name).collect();
                match zone.answer(&lower(&format!("n{name}.vm.")), DNSClass::IN, RecordType::A) {
                    Answer::Records(records) => {
                        let address = records[0].data.ip_addr();
                        prop_assert!(holders.iter().any(|(_, held)| held.first().copied() == address));
                    }
                    Answer::NoData(_) => prop_assert!(holders.iter().any(|(_, held)| held.is_empty())),
                    Answer::NoName(_) => prop_assert!(holders.is_empty()),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
        for number in 0..6 {
            zone.remove(id(number));
        }
        prop_assert!(zone.is_empty());
        for last in 0..=255_u8 {
            let reverse = LowerName::from(Name::from(IpAddr::from([172, 16, 0, last])));
            prop_assert!(matches!(zone.answer(&reverse, DNSClass::IN, RecordType::PTR), Answer::NoName(_)));
        }
    }
}

#[test]
fn addresses_of_both_kinds_lead_back_to_the_name() {
    let network = "fd12:3456:789a::".parse().unwrap();
    let mut zone = Zone::new(Some(Subnet { ipv6: Some(network), ..SUBNET }));
    zone.set(id(1), &vm("web"), vec![v4("172.16.0.2"), v4("fd12:3456:789a::ac10:2")]);
    assert_eq!(ask(&zone, "web.vm.", RecordType::A), "172.16.0.2");
    assert_eq!(ask(&zone, "web.vm.", RecordType::AAAA), "fd12:3456:789a::ac10:2");
    let apex = "0.0.0.0.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa.";
    let name = format!("2.0.0.0.0.1.c.a.0.0.0.0.0.0.0.0.{apex}");
    assert_eq!(ask(&zone, &name, RecordType::PTR), "web.vm.");
    // Nobody's, but of the network: not a question for the world.
    let nobody = format!("3.0.0.0.0.1.c.a.0.0.0.0.0.0.0.0.{apex}");
    assert_eq!(ask(&zone, &nobody, RecordType::PTR), format!("no name, {apex}"));
    let elsewhere = nobody.replace("a.9.8.7", "b.9.8.7");
    assert_eq!(ask(&zone, &elsewhere, RecordType::PTR), "elsewhere");
    zone.remove(id(1));
    assert_eq!(ask(&zone, &name, RecordType::PTR), format!("no name, {apex}"));
}
