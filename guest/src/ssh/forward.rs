//! `ssh -L` and `-D`: connections of the client's to ports that the guest reaches. Names are looked up in `/etc/hosts` alone: a
//! static program has no other resolver.

use super::inbox::{Backlog, Inbox};
use bytes::Bytes;
use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

/// As long as a kernel tries, and no longer.
const CONNECT: Duration = Duration::from_secs(60);
/// Read at once: a message of the protocol.
const CHUNK: usize = 32 << 10;

/// Connects, and moves bytes until both sides have ended.
pub(super) async fn direct(channel: Channel<Msg>, backlog: Backlog, reply: ChannelOpenHandle, host: String, port: u32) {
    let connected = tokio::time::timeout(CONNECT, connect(&host, port)).await;
    let target = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(target) => target,
        Err(error) => {
            tracing::debug!(%error, host, port, "a forward was refused");
            return reply.reject(ChannelOpenFailure::ConnectFailed).await;
        }
    };
    reply.accept().await;
    let (requests, replies) = channel.split();
    let inbox = Inbox::new(requests, backlog);
    let (mut from, to) = target.into_split();
    let down = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer).await? {
                0 => return replies.eof().await.map_err(io::Error::other),
                read => {
                    replies.data_bytes(Bytes::copy_from_slice(&buffer[..read])).await.map_err(io::Error::other)?;
                }
            }
        }
    };
    if let Err(error) = tokio::try_join!(up(inbox, to), down) {
        tracing::debug!(%error, "a forward was broken off");
    }
    // The other side may have closed it already.
    replies.close().await.ok();
}

/// What the client sends, until it says that no more comes, or is gone.
async fn up(mut inbox: Inbox, mut to: OwnedWriteHalf) -> io::Result<()> {
    loop {
        match inbox.next().await {
            Some((ChannelMsg::Data { data }, _waiting)) => to.write_all(&data).await?,
            Some((ChannelMsg::Eof, _)) => return to.shutdown().await,
            Some((ChannelMsg::Close, _)) | None => return Err(io::ErrorKind::ConnectionAborted.into()),
            Some(_) => {}
        }
    }
}

async fn connect(host: &str, port: u32) -> io::Result<TcpStream> {
    let port = u16::try_from(port).map_err(io::Error::other)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name is not in /etc/hosts");
    for address in addresses(host, &fs::read_to_string("/etc/hosts").unwrap_or_default()) {
        match TcpStream::connect(SocketAddr::new(address, port)).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn addresses(host: &str, hosts: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.parse() {
        return vec![address];
    }
    if host.eq_ignore_ascii_case("localhost") {
        return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    let named = |line: &str| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(host)).then_some(address)
    };
    hosts.lines().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_names_and_nonsense() {
        let hosts = "127.0.1.1 box.vm box # banger\n::2\tsix box\n#192.0.2.1 no\nnonsense box\n";
        let of = |host: &str| addresses(host, hosts).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of("192.0.2.9"), ["192.0.2.9"]);
        assert_eq!(of("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(of("BOX"), ["127.0.1.1", "::2"]);
        assert!(of("no").is_empty() && of("example.org").is_empty());
    }
}
