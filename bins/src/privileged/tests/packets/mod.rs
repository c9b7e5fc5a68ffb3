//! The rules, tried with real packets: frames written to real taps, in a network namespace that nobody else sees.

mod firewalls;
mod frames;
mod host;
mod ipv6;
mod lab;

use frames::{BROADCAST, End, addresses, arp, arp_answer, echo, ether, ipv4, syn, udp};
use lab::{AT_UPLINK, At, HOST, Lab, ROUTER, in_a_namespace, subnet};
use messages::ids::InstanceId;
use messages::privileged::{Grant, GrantTarget, PrivilegedOperation, TapNumber};
use std::net::Ipv4Addr;

const ONE: InstanceId = InstanceId([0xab, 0xcd, 0xef]);
const OTHER: InstanceId = InstanceId([1, 2, 3]);
const BRIDGE_MAC: [u8; 6] = [0x02, 0xab, 0xcd, 0xef, 0xff, 0xff];
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Of a frame without a payload: nothing that a frame of the kernel's own could hold by chance, as a short one can.
const NO_MARK: &[u8] = b"no frame holds this";

/// What has to become of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody ever sees it, and nobody answers it.
    Dropped,
    /// It comes out there.
    At(At),
    /// The sender gets an answer.
    Answered,
}

/// Sends a frame that carries `mark` and holds its fate against what is expected.
fn expect(lab: &Lab, name: &str, from: At, frame: &[u8], mark: &[u8], fate: Fate) {
    lab.send(from, frame);
    let own = lab.end(from).ip;
    let seen = |at: At, frame: &[u8]| {
        let carries = frame.windows(mark.len()).any(|part| part == mark);
        // An answer to a guest from an address that it may not use would come back to it by nobody's mistake but ours.
        let answers = at == from && addresses(frame).is_some_and(|(_, to)| to == own);
        (carries || answers, at)
    };
    match fate {
        Fate::Dropped => {
            assert!(!lab.comes(false, |at, frame| seen(at, frame).0), "{name}: gets through");
        }
        Fate::At(place) => {
            lab.arrives(name, |at, frame| seen(at, frame) == (true, place));
        }
        Fate::Answered => {
            lab.arrives(name, |at, frame| seen(at, frame) == (true, from));
        }
    }
}

/// The gateway as a guest addresses it: its hardware address, and any address to be reached by it.
fn by_gateway(ip: Ipv4Addr) -> End {
    End { mac: BRIDGE_MAC, ip }
}

