//! Forwarding, to upstreams on loopback that answer, lie, keep silent or cut their answers short.

use super::{Bridge, ask_tcp, id, question, said, sockets, v4};
use crate::dns::forward::{HostUpstreams, Upstreams};
use crate::dns::limits::FORWARDS_EACH;
use hickory_server::proto::op::{Message, ResponseCode};
use hickory_server::proto::rr::rdata::{A, TXT};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

/// What an upstream does with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Honest,
    Silent,
    /// Sends an answer with another number, one to another question, rubbish, and then the true one.
    Forged,
    /// Cuts UDP answers short; the whole is to be had by TCP.
    Short,
    Fails,
    Refuses,
}

struct Upstream {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn answer(asked: &Message, manner: Manner, tcp: bool) -> Message {
    let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
    answer.metadata.recursion_available = true;
    answer.add_query(asked.queries[0].clone());
    let name = asked.queries[0].name().clone();
    match manner {
        Manner::Fails => answer.metadata.response_code = ResponseCode::NXDomain,
        Manner::Refuses => answer.metadata.response_code = ResponseCode::Refused,
        Manner::Short if !tcp => answer.metadata.truncation = true,
        Manner::Short => {
            for number in 0..20 {
                let text = RData::TXT(TXT::new(vec![format!("{number}{}", "x".repeat(90))]));
                answer.add_answer(Record::from_rdata(name.clone(), 60, text));
            }
        }
        Manner::Honest | Manner::Silent | Manner::Forged => {
            answer.add_answer(Record::from_rdata(name, 77, RData::A(A(Ipv4Addr::new(192, 0, 2, 7)))));
        }
    }
    answer
}

impl Upstream {
    fn start(manner: Manner) -> Self {
        let (udp, tcp) = sockets(Ipv4Addr::LOCALHOST);
        let (udp, tcp) = (std::net::UdpSocket::from(udp), std::net::TcpListener::from(tcp));
        udp.set_nonblocking(true).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let (udp, tcp) = (UdpSocket::from_std(udp).unwrap(), TcpListener::from_std(tcp).unwrap());
        let address = udp.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let (by_udp, by_tcp) = (Arc::clone(&asked), Arc::clone(&asked));
        let udp = tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                let (length, source) = udp.recv_from(&mut buffer).await.unwrap();
                by_udp.fetch_add(1, Ordering::SeqCst);
                let asked = Message::from_vec(&buffer[..length]).unwrap();
                if manner == Manner::Silent {
                    continue;
                }
                let honest = answer(&asked, manner, false);
                if manner == Manner::Forged {
                    let mut forged = answer(&asked, Manner::Honest, false);
                    forged.answers[0].data = RData::A(A(Ipv4Addr::new(6, 6, 6, 6)));
                    let mut other = forged.clone();
                    other.queries[0].set_name(Name::from_ascii("other.example.").unwrap());
                    forged.metadata.id ^= 1;
                    for bytes in [forged.to_vec().unwrap(), other.to_vec().unwrap(), vec![1, 2, 3]] {
                        udp.send_to(&bytes, source).await.unwrap();
                    }
                }
                udp.send_to(&honest.to_vec().unwrap(), source).await.unwrap();
            }
        });
        let tcp = tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                by_tcp.fetch_add(1, Ordering::SeqCst);
                let length = stream.read_u16().await.unwrap();
                let mut bytes = vec![0; usize::from(length)];
                stream.read_exact(&mut bytes).await.unwrap();
                let bytes = answer(&Message::from_vec(&bytes).unwrap(), manner, true).to_vec().unwrap();
                stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
            }
        });
        Self { address, asked, tasks: [udp, tcp] }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn guests_reach_the_world_and_the_zone_is_never_forwarded() {
    let upstream = Upstream::start(Manner::Honest);
    let bridge = Bridge::start(vec![upstream.address]);
    let answer = bridge.ask(Bridge::GUEST, "example.com.", RecordType::A).await;
    assert_eq!(said(&answer), "192.0.2.7");
    assert_eq!((answer.metadata.id, answer.answers[0].ttl), (0x1234, 77));
    assert!(answer.metadata.recursion_available && !answer.metadata.authoritative);
    assert_eq!(
        said(&ask_tcp(Bridge::GUEST, bridge.address, &question("example.com.", RecordType::A)).await),
        "192.0.2.7"
    );
    assert_eq!(upstream.asked(), 2);
    for name in ["nobody.vm.", "vm.", "200.7.0.127.in-addr.arpa."] {
        bridge.ask(Bridge::GUEST, name, RecordType::A).await;
    }
    assert_eq!(said(&bridge.ask(v4("127.0.0.1"), "example.com.", RecordType::A).await), "Refused");
    assert_eq!(upstream.asked(), 2);
}

