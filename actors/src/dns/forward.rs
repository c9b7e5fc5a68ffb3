//! Asks the host's own resolvers for a guest. Bounded in number, size and time; holds no answer longer than it takes to pass on.
//!
//! What is sent is made here from the guest's question, with a number and a source port of our own, and what comes back is
//! taken apart before it is passed on: neither side can put bytes of its choice in front of the other.

use super::limits::{FORWARDS_EACH, FORWARDS_MAX, Shares, UDP_PAYLOAD, UPSTREAM_TIME, UPSTREAMS_MAX};
use crate::network::host_resolvers;
use hickory_server::proto::op::{Edns, Message, MessageType, OpCode, Query};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

const DNS_PORT: u16 = 53;
/// More than any honest answer to a question that says [`UDP_PAYLOAD`].
const UDP_BUFFER: usize = 4096;

/// Where the world is asked.
pub trait Upstreams: Send + Sync + 'static {
    /// The resolvers of this moment, best first. Must not block for long.
    fn now(&self) -> Vec<SocketAddr>;
}

/// The config's `default_dns`, or else the host's resolvers behind any stub of its own; read anew each time, for laptops move.
#[derive(Clone, Debug)]
pub struct HostUpstreams {
    pub default_dns: Vec<Ipv4Addr>,
    /// Our own address on the bridge: asking it would go round in a circle.
    pub own: Ipv4Addr,
}

impl Upstreams for HostUpstreams {
    fn now(&self) -> Vec<SocketAddr> {
        let found = if self.default_dns.is_empty() {
            host_resolvers(|_| true)
        } else {
            self.default_dns.iter().copied().map(IpAddr::V4).collect()
        };
        let usable = found.into_iter().filter(|address| !address.is_loopback() && *address != IpAddr::V4(self.own));
        usable.take(UPSTREAMS_MAX).map(|address| SocketAddr::new(address, DNS_PORT)).collect()
    }
}

/// How an answer will travel to the guest, and so how the question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What a guest asks of the world.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) query: Query,
    pub(super) recursion_desired: bool,
    pub(super) checking_disabled: bool,
    pub(super) dnssec_ok: bool,
    pub(super) transport: Transport,
}

/// Says why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    #[error("too many questions are on their way")]
    Busy,
    #[error("this host has no resolver that can be asked")]
    NoUpstream,
    #[error("the question cannot be written down")]
    Encode(#[source] hickory_server::proto::ProtoError),
    #[error("no entropy for a number")]
    Entropy,
    #[error("no resolver of this host's answered")]
    Silent,
}

/// Says why one resolver is of no use.
#[derive(Debug, thiserror::Error)]
enum UpstreamError {
    #[error("it cannot be reached")]
    Io(#[from] io::Error),
    #[error("its answer is not one")]
    Answer,
    #[error("it is silent")]
    Late(#[from] tokio::time::error::Elapsed),
}

/// Forwards.
pub(super) struct Forwarder {
    upstreams: Box<dyn Upstreams>,
    places: Shares,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").field("places", &self.places).finish_non_exhaustive()
    }
}

impl Forwarder {
    pub(super) fn new(upstreams: Box<dyn Upstreams>) -> Self {
        Self { upstreams, places: Shares::new(FORWARDS_MAX, FORWARDS_EACH) }
    }

    /// Asks one resolver after the other until one answers the question. That one cannot, or does not want to, is an answer only where
    /// no other has a better one: behind a VPN each knows its own names.
    ///
    /// # Errors
    /// [`ForwardError`].
    pub(super) async fn ask(&self, guest: Ipv4Addr, question: &Question) -> Result<Message, ForwardError> {
        let _place = self.places.take(guest).ok_or(ForwardError::Busy)?;
        let upstreams = self.upstreams.now();
        if upstreams.is_empty() {
            return Err(ForwardError::NoUpstream);
        }
        let mut unwilling = None;
        for upstream in upstreams {
            let message = write_down(question)?;
            let bytes = message.to_vec().map_err(ForwardError::Encode)?;
            match ask_one(upstream, &message, &bytes, question.transport).await {
                Ok(answer) if is_unwilling(&answer) => {
                    tracing::debug!(%upstream, code = %answer.metadata.response_code, "a resolver of this host's does not help");
                    unwilling.get_or_insert(answer);
                }
                Ok(answer) => return Ok(answer),
                Err(error) => tracing::debug!(%upstream, %error, "a resolver of this host's is of no use"),
            }
        }
        unwilling.ok_or(ForwardError::Silent)
    }
}

/// As the C library's resolver has it: these codes send it to the next one.
fn is_unwilling(answer: &Message) -> bool {
    use hickory_server::proto::op::ResponseCode::{FormErr, NotImp, Refused, ServFail};
    matches!(answer.metadata.response_code, ServFail | Refused | NotImp | FormErr)
}

fn write_down(question: &Question) -> Result<Message, ForwardError> {
    let mut number = [0; 2];
    getrandom::fill(&mut number).map_err(|_| ForwardError::Entropy)?;
    let mut message = Message::new(u16::from_ne_bytes(number), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = question.recursion_desired;
    message.metadata.checking_disabled = question.checking_disabled;
    message.add_query(question.query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD).set_version(0).set_dnssec_ok(question.dnssec_ok);
    message.set_edns(edns);
    Ok(message)
}

async fn ask_one(
    upstream: SocketAddr,
    asked: &Message,
    bytes: &[u8],
    transport: Transport,
) -> Result<Message, UpstreamError> {
    if transport == Transport::Udp {
        let answer = timeout(UPSTREAM_TIME, by_udp(upstream, asked, bytes)).await??;
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        // Whole by TCP if that can be had; the guest then gets as much as fits, and is told if that is not all.
        return match timeout(UPSTREAM_TIME, by_tcp(upstream, asked, bytes)).await {
            Ok(Ok(whole)) => Ok(whole),
            Ok(Err(_)) | Err(_) => Ok(answer),
        };
    }
    timeout(UPSTREAM_TIME, by_tcp(upstream, asked, bytes)).await?
}

/// A socket for each question: its random port is half of what a forger would have to guess.
async fn by_udp(upstream: SocketAddr, asked: &Message, bytes: &[u8]) -> Result<Message, UpstreamError> {
    let any: IpAddr = if upstream.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; UDP_BUFFER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else may be a forger's: the true one may still come.
        if let Some(answer) = answer_to(asked, &buffer[..length]) {
            return Ok(answer);
        }
    }
}

async fn by_tcp(upstream: SocketAddr, asked: &Message, bytes: &[u8]) -> Result<Message, UpstreamError> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(bytes.len()).map_err(|_| UpstreamError::Answer)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    answer_to(asked, &answer).ok_or(UpstreamError::Answer)
}

/// The answer in `bytes`, if it is one to this question.
fn answer_to(asked: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let ours = answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == asked.metadata.id
        && answer.metadata.op_code == OpCode::Query
        && answer.queries == asked.queries;
    ours.then_some(answer)
}