#[test]
fn each_guest_is_itself_and_alone() {
    in_a_namespace(|| {
        let mut lab = Lab::new();
        let net = subnet(0);
        lab.network(ONE, net);
        let (a, b) = (lab.guest(ONE, net, 0), lab.guest(ONE, net, 1));
        let (me, peer, gateway) = (lab.end(a), lab.end(b), by_gateway(net.gateway));
        let as_peer = End { mac: me.mac, ip: peer.ip };
        let with_peers_mac = End { mac: peer.mac, ip: me.ip };
        let stranger = End { mac: me.mac, ip: Ipv4Addr::new(172, 16, 7, 7) };
        let mark = |number: usize| format!("probe-{number:04}");
        let to = |from: End, to: End, port: u16| move |mark: &[u8]| udp(from, to, (40_000, port), mark);
        let tagged = |mark: &[u8]| {
            let inner = udp(me, by_gateway(ROUTER), (40_000, 9), mark);
            ether(me.mac, BRIDGE_MAC, 0x8100, &[&[0, 0][..], &inner[12..]].concat())
        };
        let ask = |frame_from, sender: End| move |_: &[u8]| arp(frame_from, BROADCAST, 1, sender, gateway);
        type Make<'a> = Box<dyn Fn(&[u8]) -> Vec<u8> + 'a>;
        let everyone = End { mac: BROADCAST, ip: Ipv4Addr::new(172, 16, 0, 255) };
        let rows: Vec<(&str, Make<'_>, Fate)> = vec![
            // First: the kernel's account of what it answered to whom is shared with that of the redirects it would send.
            ("the resolver's port", Box::new(to(me, gateway, 53)), Fate::Answered),
            ("guest to uplink", Box::new(to(me, by_gateway(ROUTER), 9)), Fate::At(AT_UPLINK)),
            ("guest to the world", Box::new(to(me, by_gateway([192, 0, 2, 1].into()), 9)), Fate::At(AT_UPLINK)),
            ("another guest's address", Box::new(to(as_peer, by_gateway(ROUTER), 9)), Fate::Dropped),
            ("another guest's hardware address", Box::new(to(with_peers_mac, by_gateway(ROUTER), 9)), Fate::Dropped),
            ("both of another guest's", Box::new(to(peer, by_gateway(ROUTER), 9)), Fate::Dropped),
            ("an address of nobody's", Box::new(to(stranger, by_gateway(ROUTER), 9)), Fate::Dropped),
            (
                "the gateway's address",
                Box::new(to(End { mac: me.mac, ..gateway }, by_gateway(ROUTER), 9)),
                Fate::Dropped,
            ),
            ("a VLAN tag", Box::new(tagged), Fate::Dropped),
            ("IPv6", Box::new(|mark| ether(me.mac, [0x33, 0x33, 0, 0, 0, 1], 0x86dd, mark)), Fate::Dropped),
            ("metadata", Box::new(to(me, by_gateway(METADATA), 80)), Fate::Dropped),
            ("link-local", Box::new(to(me, by_gateway([169, 254, 1, 1].into()), 80)), Fate::Dropped),
            ("guest to guest, by the bridge", Box::new(to(me, peer, 9)), Fate::Dropped),
            ("guest to guest, by the gateway", Box::new(to(me, by_gateway(peer.ip), 9)), Fate::Dropped),
            ("broadcast", Box::new(to(me, everyone, 9)), Fate::Dropped),
            ("a protocol of its own to a guest", Box::new(|mark| ether(me.mac, peer.mac, 0x88b5, mark)), Fate::Dropped),
            ("echo of the gateway", Box::new(|mark| echo(me, gateway, mark)), Fate::Answered),
            ("the resolver's port, TCP", Box::new(|_| syn(me, gateway, (40_001, 53), 1460)), Fate::Answered),
            ("a service of the host's", Box::new(|_| syn(me, gateway, (40_002, 22), 1460)), Fate::Dropped),
            ("a service of the host's, UDP", Box::new(to(me, gateway, 69)), Fate::Dropped),
            (
                "the host by its other address",
                Box::new(|_| syn(me, by_gateway(HOST), (40_003, 53), 1460)),
                Fate::Dropped,
            ),
            ("echo of the host's other address", Box::new(|mark| echo(me, by_gateway(HOST), mark)), Fate::Dropped),
            ("loopback of the host's", Box::new(to(me, by_gateway(Ipv4Addr::LOCALHOST), 53)), Fate::Dropped),
            ("a source route's worth of nothing", Box::new(|mark| ipv4(me, gateway, 253, mark)), Fate::Dropped),
        ];
        for (number, (name, make, fate)) in rows.iter().enumerate() {
            let mark = mark(number);
            expect(&lab, name, a, &make(mark.as_bytes()), mark.as_bytes(), *fate);
        }
        // ARP is answered to whom it comes from, and only then.
        let answered = |frame: Vec<u8>| {
            lab.send(a, &frame);
            lab.comes(false, |at, frame| at == a && arp_answer(frame).is_some_and(|end| end.mac == BRIDGE_MAC))
        };
        assert!(answered(ask(me.mac, me)(&[])), "an honest question");
        for (name, frame_from, sender) in [
            ("ARP for another's address", me.mac, as_peer),
            ("ARP for another's hardware address", me.mac, with_peers_mac),
            ("ARP in another's frame", peer.mac, me),
            ("ARP for the gateway", me.mac, End { mac: me.mac, ip: net.gateway }),
        ] {
            assert!(!answered(ask(frame_from, sender)(&[])), "{name}");
        }
    });
}

