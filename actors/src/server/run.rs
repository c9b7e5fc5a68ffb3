//! Makes VMs and opens operations in them: the requests that end in a socket to the guest.

use super::connection::Client;
use super::context::{Answer, ServerContext, ask};
use super::fleet::{get, reach};
use super::progress::{follow, say};
use super::ready::ready;
use crate::agent_link;
use crate::host::{decide_size, spec_line};
use crate::registry::{Check, Create, Get, Handle};
use crate::vm::published::{default_patience, until_made, until_ready};
use crate::vm::{BeginOperation, Command};
use messages::error::{ErrorKind, WireError};
use messages::guest::ExecSpec;
use messages::ids::{OperationId, RequestId, VmId, VmRef};
use messages::reply::{Reply, Stage};
use messages::vm::{Lifetime, Readiness, VmSpec, VmState};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What `vm run` asks for.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) spec: VmSpec,
    pub(super) wait: Option<Readiness>,
    pub(super) exec: ExecSpec,
    pub(super) timeout_ms: Option<u64>,
}

fn reference(vm: VmId) -> Result<VmRef, WireError> {
    VmRef::try_from(vm.to_string()).map_err(|error| WireError::from_error(ErrorKind::Internal, &error))
}

/// Makes a VM, or finds what this request made before.
async fn make(
    context: &ServerContext,
    request: RequestId,
    spec: VmSpec,
    start: bool,
    client: &Client,
) -> Result<Handle, WireError> {
    let begun = Instant::now();
    let size = decide_size(&spec, &context.config.vm_defaults, &context.host)?;
    let disk = context.disk().await?;
    let check = Check { request, spec: spec.clone(), size, start, disk };
    if let Some(vm) = ask(&context.registry, check).await? {
        return ask(&context.registry, Get { reference: reference(vm)?, to_start: false }).await;
    }
    say(&client.progress, Stage::Spec, spec_line(&size), begun, true);
    let image = spec.image.clone().unwrap_or_else(|| context.config.default_image_name.clone());
    let prepared = tokio::select! {
        prepared = context.library.prepare(Some(image), spec.kernel.clone(), client.progress.clone()) => prepared?,
        () = client.gone.cancelled() => return Err(left()),
    };
    let create = Create { request, spec, image: prepared.image, kernel: prepared.kernel, size, start, disk };
    ask(&context.registry, create).await
}

fn left() -> WireError {
    WireError::new(ErrorKind::Cancelled, "the client left")
}

pub(super) async fn create(
    context: &ServerContext,
    request: RequestId,
    spec: VmSpec,
    start: bool,
    wait: Option<Readiness>,
    client: &Client,
) -> Result<Reply, WireError> {
    let mut handle = make(context, request, spec, start, client).await?;
    let _lines = follow(handle.watch.clone(), client.progress.clone());
    // A VM found again may be in any attempt; a new one is in its first.
    let attempt = handle.watch.borrow().attempt.max(u64::from(!handle.existed));
    reach(context, &mut handle, attempt, wait.filter(|_| start), None, &client.gone).await?;
    Ok(Reply::Vm(handle.view().as_ref().clone()))
}

pub(super) async fn run(
    context: &ServerContext,
    request: RequestId,
    run: Run,
    client: &Client,
) -> Result<Answer, WireError> {
    let Run { spec, wait, exec, timeout_ms } = run;
    let ephemeral = spec.lifetime == Lifetime::Ephemeral;
    agent_link::check_size(&exec)?;
    let mut handle = make(context, request, spec, true, client).await?;
    let _lines = follow(handle.watch.clone(), client.progress.clone());
    let attempt = handle.watch.borrow().attempt.max(u64::from(!handle.existed));
    let level = wait.unwrap_or(Readiness::System);
    let patience = timeout_ms.map_or_else(|| default_patience(level), Duration::from_millis);
    let made = until_made(&mut handle.watch, attempt, super::fleet::LAUNCH_PATIENCE).await;
    let reached = async {
        made?;
        ready(context, &mut handle, attempt, level, Some(patience), &CancellationToken::new()).await
    };
    let reached = tokio::select! {
        reached = reached => reached,
        () = client.gone.cancelled() => {
            abandon(&handle, None).await;
            return Err(left());
        }
    };
    match reached {
        Ok(()) => {}
        Err(error) if handle.watch.borrow().gone => return Err(error),
        Err(error) => return Err(if ephemeral { keep(&handle, error).await } else { error }),
    }
    let operation = operation_id(request);
    match attach(context, &handle, operation, exec, true).await {
        Ok(answer) => Ok(answer),
        Err(error) => {
            abandon(&handle, Some(operation)).await;
            Err(error)
        }
    }
}

