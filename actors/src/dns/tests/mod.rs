//! The zone and the audience are pure; listeners are asked over loopback, as any resolver would ask; the keeper is given
//! watches and a scripted helper.

mod forward;
mod keeper;
mod listener;
mod zone;

use super::audience::Place;
use super::forward::{Forwarder, Upstreams};
use super::responder::Responder;
use super::server::{self, Listener, Sockets};
use super::zone::Zone;
use hickory_server::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_server::proto::rr::{Name, RecordType};
use messages::ids::{InstanceId, VmId};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;

const ONE: InstanceId = InstanceId([0xab, 0xcd, 0xef]);
const PATIENCE: Duration = Duration::from_secs(20);

fn id(number: u8) -> VmId {
    VmId([number; 8])
}

fn v4(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// Sends bytes from an address of loopback's and waits for the answer.
async fn send_udp(from: IpAddr, to: SocketAddr, bytes: &[u8]) -> Message {
    let socket = UdpSocket::bind((from, 0)).await.unwrap();
    socket.send_to(bytes, to).await.unwrap();
    let mut buffer = vec![0; 65535];
    let (length, source) = tokio::time::timeout(PATIENCE, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(source, to);
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn ask(to: SocketAddr, message: &Message) -> Message {
    send_udp(IpAddr::V4(Ipv4Addr::LOCALHOST), to, &message.to_vec().unwrap()).await
}

async fn ask_tcp(from: IpAddr, to: SocketAddr, message: &Message) -> Message {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    exchange(&mut stream, message).await
}

async fn exchange(stream: &mut TcpStream, message: &Message) -> Message {
    let bytes = message.to_vec().unwrap();
    stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let length = tokio::time::timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

/// What an answer says, in one line.
fn said(message: &Message) -> String {
    let records: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
    match message.metadata.response_code {
        ResponseCode::NoError if records.is_empty() => "nothing".to_owned(),
        ResponseCode::NoError => records.join(" "),
        code => format!("{code:?}"),
    }
}

/// Both sockets at one address of loopback's.
fn sockets(address: Ipv4Addr) -> (OwnedFd, OwnedFd) {
    for _ in 0..64 {
        let tcp = std::net::TcpListener::bind((address, 0)).unwrap();
        if let Ok(udp) = std::net::UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (udp.into(), tcp.into());
        }
    }
    panic!("no pair of ports");
}

#[derive(Debug)]
struct Fixed(Vec<SocketAddr>);

impl Upstreams for Fixed {
    fn now(&self) -> Vec<SocketAddr> {
        self.0.clone()
    }
}

/// A listener as guests see it, on 127.0.7.1 with guests at 127.0.7.2 and up.
struct Bridge {
    address: SocketAddr,
    zone: watch::Sender<Zone>,
    _listener: Listener,
}

impl Bridge {
    const SUBNET: messages::privileged::Subnet =
        messages::privileged::Subnet { gateway: Ipv4Addr::new(127, 0, 7, 1), prefix: 24, ipv6: None };
    const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 2));

    fn start(upstreams: Vec<SocketAddr>) -> Self {
        let (udp, tcp) = sockets(Self::SUBNET.gateway);
        let sockets = Sockets::adopt(udp, tcp, Self::SUBNET.gateway).unwrap();
        let address = sockets.address().unwrap();
        let zone = watch::Sender::new(Zone::new(Some(Self::SUBNET)));
        let responder = Responder {
            zone: zone.subscribe(),
            place: Place::Bridge(Self::SUBNET),
            forwarder: Some(Arc::new(Forwarder::new(Box::new(Fixed(upstreams))))),
        };
        let listener = server::serve(sockets, responder, &tokio::runtime::Handle::current()).unwrap();
        Self { address, zone, _listener: listener }
    }

    async fn ask(&self, from: IpAddr, name: &str, kind: RecordType) -> Message {
        send_udp(from, self.address, &question(name, kind).to_vec().unwrap()).await
    }
}
