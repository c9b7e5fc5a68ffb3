//! Requests about VMs that exist: several at once, each with an outcome of its own.

use super::connection::Client;
use super::context::{Answer, ServerContext, ask};
use super::progress::follow;
use super::ready::ready;
use crate::registry::{Get, Handle, List, RenameVm, Show};
use crate::vm::published::{default_patience, until_down, until_gone, until_made};
use crate::vm::{Ask, Command, STOP_GRACE};
use crate::vmm::{VmFiles, marks};
use futures::future::join_all;
use messages::error::{ErrorKind, WireError};
use messages::guest::{GuestAnswer, GuestQuestion};
use messages::ids::{VmName, VmRef};
use messages::reply::{Reply, VmChange, VmOutcome};
use messages::request::{Force, LogKind};
use messages::vm::{Lifetime, Readiness, VmState};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

/// Beyond a stop's grace: Ctrl-Alt-Del, SIGKILL, and giving everything back.
const STOP_MARGIN: Duration = Duration::from_secs(30);
/// For a VMM to be started.
pub(super) const LAUNCH_PATIENCE: Duration = Duration::from_secs(60);
/// For a VM to be removed.
const DELETE_PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn get(context: &ServerContext, reference: &VmRef, to_start: bool) -> Result<Handle, WireError> {
    ask(&context.registry, Get { reference: reference.clone(), to_start }).await
}

async fn each<F: Future<Output = Result<VmChange, WireError>>>(vms: Vec<VmRef>, one: impl Fn(VmRef) -> F) -> Reply {
    let outcomes = vms.into_iter().map(|vm| {
        let work = one(vm.clone());
        async move { VmOutcome { asked: vm.to_string(), result: work.await } }
    });
    Reply::Outcomes(join_all(outcomes).await)
}

fn change(handle: &Handle, changed: bool, how: Option<&str>) -> VmChange {
    VmChange { id: handle.id, name: handle.view().name.clone(), changed, how: how.map(str::to_owned) }
}

/// Waits for what a start was asked to wait for.
pub(super) async fn reach(
    context: &ServerContext,
    handle: &mut Handle,
    attempt: u64,
    wait: Option<Readiness>,
    patience: Option<Duration>,
    gone: &CancellationToken,
) -> Result<(), WireError> {
    match wait {
        None => until_made(&mut handle.watch, attempt, patience.unwrap_or(LAUNCH_PATIENCE)).await.map(drop),
        Some(level) => ready(context, handle, attempt, level, patience, gone).await,
    }
}

pub(super) async fn start(context: &ServerContext, vms: Vec<VmRef>, wait: Option<Readiness>, client: &Client) -> Reply {
    each(vms, |vm| async move {
        let mut handle = get(context, &vm, true).await?;
        let _lines = follow(handle.watch.clone(), client.progress.clone());
        let accepted = handle.command(Command::Start).await?;
        reach(context, &mut handle, accepted.attempt, wait, None, &client.gone).await?;
        Ok(change(&handle, accepted.changed, None))
    })
    .await
}

fn milliseconds(timeout_ms: Option<u64>) -> Option<Duration> {
    timeout_ms.map(Duration::from_millis)
}

pub(super) async fn stop(context: &ServerContext, vms: Vec<VmRef>, timeout_ms: Option<u64>, force: Force) -> Reply {
    let grace = milliseconds(timeout_ms);
    let command = match force {
        Force::No => Command::Stop(grace),
        Force::Yes => Command::Kill,
    };
    each(vms, |vm| down(context, vm, command, grace)).await
}

pub(super) async fn kill(context: &ServerContext, vms: Vec<VmRef>) -> Reply {
    each(vms, |vm| down(context, vm, Command::Kill, None)).await
}

async fn down(
    context: &ServerContext,
    vm: VmRef,
    command: Command,
    grace: Option<Duration>,
) -> Result<VmChange, WireError> {
    let mut handle = get(context, &vm, false).await?;
    let accepted = handle.command(command).await?;
    let patience = grace.unwrap_or(STOP_GRACE) + STOP_MARGIN;
    let published = until_down(&mut handle.watch, accepted.attempt, patience).await?;
    Ok(change(&handle, accepted.changed, published.how.filter(|_| accepted.changed)))
}

pub(super) async fn restart(
    context: &ServerContext,
    vms: Vec<VmRef>,
    timeout_ms: Option<u64>,
    wait: Option<Readiness>,
    client: &Client,
) -> Reply {
    let grace = milliseconds(timeout_ms);
    each(vms, |vm| async move {
        let mut handle = get(context, &vm, true).await?;
        let _lines = follow(handle.watch.clone(), client.progress.clone());
        let accepted = handle.command(Command::Restart(grace)).await?;
        let patience = wait.map_or(LAUNCH_PATIENCE, default_patience) + grace.unwrap_or(STOP_GRACE) + STOP_MARGIN;
        reach(context, &mut handle, accepted.attempt, wait, Some(patience), &client.gone).await?;
        Ok(change(&handle, accepted.changed, None))
    })
    .await
}