/// An ephemeral VM that nobody will have goes; others stay.
async fn abandon(handle: &Handle, operation: Option<OperationId>) {
    if let Err(error) = handle.command(Command::Abandon(operation)).await {
        tracing::warn!(vm = %handle.id, error = %error, "an abandoned VM could not be deleted");
    }
}

/// It never became ready: its logs say why, so it stays, but takes no memory.
async fn keep(handle: &Handle, error: WireError) -> WireError {
    for command in [Command::Keep, Command::Kill] {
        if let Err(error) = handle.command(command).await {
            tracing::warn!(vm = %handle.id, error = %error, "a VM that never became ready is left as it is");
        }
    }
    let name = handle.view().name.clone();
    error.hint(format!("VM {name} was kept: see `banger vm logs {name}`, then `banger vm delete {name}`"))
}

/// The operation of a run derives from its request: repeating the request is no second command.
fn operation_id(request: RequestId) -> OperationId {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&request.0[..8]);
    OperationId(bytes)
}

/// An operation that no request is repeated for.
pub(super) fn fresh_operation() -> Result<OperationId, WireError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| WireError::new(ErrorKind::Host, format!("the kernel gives no entropy: {error}")))?;
    Ok(OperationId(bytes))
}

/// A VM that is up, or on its way.
async fn awake(context: &ServerContext, vm: &VmRef) -> Result<(Handle, u64), WireError> {
    let handle = get(context, vm, false).await?;
    let (attempt, state, name) = {
        let published = handle.watch.borrow();
        (published.attempt, published.view.state, published.view.name.clone())
    };
    match state {
        VmState::Starting | VmState::Running => Ok((handle, attempt)),
        VmState::Stopped | VmState::Failed | VmState::Stopping | VmState::Deleting => {
            Err(WireError::new(ErrorKind::WrongState, format!("VM {name} is {}", state.as_str()))
                .hint(format!("`banger vm start {name}` starts it")))
        }
    }
}

pub(super) async fn exec(
    context: &ServerContext,
    vm: VmRef,
    exec: ExecSpec,
    wait: Option<Readiness>,
    client: &Client,
) -> Result<Answer, WireError> {
    agent_link::check_size(&exec)?;
    let (mut handle, attempt) = awake(context, &vm).await?;
    let level = wait.unwrap_or(Readiness::Agent);
    ready(context, &mut handle, attempt, level, None, &client.gone).await?;
    attach(context, &handle, fresh_operation()?, exec, false).await
}

/// A connection to the guest's SSH server. The agent takes it early, and holds it until there is a server.
pub(super) async fn ssh(context: &ServerContext, vm: VmRef) -> Result<Answer, WireError> {
    let (mut handle, attempt) = awake(context, &vm).await?;
    until_ready(&mut handle.watch, attempt, Readiness::Agent, default_patience(Readiness::Agent)).await?;
    let socket = context.ports.ssh(handle.id).await?;
    let reply = Reply::Connected { vm: handle.id, name: handle.view().name.clone() };
    Ok(Answer { reply, descriptor: Some(socket) })
}

async fn attach(
    context: &ServerContext,
    handle: &Handle,
    operation: OperationId,
    exec: ExecSpec,
    main: bool,
) -> Result<Answer, WireError> {
    ask(&handle.vm, BeginOperation { operation, main }).await?;
    let socket = context.ports.operation(handle.id, operation, exec).await?;
    let view = handle.view();
    let reply = Reply::Attached { vm: handle.id, name: view.name.clone(), operation, size: view.size };
    Ok(Answer { reply, descriptor: Some(socket) })
}
