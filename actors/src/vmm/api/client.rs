//! The client: one kept connection, a deadline on every call, a bound on every answer.
//!
//! A VMM that a guest has broken into is as hostile as the guest: what it answers is bounded, timed and cleaned.

use super::bodies::{
    ActionType, Call, Fault, FirecrackerVersion, InstanceActionInfo, InstanceInfo, SnapshotCreateParams,
    SnapshotLoadParams, Verb, Vm, VmRunState,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use messages::limits::ERROR_MESSAGE_MAX;
use serde::de::DeserializeOwned;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long each kind of call may take.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// Calls that only record a setting or read one.
    pub setting: Duration,
    /// `InstanceStart`: loads the kernel, opens every device, and has QEMU started under emulation.
    pub start: Duration,
    /// Pause and resume, which wait for every vCPU.
    pub state: Duration,
    /// Writing or reading a guest's whole memory.
    pub snapshot: Duration,
}

impl Default for CallLimits {
    /// Each is far over what a call takes, for hosts that swap: a setting takes microseconds, a start milliseconds.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { setting: seconds(10), start: seconds(30), state: seconds(30), snapshot: seconds(300) }
    }
}

/// The longest answer that is read, in bytes. The longest real one, `/vm/config`, is a few KiB.
const ANSWER_MAX: usize = 64 << 10;
/// How much of an answer's head is held, in bytes.
const HEAD_MAX: usize = 16 << 10;

/// Says how a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("failed to connect to the VMM's socket `{}`", path.display())]
    Connect { path: PathBuf, source: io::Error },
    /// The VMM did not do it, and says why.
    #[error("the VMM refused {call} ({status}): {fault}")]
    Refused { call: String, status: u16, fault: String },
    /// Whether it happened is not known.
    #[error("the VMM did not answer {call} within {} s", after.as_secs_f32())]
    Timeout { call: String, after: Duration },
    /// Whether it happened is not known.
    #[error("the connection to the VMM broke during {call}")]
    Broken { call: String, source: hyper::Error },
    #[error("the VMM's answer to {call} makes no sense: {reason}")]
    Nonsense { call: String, reason: String },
}

/// A handle on one VMM's API; clones share the kept connection.
#[derive(Clone, Debug)]
pub struct Driver {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    limits: CallLimits,
    /// The connection that no call is using. A second call at the same time opens one of its own.
    idle: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Driver {
    /// A driver for the VMM that listens at `socket`. Connects when it is first used.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self::within(socket, CallLimits::default())
    }

    /// [`Driver::new`] with other limits.
    #[must_use]
    pub fn within(socket: impl Into<PathBuf>, limits: CallLimits) -> Self {
        Self { shared: Arc::new(Shared { socket: socket.into(), limits, idle: Mutex::new(None) }) }
    }

    /// Uses a connection that is already there.
    pub(crate) async fn over(socket: &Path, stream: UnixStream, limits: CallLimits) -> Result<Self, ApiError> {
        let driver = Self::within(socket, limits);
        let connection = handshake(stream, "the first connection").await?;
        driver.keep(connection);
        Ok(driver)
    }

