//! DNS over TCP with a bound on connections, which hickory's own listener has not: a guest could use up the daemon's
//! descriptors with it. One question after the other on a connection.

use super::limits::{CONNECTION_IDLE, CONNECTIONS_EACH, CONNECTIONS_MAX, Shares};
use super::responder::Responder;
use async_trait::async_trait;
use hickory_server::net::NetError;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::rr::Record;
use hickory_server::proto::serialize::binary::BinEncoder;
use hickory_server::server::{Request, RequestHandler as _, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// When this host has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is dropped.
pub(super) async fn serve(listener: TcpListener, responder: Responder) {
    let places = Arc::new(Shares::new(CONNECTIONS_MAX, CONNECTIONS_EACH));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Also reaps one that panicked: it took nothing with it.
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, source)) => {
                let (responder, places) = (responder.clone(), Arc::clone(&places));
                connections.spawn(async move {
                    // One too many is closed at once: it may ask again, or by UDP.
                    let Some(_place) = places.take(share_of(source)) else { return };
                    if let Err(error) = converse(stream, source, &responder).await {
                        tracing::debug!(%source, %error, "a DNS connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a DNS connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn share_of(source: SocketAddr) -> Ipv4Addr {
    match source.ip().to_canonical() {
        IpAddr::V4(source) => source,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

async fn converse(mut stream: TcpStream, source: SocketAddr, responder: &Responder) -> io::Result<()> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    loop {
        let bytes = timeout(CONNECTION_IDLE, read(&mut stream)).await.map_err(late)??;
        let Some(answer) = answer(bytes, source, responder).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let write = async { stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await };
        timeout(CONNECTION_IDLE, write).await.map_err(late)??;
    }
}

async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// None for what is no question: such a peer is not talked to any longer.
async fn answer(bytes: Vec<u8>, source: SocketAddr, responder: &Responder) -> Option<Vec<u8>> {
    let request = Request::from_bytes(bytes, source, Protocol::Tcp).ok()?;
    if request.metadata.message_type == hickory_server::proto::op::MessageType::Response {
        return None;
    }
    let (written, mut answers) = mpsc::unbounded_channel();
    responder.handle_request::<_, TokioTime>(&request, Written(written)).await;
    answers.recv().await
}

/// Takes the answer's bytes. One at most is sent for each request, so the channel holds one.
#[derive(Clone, Debug)]
struct Written(mpsc::UnboundedSender<Vec<u8>>);

#[async_trait]
impl ResponseHandler for Written {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(u16::MAX);
        let info = response.destructive_emit(&mut encoder)?;
        self.0.send(bytes).map_err(|_| NetError::from("nobody waits for the answer"))?;
        Ok(info)
    }
}
