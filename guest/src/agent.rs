//! The agent's state: who this guest is and how far it has come. Acts on what the control stream brings; the work itself is
//! done in [`crate::machine`], by tasks, so that no question waits for another.

use crate::bench;
use crate::exec::registry::Registry;
use crate::exec::session::{self, Executor};
use crate::machine::Machine;
use crate::outbox::Outbox;
use crate::transport::{Acceptor, Arrival};
use crate::{ports, ssh, stats};
use messages::error::{ErrorKind, WireError};
use messages::guest::{
    AgentFrame, BENCH_PORT, BootSpec, GuestAnswer, GuestQuestion, OPERATION_PORT, RunningIdentity, SSH_PORT, StopKind,
};
use messages::ids::{BootNonce, VmId};
use messages::vm::Readiness;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How long the last words may take on their way to a daemon that is perhaps just restarting.
const LAST_WORDS_DEADLINE: Duration = Duration::from_millis(500);
/// After the last words were written: the port hands them to the host in the background.
const LAST_WORDS_SETTLE: Duration = Duration::from_millis(20);

/// How far this guest has come.
#[derive(Clone, Debug)]
pub enum Phase {
    /// Nobody has said yet who this is.
    Waiting,
    Booting {
        nonce: BootNonce,
    },
    Failed {
        nonce: BootNonce,
        error: WireError,
    },
    Running(Running),
}

/// Who a running guest is.
#[derive(Clone, Debug)]
pub struct Running {
    pub vm: VmId,
    pub nonce: BootNonce,
    pub readiness: Option<Readiness>,
    pub warning: Option<String>,
}

/// One agent, for the whole life of a guest.
#[derive(Debug)]
pub struct Agent {
    pub executor: Arc<Executor>,
    pub outbox: Outbox,
    phase: Mutex<Phase>,
    machine: Machine,
    restarts: u32,
    last_words: Notify,
}

