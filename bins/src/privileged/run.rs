//! The helper's start: flags, socket, confinement, then serving until SIGTERM. The order is the security of it.

use super::confine::{ConfineError, confine};
use super::kernel::Kernel;
use super::resolved::{NamesKeeper, keep_names};
use super::serve::{ServeError, serve};
use super::socket::{Bound, SocketError, bind};
use super::{background, sys};
use clap::Parser;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{User, geteuid, setsid};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

/// Where the socket is unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/banger-root/bangerd-root.sock";
/// The variable that tells otherwise, here and in every client.
pub const SOCKET_VARIABLE: &str = "BANGER_ROOT_SOCKET";

/// Banger's network helper: the only part that runs with privileges. Makes bridges, taps and NAT for one user's VMs.
#[derive(Debug, Parser)]
#[command(name = "bangerd-root", version)]
pub struct Args {
    /// Who may ask, and whose taps they are: a user's name or uid
    #[arg(long, value_name = "USER")]
    pub owner: String,
    /// The socket to serve
    #[arg(long, value_name = "PATH", env = SOCKET_VARIABLE, default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Stay in the foreground and log to stderr
    #[arg(long)]
    pub foreground: bool,
    /// Leave the session of whoever started this; set by the start in the background
    #[arg(long, hide = true)]
    pub detached: bool,
    /// Be the names keeper of the helper at the other end of stdin; set by the helper
    #[arg(long, hide = true)]
    pub keep_names: bool,
}

/// Why the helper did not start or did not stay.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the network helper must be started as root: `sudo banger daemon root start --owner USER`")]
    NotRoot,
    #[error("there is no user `{0}`")]
    NoOwner(String),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot give up root's privileges")]
    Confine(#[from] ConfineError),
    #[error("cannot {0}")]
    Io(&'static str, #[source] io::Error),
    #[error("the network helper failed")]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Background(#[from] background::BackgroundError),
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    // First of all: nothing of ours is open yet.
    let closed = sys::close_inherited();
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("BANGER_LOG"))
        .init();
    if args.keep_names && closed.is_ok() {
        return keep_names(&args.owner);
    }
    match closed.map_err(|e| RunError::Io("close inherited files", e)).and_then(|()| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let chain = messages::WireError::from_error(messages::ErrorKind::Host, &failure);
            error!("{chain}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), RunError> {
    if !geteuid().is_root() {
        return Err(RunError::NotRoot);
    }
    // Whatever the caller had: the directory made below is for the owner to pass through.
    umask(Mode::from_bits_truncate(0o022));
    let owner_uid = owner(&args.owner)?;
    if !args.foreground {
        return Ok(background::start(args, owner_uid)?);
    }
    if args.detached {
        setsid().map_err(|e| RunError::Io("leave the session", e.into()))?;
    }
    // Needs root's rights to make the socket's directory; everything after runs without them.
    let socket = bind(&args.socket, owner_uid)?;
    // Has to be started while this is root: only root may ask for what it asks for.
    let names = NamesKeeper::start(owner_uid);
    confine()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| RunError::Io("start the runtime", e))?.block_on(serve_until_told(socket, names, owner_uid))
}

async fn serve_until_told(socket: Bound, names: NamesKeeper, owner_uid: u32) -> Result<(), RunError> {
    let Bound { listener, lock } = socket;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(|e| RunError::Io("listen", e))?;
    let kernel = Kernel::open(names).map_err(|e| RunError::Io("open the routing socket", e))?;
    let handler = |kind| signal(kind).map_err(|e| RunError::Io("handle signals", e));
    let (mut terminate, mut interrupt) = (handler(SignalKind::terminate())?, handler(SignalKind::interrupt())?);
    info!(owner_uid, build = messages::frame::build_id(), "serving");
    let served = serve(listener, kernel, owner_uid, async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await;
    drop(lock);
    Ok(served?)
}

/// A name, or a uid where no such name exists.
fn owner(text: &str) -> Result<u32, RunError> {
    let missing = || RunError::NoOwner(text.to_owned());
    match User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        // The highest two values mean "unchanged" and overflow to the kernel.
        Ok(None) => text.parse::<u32>().ok().filter(|uid| *uid < u32::MAX >> 1).ok_or_else(missing),
        Err(error) => Err(RunError::Io("look the owner up", error.into())),
    }
}
