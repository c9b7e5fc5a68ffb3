//! `banger daemon root …`: the privileged helper. Starts the program `bangerd-root`, which goes to the background by itself,
//! and stops it by the process id that the kernel gives.

use super::args::{OwnerArgs, RootCommand};
use super::client::Client;
use super::failure::{Failure, Outcome};
use super::leftovers;
use super::printable::brief;
use actors::paths::Paths;
use link::frames::{FrameReader, ReadError, send_hello, write_frame};
use messages::error::{ErrorKind, WireError};
use messages::limits::PRIVILEGED_FRAME_MAX;
use messages::privileged::{PrivilegedOperation, PrivilegedReply, PrivilegedRequest, PrivilegedResponse};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use serde_json::json;
use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

/// How long the helper may take to answer or to end.
const DEADLINE: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(20);

/// What the helper says of itself.
#[derive(Debug)]
pub(super) struct HelperStatus {
    pub(super) build: String,
    pub(super) pid: u32,
    pub(super) owner_uid: u32,
}

/// Runs one `daemon root` command.
pub(super) async fn run(client: &Client, command: RootCommand) -> Outcome {
    match command {
        RootCommand::Start(args) => start(client, &args).await,
        RootCommand::Stop(args) => stop(client, &args).await,
        RootCommand::Status(args) => status(client, &args).await,
    }
}

/// Asks the helper for its status; `None` where nobody listens.
pub(super) async fn ask(paths: &Paths) -> Result<Option<HelperStatus>, Failure> {
    let socket = &paths.root_socket;
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => {
            return Err(Failure::io(ErrorKind::Host, format!("failed to connect to `{}`", socket.display()), &error));
        }
    };
    match tokio::time::timeout(DEADLINE, converse(stream, PrivilegedOperation::Status)).await {
        Ok(Ok(Ok(PrivilegedReply::Status { build, pid, owner_uid }))) => {
            Ok(Some(HelperStatus { build, pid, owner_uid }))
        }
        Ok(Ok(Ok(_))) => Err(Failure::new(ErrorKind::Protocol, "the helper answered something else")),
        Ok(Ok(Err(error))) => Err(error.into()),
        Ok(Err(error)) => Err(Failure::io(ErrorKind::Protocol, "the helper cannot be understood", &error)
            .hint("`sudo banger daemon root stop`, then `sudo banger daemon root start --owner USER`")),
        Err(_) => Err(Failure::new(ErrorKind::Timeout, "the helper does not answer")),
    }
}

async fn converse(
    mut stream: UnixStream,
    operation: PrivilegedOperation,
) -> Result<Result<PrivilegedReply, WireError>, ReadError> {
    send_hello(&mut stream).await?;
    let mut reader = FrameReader::new(stream, PRIVILEGED_FRAME_MAX);
    reader.hello().await?;
    let request = PrivilegedRequest { number: 1, operation };
    write_frame(reader.get_mut(), &request, PRIVILEGED_FRAME_MAX).await?;
    let response: Option<PrivilegedResponse> = reader.message().await?;
    response.map(|response| response.result).ok_or(ReadError::NoHello)
}

fn owner(args: &OwnerArgs) -> Result<String, Failure> {
    let sudo = || std::env::var("SUDO_USER").ok().filter(|user| !user.is_empty() && user != "root");
    args.owner.clone().or_else(sudo).ok_or_else(|| {
        Failure::usage("whom the helper is for is not known").hint("`sudo banger daemon root start --owner USER`")
    })
}

fn need_root(verb: &str, owner: &str) -> Result<(), Failure> {
    if Uid::effective().is_root() {
        return Ok(());
    }
    Err(Failure::new(ErrorKind::Host, format!("to {verb} the helper one must be root"))
        .hint(format!("`sudo banger daemon root {verb} --owner {owner}`")))
}

async fn start(client: &Client, args: &OwnerArgs) -> Outcome {
    let me = || User::from_uid(Uid::current()).ok().flatten().map(|user| user.name);
    if !Uid::effective().is_root() {
        let owner = args.owner.clone().or_else(me).unwrap_or_else(|| "USER".to_owned());
        need_root("start", &owner)?;
    }
    let owner = owner(args)?;
    if let Some(status) = ask(&client.paths).await? {
        return already(client, &owner, &status);
    }
    let program = client.paths.helper_program("bangerd-root").ok_or_else(|| {
        Failure::new(ErrorKind::Host, "the program `bangerd-root` is not beside this one")
            .hint("install it next to `banger`, or name its directory in BANGER_LIBEXEC")
    })?;
    let result = Command::new(&program)
        .args(["--owner", &owner, "--socket"])
        .arg(&client.paths.root_socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| Failure::io(ErrorKind::Host, format!("failed to start `{}`", program.display()), &error))?;
    if !result.status.success() {
        let text = String::from_utf8_lossy(&result.stderr);
        let said = console::strip_ansi_codes(text.trim()).lines().last().unwrap_or_default().to_owned();
        let sentence = format!("the helper did not start ({})", result.status);
        return Err(WireError::new(ErrorKind::Host, said).context(sentence).into());
    }
    client.output.remark(&format!("the helper serves {owner} at `{}`", client.paths.root_socket.display()));
    Ok(0)
}

