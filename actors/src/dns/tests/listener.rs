//! A listener, asked as resolvers ask: UDP, TCP, EDNS, and what no resolver would send.

use super::{Bridge, ask_tcp, exchange, id, question, said, send_udp, v4};
use crate::dns::limits::CONNECTIONS_EACH;
use hickory_server::proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_server::proto::rr::{DNSClass, RData, RecordType};
use std::net::{IpAddr, Ipv4Addr};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, UdpSocket};

const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 8, 2));
const HOST: IpAddr = IpAddr::V4(Bridge::SUBNET.gateway);

fn bridge() -> Bridge {
    let bridge = Bridge::start(Vec::new());
    bridge.zone.send_modify(|zone| {
        zone.set(id(1), &"web".parse().unwrap(), vec![v4("127.0.7.2")]);
    });
    bridge
}

#[tokio::test]
async fn the_same_answer_by_udp_and_tcp_with_and_without_edns() {
    let bridge = bridge();
    let mut asked = question("wEb.vm.", RecordType::A);
    for edns in [None, Some(512), Some(4096), Some(1)] {
        if let Some(payload) = edns {
            let mut ours = Edns::new();
            ours.set_max_payload(payload).set_version(0);
            asked.set_edns(ours);
        }
        for answer in [
            send_udp(Bridge::GUEST, bridge.address, &asked.to_vec().unwrap()).await,
            ask_tcp(Bridge::GUEST, bridge.address, &asked).await,
        ] {
            assert_eq!(said(&answer), "127.0.7.2");
            assert_eq!(answer.metadata.id, asked.metadata.id);
            assert!(
                answer.metadata.authoritative && answer.metadata.recursion_available && !answer.metadata.truncation
            );
            // The question as it was asked: resolvers that mix cases to tell forgers by it depend on this.
            assert_eq!(answer.queries[0].name().to_string(), "wEb.vm.");
            assert_eq!(answer.edns.is_some(), edns.is_some());
        }
    }
}

#[tokio::test]
async fn what_does_not_exist_says_so_with_the_soa() {
    let bridge = bridge();
    for (name, kind, code) in [
        ("nobody.vm.", RecordType::A, ResponseCode::NXDomain),
        ("web.vm.", RecordType::AAAA, ResponseCode::NoError),
        ("9.7.0.127.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain),
    ] {
        let answer = bridge.ask(Bridge::GUEST, name, kind).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (code, 0), "{name}");
        let [soa] = &answer.authorities[..] else { panic!("{answer}") };
        assert!(matches!(&soa.data, RData::SOA(data) if data.minimum <= 5), "{soa}");
    }
    assert_eq!(said(&bridge.ask(Bridge::GUEST, "2.7.0.127.in-addr.arpa.", RecordType::PTR).await), "web.vm.");
}

#[tokio::test]
async fn strangers_get_nothing_and_the_host_only_the_zone() {
    let bridge = bridge();
    assert_eq!(said(&bridge.ask(STRANGER, "web.vm.", RecordType::A).await), "127.0.7.2", "loopback is the host");
    assert_eq!(said(&bridge.ask(HOST, "web.vm.", RecordType::A).await), "127.0.7.2");
    for source in [STRANGER, HOST] {
        let answer = bridge.ask(source, "example.com.", RecordType::A).await;
        assert_eq!(said(&answer), "Refused");
        assert!(!answer.metadata.recursion_available);
    }
}

#[tokio::test]
async fn only_plain_questions_are_answered() {
    let bridge = bridge();
    let with = |change: &dyn Fn(&mut Message)| {
        let mut message = question("web.vm.", RecordType::A);
        change(&mut message);
        message
    };
    let mut future = Edns::new();
    future.set_version(1);
    let second = question("db.vm.", RecordType::A).queries[0].clone();
    for (message, expected) in [
        (with(&|m| m.metadata.op_code = OpCode::Status), "NotImp"),
        (with(&|m| m.queries.clear()), "FormErr"),
        (with(&|m| m.queries.push(second.clone())), "FormErr"),
        (with(&|m| _ = m.queries[0].set_query_class(DNSClass::CH)), "Refused"),
        (with(&|m| _ = m.queries[0].set_query_type(RecordType::AXFR)), "Refused"),
        // Code 16 is BADVERS, and in another place BADSIG.
        (with(&|m| _ = m.set_edns(future.clone())), "BADSIG"),
    ] {
        let answer = send_udp(Bridge::GUEST, bridge.address, &message.to_vec().unwrap()).await;
        assert_eq!(said(&answer), expected);
    }
}

#[tokio::test]
async fn whatever_is_sent_the_next_question_is_answered() {
    let bridge = bridge();
    let socket = UdpSocket::bind((Bridge::GUEST, 0)).await.unwrap();
    let good = question("web.vm.", RecordType::A).to_vec().unwrap();
    let mut hostile: Vec<Vec<u8>> = vec![vec![], vec![0], vec![0xff; 12], vec![0xc0; 600], vec![0; 65_000]];
    hostile.extend((0..good.len()).map(|cut| good[..cut].to_vec()));
    // Each byte of the question with all its bits turned: counts, lengths, pointers.
    hostile.extend((0..good.len()).map(|at| {
        let mut bytes = good.clone();
        bytes[at] ^= 0xff;
        bytes
    }));
    // A name that points at itself.
    let mut circle = good[..12].to_vec();
    circle.extend([0xc0, 12, 0, 1, 0, 1]);
    hostile.push(circle);
    for bytes in &hostile {
        socket.send_to(bytes, bridge.address).await.unwrap();
        // And over TCP, where the length may lie as well.
        let mut stream = connect(&bridge).await;
        for length in [bytes.len(), bytes.len() + 9] {
            let length = u16::try_from(length).unwrap();
            let sent = [&length.to_be_bytes()[..], bytes].concat();
            tokio::io::AsyncWriteExt::write_all(&mut stream, &sent).await.ok();
        }
    }
    assert_eq!(said(&bridge.ask(Bridge::GUEST, "web.vm.", RecordType::A).await), "127.0.7.2");
    assert_eq!(said(&ask_tcp(Bridge::GUEST, bridge.address, &question("web.vm.", RecordType::A)).await), "127.0.7.2");
}

async fn connect(bridge: &Bridge) -> tokio::net::TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Bridge::GUEST, 0).into()).unwrap();
    socket.connect(bridge.address).await.unwrap()
}

#[tokio::test]
async fn a_guest_with_many_connections_shuts_out_nobody_else() {
    let bridge = bridge();
    let asked = question("web.vm.", RecordType::A);
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_EACH {
        let mut stream = connect(&bridge).await;
        assert_eq!(said(&exchange(&mut stream, &asked).await), "127.0.7.2");
        // Each may ask again.
        assert_eq!(said(&exchange(&mut stream, &asked).await), "127.0.7.2");
        held.push(stream);
    }
    let mut one_too_many = connect(&bridge).await;
    let closed = tokio::time::timeout(super::PATIENCE, one_too_many.read_u8()).await.unwrap();
    assert!(closed.is_err(), "closed at once, not served");
    let other = v4("127.0.7.3");
    assert_eq!(said(&ask_tcp(other, bridge.address, &asked).await), "127.0.7.2");
    drop(held);
}
