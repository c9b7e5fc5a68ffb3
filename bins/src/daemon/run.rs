//! Builds the daemon, serves until told to end, and drains. VMs live on.

use super::args::Args;
use super::{host_error, lock, log, owner};
use actors::config::{Config, Loaded};
use actors::server::{Listener, SHUTDOWN_GRACE};
use actors::tree;
use messages::error::{ErrorKind, WireError};
use messages::frame::build_id;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Threads for calls that block: disks are made and files removed there, and each of the eight pulls that go on at once holds up to
/// five for as long as it takes. They exist only while there is work.
const BLOCKING_THREADS: usize = 256;
/// How long the daemon's end may wait for threads that block.
const BLOCKED_GRACE: Duration = Duration::from_secs(20);
/// Descriptors, where the host allows them.
const DESCRIPTORS: u64 = 65_536;
/// Idle ones end after this: their stacks are most of an idle daemon.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(5);

fn runtime() -> Runtime {
    // One thread for all actors and tasks: they only start work, and what blocks or computes is on threads of its own. A
    // message to another thread has to wake it, which takes longer than most of them take to handle.
    Builder::new_current_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()
        .expect("epoll, eventfd and threads are there: the same calls made this process's first ones")
}

/// Each VM that runs takes a few descriptors, and the usual soft limit is 1024. Not all that the hard one may allow: what the daemon
/// starts inherits it, and some programs close every number below it.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(DESCRIPTORS).max(soft);
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// The whole life of the daemon.
pub(super) fn run(args: &Args) -> Result<(), WireError> {
    // Nothing that this daemon makes is for anybody else.
    umask(Mode::from_bits_truncate(0o077));
    let mut paths = owner::become_owner(args.owner.as_deref())?;
    if let Some(state_dir) = &args.state_dir {
        let absolute = std::path::absolute(state_dir)
            .map_err(|error| host_error(format!("`{}` is no path", state_dir.display()), &error))?;
        paths = paths.with_state_dir(absolute);
    }
    paths.check_sockets().map_err(|error| WireError::from_error(ErrorKind::Usage, &error))?;
    let loaded = Config::load(&paths.config_file).map_err(|error| WireError::from_error(ErrorKind::Usage, &error))?;
    let lock = lock::take(&paths)?;
    log::start(&paths.log(), &loaded.config.log_level)?;
    raise_descriptor_limit();
    tracing::info!(version = build_id(), pid = std::process::id(), state_dir = %paths.state_dir.display(), "starting");

    let paths = Arc::new(paths);
    let system = actix::System::with_tokio_rt(runtime);
    let result = system.block_on(serve(Arc::clone(&paths), loaded));
    match &result {
        Ok(()) => tracing::info!("ended; VMs run on"),
        Err(error) => tracing::error!(error = %error, "ended"),
    }
    // What still blocks on a thread is waited for, and only then may another daemon come. But not for ever: a file system may hang.
    let ended = end_within(BLOCKED_GRACE, result.is_ok());
    drop(system);
    drop(ended);
    drop(lock);
    result
}

/// Ends this process after `grace`, unless what it returns is dropped before. Every step is made to survive that.
#[expect(clippy::exit, reason = "whoever would return is what hangs")]
fn end_within(grace: Duration, ended_well: bool) -> std::sync::mpsc::Sender<()> {
    let (ended, end) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if end.recv_timeout(grace) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("a thread does not come to its end and is left");
            std::process::exit(i32::from(!ended_well));
        }
    });
    ended
}

async fn serve(paths: Arc<actors::paths::Paths>, loaded: Loaded) -> Result<(), WireError> {
    let shutdown = CancellationToken::new();
    let runtime = tokio::runtime::Handle::current();
    let context = tree::start(Arc::clone(&paths), loaded, runtime.clone(), shutdown.clone())
        .await
        .map_err(|error| WireError::from(&error))?;
    let listener = Listener::bind(&paths.socket()).map_err(|error| WireError::from_error(ErrorKind::Host, &error))?;
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(|error| host_error("signals cannot be received".to_owned(), &error))?;
        let shutdown = shutdown.clone();
        runtime.spawn(async move {
            if signals.recv().await.is_some() {
                tracing::info!("a signal says to end");
                shutdown.cancel();
            }
        });
    }
    tracing::info!(socket = %paths.socket().display(), "listening");
    let served = runtime.spawn(listener.serve(Arc::new(context)));
    shutdown.cancelled().await;
    // The listener has its own grace period; this is for one that hangs.
    match tokio::time::timeout(SHUTDOWN_GRACE * 2, served).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(WireError::from_error(ErrorKind::Internal, &error)),
        Err(_) => Err(WireError::new(ErrorKind::Timeout, "the server did not end in time")),
    }
}