    /// The VMM's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.shared.socket
    }

    /// Closes the kept connection; the next call opens another. An idle connection costs both sides memory.
    pub fn rest(&self) {
        drop(self.take());
    }

    /// Waits until the VMM has closed the kept connection.
    #[cfg(test)]
    pub(super) async fn kept_connection_closed(&self) {
        if let Some(mut kept) = self.take() {
            while kept.ready().await.is_ok() {
                tokio::task::yield_now().await;
            }
            self.keep(kept);
        }
    }

    /// Sends one setting.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn put<C: Call>(&self, body: &C) -> Result<(), ApiError> {
        self.set(body, self.shared.limits.setting).await
    }

    /// Starts the guest.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn start(&self) -> Result<(), ApiError> {
        self.set(&InstanceActionInfo { action_type: ActionType::InstanceStart }, self.shared.limits.start).await
    }

    /// Presses the keys that ask a guest to go down.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn send_ctrl_alt_del(&self) -> Result<(), ApiError> {
        self.put(&InstanceActionInfo { action_type: ActionType::SendCtrlAltDel }).await
    }

    /// Has the counters written to the metrics file.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn flush_metrics(&self) -> Result<(), ApiError> {
        self.put(&InstanceActionInfo { action_type: ActionType::FlushMetrics }).await
    }

    /// Stops every vCPU.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn pause(&self) -> Result<(), ApiError> {
        self.set(&Vm { state: VmRunState::Paused }, self.shared.limits.state).await
    }

    /// Lets the vCPUs run on.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn resume(&self) -> Result<(), ApiError> {
        self.set(&Vm { state: VmRunState::Resumed }, self.shared.limits.state).await
    }

    /// Writes a snapshot of a paused VM.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn create_snapshot(&self, params: &SnapshotCreateParams) -> Result<(), ApiError> {
        self.set(params, self.shared.limits.snapshot).await
    }

    /// Loads a snapshot into a VMM that was told nothing else yet.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn load_snapshot(&self, params: &SnapshotLoadParams) -> Result<(), ApiError> {
        self.set(params, self.shared.limits.snapshot).await
    }

    /// What the VMM says of itself.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn instance(&self) -> Result<InstanceInfo, ApiError> {
        self.get("/").await
    }

    /// The VMM's version.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn version(&self) -> Result<String, ApiError> {
        Ok(clean(&self.get::<FirecrackerVersion>("/version").await?.firecracker_version))
    }

    async fn set<C: Call>(&self, body: &C, limit: Duration) -> Result<(), ApiError> {
        let path = match body.key() {
            Some(key) => [C::ROUTE.split('{').next().unwrap_or(C::ROUTE), key].concat(),
            None => C::ROUTE.to_owned(),
        };
        let method = match C::VERB {
            Verb::Get => Method::GET,
            Verb::Put => Method::PUT,
            Verb::Patch => Method::PATCH,
        };
        let call = format!("{method} {path}");
        let json = serde_json::to_vec(body)
            .map_err(|error| ApiError::Nonsense { call: call.clone(), reason: format!("cannot be sent: {error}") })?;
        let (status, _) = self.exchange(&call, method, &path, json.into(), limit).await?;
        if status.is_success() { Ok(()) } else { Err(nonsense(&call, format!("status {status} without an error"))) }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let call = format!("GET {path}");
        let (_, body) = self.exchange(&call, Method::GET, path, Bytes::new(), self.shared.limits.setting).await?;
        serde_json::from_slice(&body).map_err(|error| nonsense(&call, error.to_string()))
    }

    async fn exchange(
        &self,
        call: &str,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), ApiError> {
        let exchange = async {
            let mut connection = self.connection(call).await?;
            let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
            if !body.is_empty() {
                request = request.header("content-type", "application/json");
            }
            let request = request
                .body(Full::new(body))
                .map_err(|error| ApiError::Nonsense { call: call.to_owned(), reason: error.to_string() })?;
            let broken = |source| ApiError::Broken { call: call.to_owned(), source };
            let answer = connection.send_request(request).await.map_err(broken)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_MAX)
                .collect()
                .await
                .map_err(|error| nonsense(call, error.to_string()))?
                .to_bytes();
            self.keep(connection);
            Ok((status, body))
        };
        // On a timeout the future is dropped, and with it the connection, whose next answer would be this call's.
        let (status, body) =
            timeout(limit, exchange).await.map_err(|_| ApiError::Timeout { call: call.to_owned(), after: limit })??;
        if status.is_client_error() || status.is_server_error() {
            let fault = match serde_json::from_slice::<Fault>(&body) {
                Ok(fault) => clean(&fault.fault_message),
                Err(_) => clean(&String::from_utf8_lossy(&body)),
            };
            return Err(ApiError::Refused { call: call.to_owned(), status: status.as_u16(), fault });
        }
        Ok((status, body))
    }

    async fn connection(&self, call: &str) -> Result<SendRequest<Full<Bytes>>, ApiError> {
        if let Some(mut kept) = self.take() {
            // Not ready: the VMM closed it meanwhile.
            if kept.ready().await.is_ok() {
                return Ok(kept);
            }
        }
        let stream = UnixStream::connect(&self.shared.socket)
            .await
            .map_err(|source| ApiError::Connect { path: self.shared.socket.clone(), source })?;
        handshake(stream, call).await
    }

    fn take(&self) -> Option<SendRequest<Full<Bytes>>> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn keep(&self, connection: SendRequest<Full<Bytes>>) {
        *self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
}

async fn handshake(stream: UnixStream, call: &str) -> Result<SendRequest<Full<Bytes>>, ApiError> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| ApiError::Broken { call: call.to_owned(), source })?;
    // Ends when the sender is dropped or the VMM closes; what it ends with, the pending call has already been told.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a VMM broke");
        }
    });
    Ok(sender)
}

fn nonsense(call: &str, reason: String) -> ApiError {
    ApiError::Nonsense { call: call.to_owned(), reason: clean(&reason) }
}

/// Makes a VMM's words fit for a terminal: one line, no control characters, bounded.
pub(crate) fn clean(text: &str) -> String {
    let mut clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.len() > ERROR_MESSAGE_MAX {
        clean.truncate(clean.floor_char_boundary(ERROR_MESSAGE_MAX));
    }
    clean.trim().to_owned()
}
