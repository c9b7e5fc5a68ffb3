//! Makes an image of a VM: one that is stopped is started for it, and stopped again.

use super::connection::Client;
use super::context::{ServerContext, ask};
use super::fleet::get;
use super::progress::follow;
use super::ready::ready;
use super::run::fresh_operation;
use crate::images::commit::CommitPlan;
use crate::registry::Handle;
use crate::vm::published::until_down;
use crate::vm::{BeginOperation, Command, STOP_GRACE};
use messages::error::{ErrorKind, WireError};
use messages::guest::{AgentTool, ExecCommand, ExecSpec};
use messages::ids::{ImageName, VmRef};
use messages::image::ImageConfig;
use messages::reply::Reply;
use messages::vm::{Readiness, VmState};
use std::time::Duration;

/// For the word that the archive's own operation has ended.
const OWN_END: Duration = Duration::from_secs(2);
/// Beyond a stop's grace.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) vm: VmRef,
    pub(super) name: ImageName,
    pub(super) config: Option<ImageConfig>,
    pub(super) source: Option<String>,
}

pub(super) async fn commit(context: &ServerContext, commit: Commit, client: &Client) -> Result<Reply, WireError> {
    let mut handle = get(context, &commit.vm, true).await?;
    let (state, name) = {
        let published = handle.watch.borrow();
        (published.view.state, published.view.name.clone())
    };
    let started = match state {
        VmState::Starting | VmState::Running => None,
        VmState::Stopped => {
            let lines = follow(handle.watch.clone(), client.progress.clone());
            Some((handle.command(Command::Start).await?.attempt, lines))
        }
        VmState::Failed | VmState::Stopping | VmState::Deleting => {
            return Err(WireError::new(ErrorKind::WrongState, format!("VM {name} is {}", state.as_str()))
                .hint(format!("`banger vm show {name}` tells more")));
        }
    };
    let attempt = started.as_ref().map_or_else(|| handle.watch.borrow().attempt, |(attempt, _)| *attempt);
    let made = tokio::select! {
        made = archive(context, &mut handle, attempt, commit, client) => made,
        () = client.gone.cancelled() => Err(WireError::new(ErrorKind::Cancelled, "the client left")),
    };
    if let Some((attempt, _lines)) = started {
        // As it was before, whatever came of it; but not under the hands of somebody who has come to use it.
        let idle = handle.watch.wait_for(|now| now.view.operations == 0);
        if !matches!(tokio::time::timeout(OWN_END, idle).await, Ok(Ok(_))) {
            tracing::info!(vm = %handle.id, "a VM that was started for a commit is used: it runs on");
            return made;
        }
        let stopped = async {
            handle.command(Command::Stop(None)).await?;
            until_down(&mut handle.watch, attempt, STOP_GRACE + STOP_MARGIN).await
        };
        if let Err(error) = stopped.await {
            tracing::warn!(vm = %handle.id, error = %error, "a VM that was started for a commit was not stopped again");
        }
    }
    made
}

async fn archive(
    context: &ServerContext,
    handle: &mut Handle,
    attempt: u64,
    commit: Commit,
    client: &Client,
) -> Result<Reply, WireError> {
    ready(context, handle, attempt, Readiness::Agent, None, &client.gone).await?;
    let managed_keys = context.ports.authorized_keys().await?;
    let operation = fresh_operation()?;
    ask(&handle.vm, BeginOperation { operation, main: false }).await?;
    let exec = ExecSpec::new(ExecCommand::Tool(AgentTool::Archive));
    let archive = context.ports.operation(handle.id, operation, exec).await?;
    let view = handle.view();
    let plan = CommitPlan {
        name: commit.name,
        from: view.image.clone(),
        kernel: view.kernel.clone(),
        config: commit.config,
        source: commit.source.unwrap_or_else(|| format!("vm:{}", view.name)),
        managed_keys,
    };
    context.library.commit(plan, archive, client.progress.clone()).await.map(Reply::Image)
}