pub(super) async fn delete(context: &ServerContext, vms: Vec<VmRef>, force: Force, only_ephemeral: bool) -> Reply {
    each(vms, |vm| async move {
        let mut handle = match get(context, &vm, false).await {
            // The daemon was faster: what the client wanted has happened.
            Err(error) if only_ephemeral && error.kind == ErrorKind::NotFound => {
                let buried = context.store.tombstone(vm.to_string()).await?.ok_or(error)?;
                return Ok(VmChange { id: buried.id, name: buried.name, changed: false, how: None });
            }
            other => other?,
        };
        if only_ephemeral && handle.view().lifetime == Lifetime::Kept {
            return Ok(change(&handle, false, None));
        }
        let accepted = handle.command(Command::Delete { force: force == Force::Yes }).await?;
        until_gone(&mut handle.watch, DELETE_PATIENCE).await?;
        Ok(change(&handle, accepted.changed, None))
    })
    .await
}

pub(super) async fn list(context: &ServerContext) -> Result<Reply, WireError> {
    let views = ask(&context.registry, List).await?;
    Ok(Reply::Vms(views))
}

pub(super) async fn show(context: &ServerContext, vm: VmRef) -> Result<Reply, WireError> {
    Ok(Reply::Vm(ask(&context.registry, Show(vm)).await?.as_ref().clone()))
}

pub(super) async fn logs(
    context: &ServerContext,
    vm: VmRef,
    log: LogKind,
    since_ms: Option<u64>,
) -> Result<Answer, WireError> {
    let view = ask(&context.registry, Show(vm)).await?;
    let files = VmFiles::new(view.id, context.paths.vm_dir(view.id))
        .map_err(|error| WireError::from_error(ErrorKind::Host, &error))?;
    let path = match log {
        LogKind::Console => files.console(),
        LogKind::Vmm => files.log(),
    };
    let running = match view.state {
        VmState::Starting | VmState::Running | VmState::Stopping => true,
        VmState::Stopped | VmState::Failed | VmState::Deleting => false,
    };
    let file = tokio::fs::File::open(&path).await.map_err(|error| {
        let kind = if error.kind() == std::io::ErrorKind::NotFound { ErrorKind::NotFound } else { ErrorKind::Host };
        WireError::from_error(kind, &error).context(format!("VM {} has no such log", view.name))
    })?;
    let file = file.into_std().await;
    let Some(since_ms) = since_ms else {
        return Ok(Answer { reply: Reply::Log { running }, descriptor: Some(OwnedFd::from(file)) });
    };
    let looking = spawn_blocking(move || {
        // What is not noted yet counts as later than every mark, and so is part of the answer.
        marks::offset_since(&file, &path, since_ms).map(|offset| (offset, OwnedFd::from(file)))
    });
    let found = looking.await.map_err(|error| WireError::from_error(ErrorKind::Internal, &error))?;
    let (offset, descriptor) = found.map_err(|error| {
        WireError::from_error(ErrorKind::Host, &error)
            .context(format!("VM {} has a log that cannot be read", view.name))
    })?;
    Ok(Answer { reply: Reply::LogSince { running, offset }, descriptor: Some(descriptor) })
}

pub(super) async fn rename(context: &ServerContext, vm: VmRef, name: VmName) -> Result<Reply, WireError> {
    ask(&context.registry, RenameVm { reference: vm, name: name.clone() }).await?;
    show(context, VmRef::try_from(String::from(name)).map_err(|error| WireError::from_error(ErrorKind::Usage, &error))?)
        .await
}

async fn question(context: &ServerContext, vm: VmRef, question: GuestQuestion) -> Result<GuestAnswer, WireError> {
    let handle = get(context, &vm, false).await?;
    ask(&handle.vm, Ask(question)).await
}

fn wrong_answer() -> WireError {
    WireError::new(ErrorKind::Guest, "the guest's agent answered something else than was asked")
}

pub(super) async fn stats(context: &ServerContext, vm: VmRef) -> Result<Reply, WireError> {
    match question(context, vm, GuestQuestion::Stats).await? {
        GuestAnswer::Stats(stats) => Ok(Reply::Stats(stats)),
        GuestAnswer::Done | GuestAnswer::Ports(_) => Err(wrong_answer()),
    }
}

pub(super) async fn ports(context: &ServerContext, vm: VmRef) -> Result<Reply, WireError> {
    match question(context, vm, GuestQuestion::Ports).await? {
        GuestAnswer::Ports(ports) => Ok(Reply::Ports(ports)),
        GuestAnswer::Done | GuestAnswer::Stats(_) => Err(wrong_answer()),
    }
}

pub(super) async fn wait(
    context: &ServerContext,
    vm: VmRef,
    level: Readiness,
    timeout_ms: Option<u64>,
    client: &Client,
) -> Result<Reply, WireError> {
    let mut handle = get(context, &vm, false).await?;
    let attempt = handle.watch.borrow().attempt;
    reach(context, &mut handle, attempt, Some(level), milliseconds(timeout_ms), &client.gone).await?;
    Ok(Reply::Done)
}