#[test]
fn no_frame_draws_anothers_traffic() {
    in_a_namespace(|| {
        let mut lab = Lab::new();
        let net = subnet(0);
        lab.network(ONE, net);
        let (a, b) = (lab.guest(ONE, net, 0), lab.guest(ONE, net, 1));
        let peer = lab.end(b);
        let gateway = by_gateway(net.gateway);
        expect(&lab, "before", b, &echo(peer, gateway, b"before"), b"before", Fate::Answered);
        // Link-local groups (LLDP, spanning tree) are taken before any rule sees them; a bridge that learns, learns there.
        for group in [0x00, 0x0e] {
            lab.send(a, &ether(peer.mac, [0x01, 0x80, 0xc2, 0, 0, group], 0x88cc, &[0; 46]));
        }
        lab.send(a, &ether(peer.mac, BROADCAST, 0x0806, &[0; 46]));
        lab.send(a, &arp(lab.end(a).mac, BROADCAST, 2, End { mac: lab.end(a).mac, ip: peer.ip }, gateway));
        expect(&lab, "after", b, &echo(peer, gateway, b"after"), b"after", Fate::Answered);
    });
}

#[test]
fn nobody_outside_reaches_a_guest_first() {
    in_a_namespace(|| {
        let mut lab = Lab::new();
        let net = subnet(0);
        lab.network(ONE, net);
        let a = lab.guest(ONE, net, 0);
        let (me, router) = (lab.end(a), lab.end(AT_UPLINK));
        expect(&lab, "out", a, &udp(me, by_gateway(ROUTER), (40_000, 9), b"there"), b"there", Fate::At(AT_UPLINK));
        // The host's hardware address is in what it sent.
        lab.send(a, &udp(me, by_gateway(ROUTER), (40_000, 9), b"again"));
        let out = lab.arrives("out again", |at, frame| at == AT_UPLINK && frame.ends_with(b"again"));
        let host = End { mac: out[6..12].try_into().unwrap(), ip: HOST };
        assert_eq!(addresses(&out), Some((HOST, ROUTER)), "masqueraded");
        let port = u16::from_be_bytes([out[34], out[35]]);
        let back = udp(router, host, (9, port), b"back");
        lab.send(AT_UPLINK, &back);
        lab.arrives("an answer", |at, frame| at == a && frame.ends_with(b"back"));
        let routed = udp(router, End { ip: me.ip, ..host }, (10, 40_000), b"uninvited");
        lab.send(AT_UPLINK, &routed);
        assert!(!lab.comes(false, |at, frame| at == a && frame.ends_with(b"uninvited")));
    });
}

#[test]
fn grants_open_exactly_what_they_say_and_go() {
    in_a_namespace(|| {
        let mut lab = Lab::new();
        let net = subnet(0);
        lab.network(ONE, net);
        let [a, b, c] = [0, 1, 2].map(|tap| lab.guest(ONE, net, tap));
        let [me, peer, third] = [a, b, c].map(|at| lab.end(at));
        let gateway = by_gateway(net.gateway);
        let from = TapNumber(0);
        lab.grant(
            ONE,
            net,
            &[
                Grant { from, to: GrantTarget::Tap(TapNumber(1)) },
                Grant { from, to: GrantTarget::Tcp(8080) },
                Grant { from, to: GrantTarget::Udp(69) },
            ],
        );
        // Before any detour: the kernel's account of what it answered to whom is shared with that of redirects.
        expect(&lab, "a granted UDP port", a, &udp(me, gateway, (41_000, 69), b"tftp"), b"tftp", Fate::Answered);
        // What a guest's kernel does first: it asks who has the address, and gets the bridge's.
        lab.send(a, &arp(me.mac, BROADCAST, 1, me, End { mac: [0; 6], ip: peer.ip }));
        let answer = lab.arrives("ARP for a peer", |at, frame| at == a && arp_answer(frame).is_some());
        assert_eq!(arp_answer(&answer), Some(End { mac: BRIDGE_MAC, ip: peer.ip }));

        let hop = |from: End, to: End, mark: &[u8]| udp(from, by_gateway(to.ip), (5000, 6000), mark);
        expect(&lab, "granted", a, &hop(me, peer, b"hello"), b"hello", Fate::At(b));
        let reply = udp(peer, by_gateway(me.ip), (6000, 5000), b"reply");
        expect(&lab, "its answer", b, &reply, b"reply", Fate::At(a));
        let new = udp(peer, by_gateway(me.ip), (7000, 7000), b"other way");
        expect(&lab, "the other way round", b, &new, b"other way", Fate::Dropped);
        expect(&lab, "a third", a, &hop(me, third, b"third"), b"third", Fate::Dropped);
        expect(&lab, "from a third", c, &hop(third, peer, b"by third"), b"by third", Fate::Dropped);
        expect(&lab, "layer 2 stays shut", a, &udp(me, peer, (5000, 6000), b"direct"), b"direct", Fate::Dropped);

        let knock = |from: End, own: u16, port: u16| syn(from, gateway, (own, port), 1460);
        expect(&lab, "a granted port", a, &knock(me, 41_000, 8080), NO_MARK, Fate::Answered);
        expect(&lab, "the same port, UDP", a, &udp(me, gateway, (41_000, 8080), b"not tcp"), b"not tcp", Fate::Dropped);
        expect(&lab, "the next port", a, &knock(me, 41_001, 8081), NO_MARK, Fate::Dropped);
        expect(&lab, "not the peer's", b, &knock(peer, 41_002, 8080), NO_MARK, Fate::Dropped);

        lab.grant(ONE, net, &[]);
        let late = udp(me, by_gateway(peer.ip), (5001, 6000), b"late");
        expect(&lab, "taken back", a, &late, b"late", Fate::Dropped);
        expect(&lab, "the port taken back", a, &knock(me, 41_003, 8080), NO_MARK, Fate::Dropped);
        // What the kernel still knows as established: the next guest at this tap must not go on with it.
        let on = |mark: &'static [u8]| (hop(me, peer, mark), udp(peer, by_gateway(me.ip), (6000, 5000), mark));
        expect(&lab, "a flow of before", a, &on(b"goes on").0, b"goes on", Fate::Dropped);
        expect(&lab, "its other half", b, &on(b"goes back").1, b"goes back", Fate::Dropped);
        expect(&lab, "to the host", a, &udp(me, gateway, (41_000, 69), b"more tftp"), b"more tftp", Fate::Dropped);
    });
}

