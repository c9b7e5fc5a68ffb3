//! The rules and the host's settings for IPv6, with real packets. The uplink has an address of the range for documentation.

use super::firewalls::has_nft;
use super::frames::{End6, addresses6, echo6, icmp6, udp6};
use super::lab::{AT_UPLINK, At, Lab, ROUTER_MAC, UPLINK, in_a_namespace, ip, subnet, tool};
use super::{BRIDGE_MAC, Fate, ONE, expect};
use messages::privileged::{Grant, GrantTarget, Subnet, TapNumber, guest_address6};
use std::net::Ipv6Addr;

const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const NETWORK6: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 0, 0, 0, 0, 0);
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
const ROUTERS_LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const EVERYBODY: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn dual() -> Subnet {
    Subnet { ipv6: Some(NETWORK6), ..subnet(0) }
}

fn by_gateway(ip: Ipv6Addr) -> End6 {
    End6 { mac: BRIDGE_MAC, ip }
}

/// A host with an IPv6 uplink, which has two guests with IPv6.
fn lab() -> (Lab, [At; 2], [End6; 2]) {
    let mut lab = Lab::new();
    ip(&["-6", "address", "add", &format!("{HOST6}/64"), "dev", UPLINK, "nodad"]);
    let mac = ROUTER_MAC.map(|byte| format!("{byte:02x}")).join(":");
    ip(&["-6", "neighbour", "add", &ROUTER6.to_string(), "lladdr", &mac, "dev", UPLINK]);
    ip(&["-6", "route", "add", "default", "via", &ROUTER6.to_string()]);
    lab.network(ONE, dual());
    let at = [0, 1].map(|tap| lab.guest(ONE, dual(), tap));
    let end =
        |number: usize, tap| End6 { mac: lab.end(at[number]).mac, ip: guest_address6(dual(), TapNumber(tap)).unwrap() };
    let ends = [end(0, 0), end(1, 1)];
    (lab, at, ends)
}

fn neighbours() -> String {
    tool("ip", &["-6", "neighbour", "show", "dev", "bbabcdef"])
}

#[test]
fn each_guest_is_itself_and_alone_by_ipv6() {
    in_a_namespace(|| {
        let (lab, [a, _], [me, peer]) = lab();
        let gateway = by_gateway(dual().gateway6().unwrap());
        let router = by_gateway(ROUTER6);
        let as_ = |ip: &str| End6 { mac: me.mac, ip: ip.parse().unwrap() };
        let rows = [
            ("out", me, router, 9, Fate::At(AT_UPLINK)),
            ("another guest's address", End6 { mac: me.mac, ..peer }, router, 9, Fate::Dropped),
            ("another guest's hardware address", End6 { mac: peer.mac, ..me }, router, 9, Fate::Dropped),
            ("both of another guest's", peer, router, 9, Fate::Dropped),
            ("an address of nobody's", as_("fd12:3456:789a::dead"), router, 9, Fate::Dropped),
            ("its own end in another network", as_("fd12:3456:789a:1::ac10:2"), router, 9, Fate::Dropped),
            ("its own end after other bytes", as_("fd12:3456:789a::1:ac10:2"), router, 9, Fate::Dropped),
            ("the link's address", as_("fe80::2"), router, 9, Fate::Dropped),
            ("no address", as_("::"), router, 9, Fate::Dropped),
            ("the gateway's address", as_("fd12:3456:789a::1"), router, 9, Fate::Dropped),
            ("metadata", me, by_gateway(METADATA), 80, Fate::Dropped),
            ("guest to guest, by the bridge", me, peer, 9, Fate::Dropped),
            ("guest to guest, by the gateway", me, by_gateway(peer.ip), 9, Fate::Dropped),
            ("everybody", me, End6 { mac: [0x33, 0x33, 0, 0, 0, 1], ip: EVERYBODY }, 9, Fate::Dropped),
            ("a service of the host's", me, gateway, 22, Fate::Dropped),
            ("names, which are IPv4's", me, gateway, 53, Fate::Dropped),
            ("the host by its other address", me, by_gateway(HOST6), 53, Fate::Dropped),
            ("loopback of the host's", me, by_gateway(Ipv6Addr::LOCALHOST), 53, Fate::Dropped),
        ];
        for (number, (name, from, to, port, fate)) in rows.into_iter().enumerate() {
            let mark = format!("probe-{number:04}");
            expect(&lab, name, a, &udp6(from, to, (40_000, port), mark.as_bytes()), mark.as_bytes(), fate);
        }
        // Refused by the host with a word, or dropped: it comes to nobody.
        lab.send(a, &udp6(me, by_gateway(ROUTERS_LINK), (40_000, 9), b"the link"));
        assert!(!lab.comes(false, |at, frame| at != a && frame.ends_with(b"the link")));
        expect(&lab, "echo of the gateway", a, &echo6(me, gateway, b"echo"), b"echo", Fate::Answered);
        let other = by_gateway(HOST6);
        expect(&lab, "echo of the host's other address", a, &echo6(me, other, b"other"), b"other", Fate::Dropped);
    });
}