impl Agent {
    /// An agent that knows nothing yet.
    #[must_use]
    pub fn new(machine: Machine, restarts: u32) -> Arc<Self> {
        let outbox = Outbox::default();
        let executor = Arc::new(Executor::new(Registry::new(outbox.clone())));
        let phase = Mutex::new(Phase::Waiting);
        Arc::new(Self { executor, outbox, phase, machine, restarts, last_words: Notify::new() })
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine that this agent lives in.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The first frame of a control stream.
    #[must_use]
    pub fn identify(&self) -> AgentFrame {
        let running = match &*self.phase() {
            Phase::Running(running) => Some(RunningIdentity {
                vm: running.vm,
                nonce: running.nonce,
                readiness: running.readiness,
                warning: running.warning.clone(),
                operations: self.executor.registry.running(),
            }),
            Phase::Waiting | Phase::Booting { .. } | Phase::Failed { .. } => None,
        };
        AgentFrame::Identify { running, uptime_us: uptime_us(), restarts: self.restarts }
    }

    /// The daemon knows us: what it has not acknowledged is told again.
    pub fn welcomed(&self) {
        for (operation, status) in self.executor.registry.unacknowledged() {
            self.outbox.push(AgentFrame::OperationEnded { operation, status });
        }
    }

    /// Boots with a spec, or takes over its identity where the guest runs already.
    pub fn take_spec(self: &Arc<Self>, spec: BootSpec) {
        let again = {
            let mut phase = self.phase();
            match &*phase {
                // The daemon redialled while we work on it.
                Phase::Booting { nonce } if *nonce == spec.nonce => return,
                Phase::Booting { .. } => return tracing::warn!("a second boot spec came while the first is worked on"),
                Phase::Failed { nonce, error } if *nonce == spec.nonce => {
                    return self.outbox.push(AgentFrame::BootFailed(error.clone()));
                }
                Phase::Running(_) => true,
                Phase::Waiting | Phase::Failed { .. } => {
                    *phase = Phase::Booting { nonce: spec.nonce };
                    false
                }
            }
        };
        let agent = self.clone();
        tokio::spawn(async move { if again { agent.identify_anew(spec).await } else { agent.boot(spec).await } });
    }

    async fn boot(self: Arc<Self>, spec: BootSpec) {
        let nonce = spec.nonce;
        if let Err(error) = self.machine.boot(&self, spec).await {
            tracing::error!(%error, "the boot failed");
            *self.phase() = Phase::Failed { nonce, error: error.clone() };
            self.outbox.push(AgentFrame::BootFailed(error));
        }
    }

    async fn identify_anew(self: Arc<Self>, spec: BootSpec) {
        let (vm, nonce) = (spec.vm, spec.nonce);
        if let Err(error) = self.machine.identify_anew(spec).await {
            tracing::error!(%error, "the new identity was not taken over");
            return self.outbox.push(AgentFrame::BootFailed(error));
        }
        let level = match &mut *self.phase() {
            Phase::Running(running) => {
                (running.vm, running.nonce) = (vm, nonce);
                running.readiness
            }
            Phase::Waiting | Phase::Booting { .. } | Phase::Failed { .. } => None,
        };
        self.welcomed();
        if let Some(level) = level {
            self.ready(level, None);
        }
    }

    /// Who this is, is known: the boot has begun to succeed, or an earlier agent had seen it succeed.
    pub fn run_as(&self, running: Running) {
        *self.phase() = Phase::Running(running);
    }

    /// A readiness level was reached.
    pub fn ready(&self, level: Readiness, warning: Option<String>) {
        if let Phase::Running(running) = &mut *self.phase() {
            running.readiness = running.readiness.max(Some(level));
            if warning.is_some() {
                running.warning.clone_from(&warning);
            }
        }
        self.outbox.push(AgentFrame::Ready { level, warning, uptime_us: uptime_us() });
    }

    /// Who this is, if that is known.
    #[must_use]
    pub fn running(&self) -> Option<Running> {
        match &*self.phase() {
            Phase::Running(running) => Some(running.clone()),
            Phase::Waiting | Phase::Booting { .. } | Phase::Failed { .. } => None,
        }
    }

    /// Answers a question as soon as its answer is known; none waits for another.
    pub fn answer(self: &Arc<Self>, call: u32, question: GuestQuestion) {
        let agent = self.clone();
        tokio::spawn(async move {
            let result = agent.ask(question).await;
            agent.outbox.push(AgentFrame::Answer { call, result });
        });
    }

    async fn ask(self: &Arc<Self>, question: GuestQuestion) -> Result<GuestAnswer, WireError> {
        let internal = |error: &(dyn std::error::Error + 'static)| WireError::from_error(ErrorKind::Guest, error);
        match question {
            GuestQuestion::Stop { kind, deadline_ms } => {
                let agent = self.clone();
                tokio::spawn(async move { agent.machine.stop(&agent, kind, Duration::from_millis(deadline_ms)).await });
                Ok(GuestAnswer::Done)
            }
            GuestQuestion::Stats => {
                let counted = tokio::task::spawn_blocking(stats::collect).await.map_err(|error| internal(&error))?;
                Ok(GuestAnswer::Stats(counted.map_err(|error| internal(&error))?))
            }
            GuestQuestion::Ports => {
                let listed = tokio::task::spawn_blocking(ports::list).await.map_err(|error| internal(&error))?;
                Ok(GuestAnswer::Ports(listed))
            }
            GuestQuestion::SetClock { unix_ns } => {
                self.machine.set_clock(unix_ns).map_err(|error| internal(&error))?;
                Ok(GuestAnswer::Done)
            }
            GuestQuestion::Ping => Ok(GuestAnswer::Done),
            GuestQuestion::SignalOperation { operation, signal } => {
                if self.executor.registry.signal(operation, signal) {
                    Ok(GuestAnswer::Done)
                } else {
                    Err(WireError::new(ErrorKind::NotFound, format!("operation {operation} does not run")))
                }
            }
        }
    }

    /// Tells the daemon that the guest goes down now, and waits a little for the words to be out.
    pub async fn last_words(&self, kind: StopKind) {
        self.outbox.push(AgentFrame::Stopping { kind });
        let sent = async {
            self.last_words.notified().await;
            tokio::time::sleep(LAST_WORDS_SETTLE).await;
        };
        if tokio::time::timeout(LAST_WORDS_DEADLINE, sent).await.is_err() {
            tracing::warn!("the daemon was not there for the last words");
        }
    }

    /// The control stream has them.
    pub fn last_words_sent(&self) {
        self.last_words.notify_one();
    }

    /// Serves the host's streams for as long as the link lives.
    pub async fn serve(self: Arc<Self>, mut acceptor: Acceptor) {
        while let Some(arrival) = acceptor.accept().await {
            tokio::spawn(serve_one(arrival, self.clone()));
        }
    }
}

async fn serve_one(arrival: Arrival, agent: Arc<Agent>) {
    match arrival.port() {
        OPERATION_PORT => match arrival.accept().await {
            Ok(stream) => session::serve(stream, agent.executor.clone()).await,
            Err(error) => tracing::debug!(%error, "the host gave an operation up at once"),
        },
        BENCH_PORT => match arrival.accept().await {
            Ok(stream) => {
                if let Err(error) = bench::serve(stream).await {
                    tracing::debug!(%error, "a measurement was broken off");
                }
            }
            Err(error) => tracing::debug!(%error, "the host gave a measurement up at once"),
        },
        SSH_PORT => match arrival.accept().await {
            Ok(stream) => ssh::serve(stream, agent).await,
            Err(error) => tracing::debug!(%error, "the host gave an SSH connection up at once"),
        },
        _ => arrival.refuse().await,
    }
}

/// Microseconds since power-on, of which the kernel's start is the nearest that can be known here.
#[must_use]
pub fn uptime_us() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