fn already(client: &Client, owner: &str, status: &HelperStatus) -> Outcome {
    let uid = User::from_name(owner).ok().flatten().map(|user| user.uid.as_raw());
    let uid = uid.or_else(|| owner.parse().ok());
    if uid == Some(status.owner_uid) {
        client.output.remark(&format!("the helper runs already (pid {})", status.pid));
        return Ok(0);
    }
    let sentence = format!("a helper for uid {} (pid {}) runs already", status.owner_uid, status.pid);
    Err(Failure::new(ErrorKind::Conflict, sentence)
        .hint("`sudo banger daemon root stop`, or another BANGER_ROOT_SOCKET for both helper and daemon"))
}

async fn stop(client: &Client, args: &OwnerArgs) -> Outcome {
    need_root("stop", args.owner.as_deref().unwrap_or("USER"))?;
    let Some(status) = ask(&client.paths).await? else {
        client.output.remark("the helper is not running");
        return Ok(0);
    };
    let pid = i32::try_from(status.pid).ok().filter(|pid| *pid > 1);
    let pid = pid.ok_or_else(|| Failure::new(ErrorKind::Protocol, "the helper names no process"))?;
    let removed = remove_idle(client, status.owner_uid).await;
    kill(Pid::from_raw(pid), Signal::SIGTERM)
        .map_err(|errno| Failure::io(ErrorKind::Host, format!("failed to signal process {pid}"), &errno))?;
    let began = Instant::now();
    while UnixStream::connect(&client.paths.root_socket).await.is_ok() {
        if began.elapsed() > DEADLINE {
            return Err(Failure::new(ErrorKind::Timeout, format!("the helper (pid {pid}) does not end")));
        }
        tokio::time::sleep(INTERVAL).await;
    }
    client.output.remark(match removed {
        0 => "the helper stopped; the network of running VMs stays",
        _ => "the helper stopped; networks that no VM used are removed",
    });
    Ok(0)
}

/// Removes the owner's networks that no VM uses; says how many. What cannot be removed stays for the next helper.
async fn remove_idle(client: &Client, owner_uid: u32) -> usize {
    let mut removed = 0;
    for instance in leftovers::idle_instances(owner_uid) {
        let Ok(stream) = UnixStream::connect(&client.paths.root_socket).await else { break };
        let operation = PrivilegedOperation::RemoveInstance { instance };
        match tokio::time::timeout(DEADLINE, converse(stream, operation)).await {
            Ok(Ok(Ok(_))) => removed += 1,
            Ok(Ok(Err(error))) => client.output.warn(&error.to_string()),
            Ok(Err(_)) | Err(_) => client.output.warn("the helper does not answer; an unused network stays"),
        }
    }
    removed
}

async fn status(client: &Client, args: &OwnerArgs) -> Outcome {
    let status = ask(&client.paths).await?;
    if client.output.json {
        client.output.value(&match &status {
            Some(status) => json!({
                "running": true,
                "pid": status.pid,
                "version": status.build,
                "owner_uid": status.owner_uid,
                "socket": client.paths.root_socket,
            }),
            None => json!({ "running": false, "socket": client.paths.root_socket }),
        })?;
    } else {
        let text = match &status {
            Some(status) => {
                let user = User::from_uid(Uid::from_raw(status.owner_uid)).ok().flatten();
                let name = user.map_or_else(|| format!("uid {}", status.owner_uid), |user| user.name);
                format!("running: pid {}, version {}, serves {name}\n", status.pid, brief(&status.build))
            }
            None => "not running\n".to_owned(),
        };
        client.output.data(&text)?;
        if status.is_none() {
            let owner = args.owner.as_deref().unwrap_or("USER");
            client.output.remark(&format!("hint: `sudo banger daemon root start --owner {owner}`"));
        }
    }
    Ok(if status.is_some() { 0 } else { ErrorKind::Unavailable.exit_code() })
}
