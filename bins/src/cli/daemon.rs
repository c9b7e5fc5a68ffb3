//! `banger daemon …`: starts, stops and looks at `bangerd` without needing it, whatever version it is.

use super::args::{DaemonCommand, DaemonStartArgs};
use super::client::{Absent, Client, connect, unexpected};
use super::failure::{Failure, Outcome};
use super::{autostart, helper, human, json, logs, table};
use actors::paths::Paths;
use messages::error::ErrorKind;
use messages::reply::{DaemonStatus, NamesView, Reply};
use messages::request::RequestBody;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use serde_json::json;
use std::fs::File;
use std::time::{Duration, Instant};

/// How long a daemon may take to end: it answers what is queued and closes its database; VMs are not waited for.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const STOP_INTERVAL: Duration = Duration::from_millis(20);

/// Runs one `daemon` command.
pub(super) async fn run(client: &Client, command: DaemonCommand) -> Outcome {
    match command {
        DaemonCommand::Status => status(client).await,
        DaemonCommand::Start(args) => start(client, args).await,
        DaemonCommand::Stop => stop(client).await,
        DaemonCommand::Logs(args) => logs::daemon(client, args.follow).await,
        DaemonCommand::Root(command) => helper::run(client, command).await,
    }
}

async fn status(client: &Client) -> Outcome {
    match client.call(Absent::Fail, RequestBody::DaemonStatus).await {
        Ok(answer) => match answer.reply {
            Reply::Daemon(status) => {
                show(client, &status)?;
                Ok(0)
            }
            other => Err(unexpected(&other)),
        },
        // For a status, not running is an answer: it goes to stdout, and the exit code says it too.
        Err(Failure::Error(error)) if error.kind == ErrorKind::Unavailable => {
            if client.output.json {
                client.output.value(&json!({ "running": false, "socket": client.paths.socket() }))?;
            } else {
                client.output.data("not running\n")?;
                client.output.remark("hint: `banger daemon start`, or any command that needs it");
            }
            Ok(ErrorKind::Unavailable.exit_code())
        }
        Err(error) => Err(error),
    }
}

fn show(client: &Client, status: &DaemonStatus) -> Result<(), Failure> {
    if client.output.json {
        return client.output.value(&json::daemon(status));
    }
    let helper = match &status.helper {
        Ok(version) => format!("reachable, {version}"),
        Err(reason) => format!("not reachable: {reason}"),
    };
    let rows = [
        ("running", format!("pid {}, up {}", status.pid, human::took(Duration::from_millis(status.uptime_ms)))),
        ("version", format!("{} (protocol {})", status.build, status.generation)),
        ("socket", status.socket.clone()),
        ("state", status.state_dir.clone()),
        ("instance", status.instance.to_string()),
        ("vms", format!("{} running, {} in all", status.vms_running, status.vms_total)),
        ("images", status.images.to_string()),
        ("kernels", status.kernels.to_string()),
        ("vmm", status.vmm.clone()),
        ("helper", helper),
        ("names", names(&status.dns)),
        ("memory", human::size(status.rss_kib.saturating_mul(1024))),
    ];
    client.output.data(&table::pairs(&rows))
}

/// Where `<vm>.vm` is answered, in one line.
fn names(dns: &NamesView) -> String {
    let host = match &dns.loopback {
        Ok(address) => format!("at {address} for this host"),
        Err(why) => format!("not for this host ({why})"),
    };
    let guests = match &dns.bridge {
        Ok(address) => format!("at {address} for guests"),
        Err(why) => format!("not for guests ({why})"),
    };
    let routed = match &dns.routed {
        Ok(()) => "systemd-resolved sends .vm here".to_owned(),
        Err(why) => why.clone(),
    };
    format!("{} under .vm, answered {host}, {guests}; {routed}", dns.names)
}

async fn start(client: &Client, args: DaemonStartArgs) -> Outcome {
    let root = Uid::effective().is_root();
    let paths = match &args.owner {
        Some(_) if !root => {
            return Err(Failure::usage("`--owner` is for root; without it the daemon runs as you"));
        }
        Some(owner) => owners_paths(owner)?,
        None => client.paths.clone(),
    };
    if connect(&paths).await?.is_some() {
        if args.owner.is_none() {
            // A daemon of another version is worth an error here too; another user's does not answer root.
            drop(client.open(Absent::Fail).await?);
        }
        client.output.remark("bangerd runs already");
        return Ok(0);
    }
    drop(autostart::start(&paths, client.output, args.owner.as_deref()).await?);
    client.output.remark(&format!("bangerd listens at `{}`", paths.socket().display()));
    Ok(0)
}

/// The paths of another user, as the daemon finds them once it is that user.
fn owners_paths(owner: &str) -> Result<Paths, Failure> {
    let user = User::from_name(owner).ok().flatten();
    let user = user.ok_or_else(|| Failure::usage(format!("there is no user `{owner}`")))?;
    let paths = Paths::resolve(user.uid.as_raw(), |name| match name {
        "HOME" => Some(user.dir.clone()),
        name if name.starts_with("XDG_") => None,
        name => std::env::var_os(name).map(Into::into),
    });
    paths.map_err(|error| Failure::io_only(ErrorKind::Usage, &error))
}

async fn stop(client: &Client) -> Outcome {
    let Some(stream) = connect(&client.paths).await? else {
        client.output.remark("bangerd is not running");
        return Ok(0);
    };
    let peer = stream.peer_cred().ok();
    drop(stream);
    match client.call(Absent::Fail, RequestBody::DaemonStop).await {
        Ok(_) => {}
        // It was on its way out.
        Err(Failure::Error(error)) if matches!(error.kind, ErrorKind::Lost | ErrorKind::Unavailable) => {}
        // Another version, or one that hangs: the kernel says which process it is.
        Err(Failure::Error(error)) if matches!(error.kind, ErrorKind::Protocol | ErrorKind::Timeout) => {
            let peer = peer.filter(|peer| peer.uid() == Uid::effective().as_raw() || Uid::effective().is_root());
            let Some(pid) = peer.and_then(|peer| peer.pid()).filter(|pid| *pid > 1) else {
                return Err(Failure::Error(error));
            };
            kill(Pid::from_raw(pid), Signal::SIGTERM)
                .map_err(|errno| Failure::io(ErrorKind::Host, format!("failed to signal process {pid}"), &errno))?;
        }
        Err(error) => return Err(error),
    }
    // Its lock goes with its last breath, after the socket: until then no other daemon could take its place.
    let began = Instant::now();
    while connect(&client.paths).await?.is_some() || locked(&client.paths) {
        if began.elapsed() > STOP_DEADLINE {
            let sentence = format!("bangerd has not ended after {} s", STOP_DEADLINE.as_secs());
            return Err(Failure::new(ErrorKind::Timeout, sentence).hint("`banger daemon logs` may say why"));
        }
        tokio::time::sleep(STOP_INTERVAL).await;
    }
    client.output.remark("bangerd stopped; VMs keep running");
    Ok(0)
}

/// Whether a daemon that ends, or one that starts, has the state directory.
fn locked(paths: &Paths) -> bool {
    let Ok(file) = File::open(paths.lock()) else { return false };
    matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
}