#[test]
fn answers_come_back_and_nobody_outside_is_first() {
    in_a_namespace(|| {
        let (lab, [a, _], [me, _]) = lab();
        lab.send(a, &udp6(me, by_gateway(ROUTER6), (40_000, 9), b"there"));
        let out = lab.arrives("out", |at, frame| at == AT_UPLINK && frame.ends_with(b"there"));
        assert_eq!(addresses6(&out), Some((HOST6, ROUTER6)), "masqueraded");
        let (router, host) =
            (End6 { mac: ROUTER_MAC, ip: ROUTER6 }, End6 { mac: out[6..12].try_into().unwrap(), ip: HOST6 });
        let port = u16::from_be_bytes([out[54], out[55]]);
        lab.send(AT_UPLINK, &udp6(router, host, (9, port), b"back"));
        lab.arrives("an answer", |at, frame| at == a && frame.ends_with(b"back"));
        lab.send(AT_UPLINK, &udp6(router, End6 { ip: me.ip, ..host }, (10, 40_000), b"uninvited"));
        assert!(!lab.comes(false, |at, frame| at == a && frame.ends_with(b"uninvited")));
    });
}

#[test]
fn a_guest_is_asked_for_no_addresses_and_not_heard_about_any() {
    in_a_namespace(|| {
        let (lab, [a, b], [me, peer]) = lab();
        let gateway = dual().gateway6().unwrap();
        let known = neighbours();
        assert_eq!(known.matches("PERMANENT").count(), 253, "{known}");
        assert!(known.contains(&format!("{} lladdr 06:ab:cd:ef:00:01 PERMANENT", peer.ip)), "{known}");
        let routes = tool("ip", &["-6", "route"]);
        let own_mac = |kind: u8| [&[kind, 1][..], &me.mac].concat();
        // It is told where the gateway is, though it ought to know.
        let asked = End6 { mac: [0x33, 0x33, 0xff, 0, 0, 1], ip: "ff02::1:ff00:1".parse().unwrap() };
        lab.send(a, &icmp6(me, asked, 135, &[&[0; 4], &gateway.octets()[..], &own_mac(1)].concat()));
        lab.arrives("where the gateway is", |at, frame| at == a && frame.get(54) == Some(&136));
        // Advertisements for another: by its own address, by the other's, solicited or not; also as a question's option.
        let claim = |from: End6| {
            icmp6(from, by_gateway(gateway), 136, &[&[0x60, 0, 0, 0], &peer.ip.octets()[..], &own_mac(2)].concat())
        };
        lab.send(a, &claim(me));
        lab.send(a, &claim(End6 { mac: me.mac, ..peer }));
        let poison = End6 { mac: me.mac, ..peer };
        lab.send(a, &icmp6(poison, asked, 135, &[&[0; 4], &gateway.octets()[..], &own_mac(1)].concat()));
        // A router's advertisement, by the guest's address and by the link's.
        let advertisement = [&[64, 0, 7, 8][..], &[0; 8], &own_mac(1)].concat();
        let everybody = End6 { mac: [0x33, 0x33, 0, 0, 0, 1], ip: EVERYBODY };
        for from in [me, End6 { mac: me.mac, ip: ROUTERS_LINK }] {
            lab.send(a, &icmp6(from, everybody, 134, &advertisement));
        }
        // A redirect of the router's traffic to itself.
        let redirect = [&[0; 4][..], &me.ip.octets(), &ROUTER6.octets()].concat();
        lab.send(a, &icmp6(me, by_gateway(gateway), 137, &redirect));
        expect(&lab, "the peer", b, &echo6(peer, by_gateway(gateway), b"still me"), b"still me", Fate::Answered);
        assert_eq!((neighbours(), tool("ip", &["-6", "route"])), (known, routes));
    });
}

