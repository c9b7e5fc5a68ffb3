//! A server of our own for one connection, in a process of its own. Lets in whoever has one of the given keys, as any user of
//! the guest. Commands run by the same rules as `vm exec`'s.

use super::inbox::{Backlog, Inbox, WINDOW};
use super::setup::Setup;
use super::{forward, session};
use crate::exec::session::World;
use crate::users::Database;
use link::frames::FrameReader;
use messages::limits::GUEST_FRAME_MAX;
use russh::keys::{PrivateKey, PublicKey};
use russh::server::{self, Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, MethodKind, MethodSet};
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio_util::task::TaskTracker;

/// Between two signs of life from a client; after three that are not answered its sessions are hung up.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long the end of a connection waits for its commands, which are hung up: a little more than they are given.
const FAREWELL: Duration = Duration::from_secs(5);
/// The superuser, also in images without an `/etc/passwd`.
const ROOT: &str = "root";

/// Serves the connection on stdin until it ends.
///
/// # Errors
/// The agent hands over nothing usable, or the connection breaks.
pub async fn run() -> io::Result<()> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let stream = std::os::unix::net::UnixStream::from(stdin);
    stream.set_nonblocking(true)?;
    let mut frames = FrameReader::new(UnixStream::from_std(stream)?, GUEST_FRAME_MAX);
    let setup: Option<Setup> = frames.message().await.map_err(io::Error::other)?;
    let Some(setup) = setup else { return Ok(()) };
    serve(setup, frames.into_inner()).await
}

async fn serve(setup: Setup, stream: UnixStream) -> io::Result<()> {
    let keys: Result<Vec<PrivateKey>, _> = setup.host_keys.iter().map(PrivateKey::from_openssh).collect();
    let config = server::Config {
        keys: keys.map_err(io::Error::other)?,
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        // There is no password to guess, and whoever can dial this has the host's VM socket.
        auth_rejection_time: Duration::from_millis(100),
        auth_rejection_time_initial: Some(Duration::ZERO),
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        window_size: WINDOW,
        ..server::Config::default()
    };
    let (sessions, backlog) = (TaskTracker::new(), Backlog::default());
    let authorized = setup.authorized_keys.iter().filter_map(|line| PublicKey::from_openssh(line).ok()).collect();
    let connection = Connection { authorized, world: setup.world(), user: None, sessions: sessions.clone(), backlog };
    let running = server::run_stream(Arc::new(config), stream, connection).await.map_err(io::Error::other)?;
    let ended = running.await;
    sessions.close();
    if tokio::time::timeout(FAREWELL, sessions.wait()).await.is_err() {
        tracing::warn!("commands of an SSH connection outlive it");
    }
    ended.map_err(io::Error::other)
}

struct Connection {
    authorized: Vec<PublicKey>,
    world: World,
    user: Option<String>,
    sessions: TaskTracker,
    backlog: Backlog,
}

impl Connection {
    fn decide(&self, user: &str, key: &PublicKey) -> Auth {
        let known = self.authorized.iter().any(|known| known.key_data() == key.key_data());
        if known && self.is_user(user) { Auth::Accept } else { Auth::reject() }
    }

    fn is_user(&self, user: &str) -> bool {
        let is_name = !user.contains(':') && user.parse::<u32>().is_err();
        // The process machine has one user, whatever it is called.
        user == ROOT || !self.is_guest() || (is_name && Database::read(Path::new("/")).find(user).is_ok())
    }

    fn is_guest(&self) -> bool {
        matches!(self.world.place, crate::exec::plan::Place::Guest)
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        Ok(self.decide(user, offer.public_key))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let decision = self.decide(user, key.public_key);
        if matches!(decision, Auth::Accept) && self.is_guest() {
            self.user = Some(if user == ROOT { "0".to_owned() } else { user.to_owned() });
        }
        Ok(decision)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let (id, handle) = (channel.id(), session.handle());
        let (requests, replies) = channel.split();
        let channel = session::Ends { id, handle, replies, inbox: Inbox::new(requests, self.backlog.clone()) };
        let served = session::run(channel, self.world.clone(), self.user.clone());
        self.sessions.spawn(async move {
            reply.accept().await;
            served.await;
        });
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        // Not among the sessions: a forward ends with its connection.
        tokio::spawn(forward::direct(channel, self.backlog.clone(), reply, host.to_owned(), port));
        Ok(())
    }

    async fn data(&mut self, _: ChannelId, data: &[u8], _: &mut Session) -> Result<(), Self::Error> {
        self.backlog.slow_down(data).await;
        Ok(())
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        self.backlog.window()
    }
}