#[tokio::test]
async fn what_an_upstream_denies_is_denied() {
    let upstream = Upstream::start(Manner::Fails);
    let bridge = Bridge::start(vec![upstream.address, upstream.address]);
    assert_eq!(said(&bridge.ask(Bridge::GUEST, "example.com.", RecordType::A).await), "NXDomain");
    assert_eq!(upstream.asked(), 1, "an answer is an answer");
}

#[tokio::test]
async fn one_that_does_not_want_to_answer_is_heard_last() {
    let (unwilling, good) = (Upstream::start(Manner::Refuses), Upstream::start(Manner::Honest));
    let bridge = Bridge::start(vec![unwilling.address, good.address]);
    assert_eq!(said(&bridge.ask(Bridge::GUEST, "example.com.", RecordType::A).await), "192.0.2.7");
    let alone = Bridge::start(vec![unwilling.address]);
    assert_eq!(said(&alone.ask(Bridge::GUEST, "example.com.", RecordType::A).await), "Refused");
    assert_eq!((unwilling.asked(), good.asked()), (2, 1));
}

#[tokio::test]
async fn the_next_upstream_is_asked_when_one_is_silent_or_gone() {
    let (silent, good) = (Upstream::start(Manner::Silent), Upstream::start(Manner::Honest));
    let gone = { std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    let bridge = Bridge::start(vec![gone, silent.address, good.address]);
    assert_eq!(said(&bridge.ask(Bridge::GUEST, "example.com.", RecordType::A).await), "192.0.2.7");
    assert_eq!((silent.asked(), good.asked()), (1, 1));
}

#[tokio::test]
async fn forged_answers_are_not_passed_on() {
    let upstream = Upstream::start(Manner::Forged);
    let bridge = Bridge::start(vec![upstream.address]);
    assert_eq!(said(&bridge.ask(Bridge::GUEST, "example.com.", RecordType::A).await), "192.0.2.7");
}

#[tokio::test]
async fn a_long_answer_is_fetched_by_tcp_and_cut_for_udp() {
    let upstream = Upstream::start(Manner::Short);
    let bridge = Bridge::start(vec![upstream.address]);
    let cut = bridge.ask(Bridge::GUEST, "example.com.", RecordType::TXT).await;
    assert!(cut.metadata.truncation && cut.answers.len() < 20, "{cut}");
    let whole = ask_tcp(Bridge::GUEST, bridge.address, &question("example.com.", RecordType::TXT)).await;
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 20));
}

#[tokio::test]
async fn without_upstreams_it_says_so_at_once() {
    let bridge = Bridge::start(Vec::new());
    assert_eq!(said(&bridge.ask(Bridge::GUEST, "example.com.", RecordType::A).await), "ServFail");
}

#[tokio::test]
async fn a_guest_that_asks_too_much_is_refused_and_the_others_are_served() {
    let upstream = Upstream::start(Manner::Silent);
    let bridge = Bridge::start(vec![upstream.address]);
    bridge.zone.send_modify(|zone| {
        zone.set(id(1), &"web".parse().unwrap(), vec![v4("127.0.7.9")]);
    });
    let flood: Vec<_> = (0..FORWARDS_EACH)
        .map(|number| {
            let (address, name) = (bridge.address, format!("n{number}.example.com."));
            tokio::spawn(async move {
                let bytes = question(&name, RecordType::A).to_vec().unwrap();
                said(&super::send_udp(Bridge::GUEST, address, &bytes).await)
            })
        })
        .collect();
    while upstream.asked() < FORWARDS_EACH {
        tokio::task::yield_now().await;
    }
    let began = Instant::now();
    assert_eq!(said(&bridge.ask(Bridge::GUEST, "more.example.com.", RecordType::A).await), "ServFail");
    assert_eq!(said(&bridge.ask(Bridge::GUEST, "web.vm.", RecordType::A).await), "127.0.7.9", "the zone is free");
    assert!(began.elapsed() < crate::dns::limits::UPSTREAM_TIME, "neither waited");
    let asked = upstream.asked();
    let other = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 3));
    assert_eq!(said(&bridge.ask(other, "example.com.", RecordType::A).await), "ServFail", "asked, and silent");
    assert_eq!(upstream.asked(), asked + 1);
    for one in flood {
        assert_eq!(one.await.unwrap(), "ServFail");
    }
}

#[test]
fn the_config_overrides_the_hosts_resolvers_and_never_asks_in_a_circle() {
    let own = Ipv4Addr::new(172, 16, 0, 1);
    let default_dns = vec![own, Ipv4Addr::LOCALHOST, Ipv4Addr::new(9, 9, 9, 9)];
    let upstreams = HostUpstreams { default_dns, own };
    assert_eq!(upstreams.now(), [SocketAddr::from(([9, 9, 9, 9], 53))]);
    let host = HostUpstreams { default_dns: Vec::new(), own };
    assert!(host.now().iter().all(|address| !address.ip().is_loopback() && address.port() == 53));
}