#[test]
fn grants_hold_for_ipv6_too() {
    in_a_namespace(|| {
        let (mut lab, [a, b], [me, peer]) = lab();
        let gateway = by_gateway(dual().gateway6().unwrap());
        let from = TapNumber(0);
        let grants = [GrantTarget::Tap(TapNumber(1)), GrantTarget::Udp(69)].map(|to| Grant { from, to });
        lab.grant(ONE, dual(), &grants);
        let hop = |from: End6, to: End6, ports, mark: &[u8]| udp6(from, by_gateway(to.ip), ports, mark);
        expect(&lab, "granted", a, &hop(me, peer, (5000, 6000), b"hello"), b"hello", Fate::At(b));
        expect(&lab, "its answer", b, &hop(peer, me, (6000, 5000), b"reply"), b"reply", Fate::At(a));
        expect(&lab, "the other way", b, &hop(peer, me, (7000, 7000), b"other"), b"other", Fate::Dropped);
        let outside = by_gateway("fd12:3456:789a::1:ac10:3".parse().unwrap());
        expect(
            &lab,
            "the peer's end elsewhere",
            a,
            &udp6(me, outside, (1, 2), b"elsewhere"),
            b"elsewhere",
            Fate::Dropped,
        );
        expect(&lab, "a granted port", a, &udp6(me, gateway, (41_000, 69), b"tftp"), b"tftp", Fate::Answered);
        expect(&lab, "another port", a, &udp6(me, gateway, (41_000, 70), b"shut"), b"shut", Fate::Dropped);
        expect(&lab, "not the peer's", b, &udp6(peer, gateway, (41_000, 69), b"not b's"), b"not b's", Fate::Dropped);
        lab.grant(ONE, dual(), &[]);
        expect(&lab, "taken back", a, &hop(me, peer, (5001, 6000), b"late"), b"late", Fate::Dropped);
        if has_nft() {
            let listed = tool("nft", &["list", "table", "inet", "banger_65534_abcdef"]);
            assert!(listed.contains("fd12:3456:789a::"), "nft can read it: {listed}");
            tool("nft", &["list", "table", "bridge", "banger_65534_abcdef"]);
        }
    });
}

/// A default route that the host learnt from a router survives, and so does its hearing of routers.
#[test]
fn the_host_keeps_what_its_routers_told_it() {
    in_a_namespace(|| {
        let setting = |interface: &str, name: &str| {
            let path = format!("/proc/sys/net/ipv6/conf/{interface}/{name}");
            std::fs::read_to_string(path).unwrap().trim().to_owned()
        };
        let mut lab = Lab::new();
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{UPLINK}/accept_ra"), "1").unwrap();
        let router = End6 { mac: ROUTER_MAC, ip: ROUTERS_LINK };
        let everybody = End6 { mac: [0x33, 0x33, 0, 0, 0, 1], ip: EVERYBODY };
        let option = [&[1, 1][..], &ROUTER_MAC].concat();
        let advertise = |lab: &Lab, seconds: u16| {
            let body = [&[64, 0][..], &seconds.to_be_bytes(), &[0; 8], &option].concat();
            lab.send(AT_UPLINK, &icmp6(router, everybody, 134, &body));
        };
        let default = || tool("ip", &["-6", "route", "show", "default"]);
        let learnt = || {
            for _ in 0..200 {
                if default().contains("proto ra") {
                    return true;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            false
        };
        // The interface hears nobody before it has an address of the link's that nobody else has.
        for _ in 0..20 {
            advertise(&lab, 1800);
            std::thread::sleep(std::time::Duration::from_millis(200));
            if default().contains("proto ra") {
                break;
            }
        }
        assert!(learnt(), "no route was learnt to begin with: {}", tool("ip", &["-6", "address"]));
        assert_eq!(setting("all", "forwarding"), "0");
        for _ in 0..2 {
            lab.network(ONE, dual());
            assert!(default().contains("proto ra"), "{}", default());
            assert_eq!((setting(UPLINK, "forwarding"), setting(UPLINK, "accept_ra")), ("0".to_owned(), "1".to_owned()));
            assert_eq!(
                (setting("default", "forwarding"), setting("all", "forwarding")),
                ("0".to_owned(), "1".to_owned())
            );
            let bridge = (setting("bbabcdef", "forwarding"), setting("bbabcdef", "accept_ra"));
            assert_eq!(bridge, ("1".to_owned(), "0".to_owned()));
        }
        // It goes on hearing them: the router takes itself back, and comes again.
        advertise(&lab, 0);
        for _ in 0..200 {
            if default().is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(default(), "");
        advertise(&lab, 1800);
        assert!(learnt(), "heard no more");
    });
}