#[test]
fn two_instances_do_not_notice_each_other() {
    in_a_namespace(|| {
        let mut lab = Lab::new();
        let (net, other_net) = (subnet(0), subnet(1));
        lab.network(ONE, net);
        lab.network(OTHER, other_net);
        let (a, b) = (lab.guest(ONE, net, 0), lab.guest(OTHER, other_net, 0));
        let (me, other) = (lab.end(a), lab.end(b));
        let others_gateway = End { mac: [0x02, 1, 2, 3, 0xff, 0xff], ip: other_net.gateway };
        let out =
            |from: End, gateway: End, mark: &[u8]| udp(from, End { mac: gateway.mac, ip: ROUTER }, (40_000, 9), mark);
        let gateway = by_gateway(net.gateway);
        expect(&lab, "one out", a, &out(me, gateway, b"one out"), b"one out", Fate::At(AT_UPLINK));
        expect(&lab, "other out", b, &out(other, others_gateway, b"other out"), b"other out", Fate::At(AT_UPLINK));
        let across = udp(me, by_gateway(other.ip), (40_000, 9), b"across");
        expect(&lab, "guest to guest", a, &across, b"across", Fate::Dropped);
        let back = udp(other, End { mac: others_gateway.mac, ip: me.ip }, (40_000, 9), b"across back");
        expect(&lab, "and back", b, &back, b"across back", Fate::Dropped);
        let knock = echo(me, by_gateway(other_net.gateway), b"other gateway");
        expect(&lab, "the other's gateway", a, &knock, b"other gateway", Fate::Dropped);
        // Neither the other's network nor anything of its is made by, or goes with, the first.
        let overlapping =
            PrivilegedOperation::EnsureBridge { instance: ONE, bridge: "bbabcdef".parse().unwrap(), subnet: other_net };
        assert!(lab.perform(&overlapping).unwrap_err().to_string().contains("overlaps"));
        lab.done(&PrivilegedOperation::RemoveInstance { instance: ONE });
        let still = out(other, others_gateway, b"still there");
        expect(&lab, "after the first is gone", b, &still, b"still there", Fate::At(AT_UPLINK));
        let left = lab::tool("ip", &["-o", "link"]);
        assert!(!left.contains("abcdef"), "{left}");
    });
}
