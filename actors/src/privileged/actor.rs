//! The actor: takes operations, hands them to the driver task, bounds their time.

use super::driver::{Call, Performed, drive};
use super::error::HelperError;
use crate::supervise::guard;
use actix::{Actor, Context, Handler, Message, ResponseFuture, Supervised};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use messages::WireError;
use messages::error::ErrorKind;
use messages::ids::{InstanceId, InterfaceName};
use messages::privileged::{PrivilegedOperation, PrivilegedReply, Subnet};
use std::future::ready;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// How long an operation may take with everything, waiting for its turn included. The slowest are a first use of nf_tables
/// on a host that has to load modules, and 200 taps asked for at once.
const CALL_TIME: Duration = Duration::from_secs(20);
/// How many operations may wait for the driver; senders of more wait themselves.
const QUEUE: usize = 256;

/// Carries out one operation.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<PrivilegedReply, WireError>")]
pub struct Perform(pub PrivilegedOperation);

/// The client. One is enough; it connects when it is first needed.
#[derive(Debug)]
pub struct PrivilegedClient {
    socket: PathBuf,
    driver: Option<(mpsc::Sender<Call>, AbortHandle)>,
}

impl PrivilegedClient {
    /// A client of the helper at this socket ([`crate::paths::Paths::root_socket`]).
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, driver: None }
    }

    fn start_driver(&mut self) {
        let (calls, queue) = mpsc::channel(QUEUE);
        let task = tokio::spawn(drive(self.socket.clone(), queue));
        if let Some((_, former)) = self.driver.replace((calls, task.abort_handle())) {
            former.abort();
        }
    }
}

impl Actor for PrivilegedClient {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(QUEUE);
        self.start_driver();
    }
}

impl Supervised for PrivilegedClient {
    fn restarting(&mut self, _: &mut Self::Context) {
        self.start_driver();
    }
}

impl Drop for PrivilegedClient {
    fn drop(&mut self) {
        if let Some((_, driver)) = self.driver.take() {
            driver.abort();
        }
    }
}

impl PrivilegedClient {
    fn perform(
        &self,
        operation: PrivilegedOperation,
        ctx: &mut Context<Self>,
    ) -> LocalBoxFuture<'static, Result<Performed, WireError>> {
        let calls = guard(ctx, |_| {
            let (calls, _) = self.driver.as_ref().ok_or(&HelperError::Restarting)?;
            Ok::<_, WireError>(calls.clone())
        });
        let calls = match calls {
            Ok(calls) => calls,
            Err(error) => return ready(Err(error)).boxed_local(),
        };
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let exchange = async {
                calls.send(Call::new(operation, answer)).await.ok()?;
                answered.await.ok()
            };
            match tokio::time::timeout(CALL_TIME, exchange).await {
                Ok(Some(result)) => result,
                Ok(None) => Err((&HelperError::Restarting).into()),
                Err(_) => Err((&HelperError::Silent(CALL_TIME)).into()),
            }
        })
    }
}

impl Handler<Perform> for PrivilegedClient {
    type Result = ResponseFuture<Result<PrivilegedReply, WireError>>;

    fn handle(&mut self, Perform(operation): Perform, ctx: &mut Self::Context) -> Self::Result {
        let performed = self.perform(operation, ctx);
        Box::pin(async move { performed.await.map(|performed| performed.reply) })
    }
}

/// Port 53 of the bridge, bound.
#[derive(Debug)]
pub struct DnsSockets {
    pub udp: OwnedFd,
    /// Listens.
    pub tcp: OwnedFd,
}

/// Has port 53 of the bridge bound.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "Result<DnsSockets, WireError>")]
pub struct PerformBindDns {
    pub instance: InstanceId,
    pub bridge: InterfaceName,
    pub subnet: Subnet,
}

impl Handler<PerformBindDns> for PrivilegedClient {
    type Result = ResponseFuture<Result<DnsSockets, WireError>>;

    fn handle(&mut self, message: PerformBindDns, ctx: &mut Self::Context) -> Self::Result {
        let PerformBindDns { instance, bridge, subnet } = message;
        let performed = self.perform(PrivilegedOperation::BindDns { instance, bridge, subnet }, ctx);
        Box::pin(async move {
            let Performed { reply, descriptors } = performed.await?;
            match (reply, <[OwnedFd; 2]>::try_from(descriptors)) {
                (PrivilegedReply::DnsSockets, Ok([udp, tcp])) => Ok(DnsSockets { udp, tcp }),
                (reply, _) => {
                    let sentence = format!("the network helper answered `{reply:?}` instead of two sockets");
                    Err(WireError::new(ErrorKind::Protocol, sentence))
                }
            }
        })
    }
}
