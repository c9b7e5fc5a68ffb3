//! HTTP on the API's Unix socket. Every answer is Firecracker's: 200 with JSON, 204, or 400 with a `fault_message`.

use super::request::Request;
use crate::emu::controller::Call;
use crate::emu::fault::Fault;
use crate::emu::vsock::SocketFile;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use axum::{Json, Router};
use serde_json::{Value, json};
use std::io;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// Where requests go, and how large they may be.
#[derive(Clone, Debug)]
struct Api {
    calls: mpsc::Sender<Call>,
    payload_max: usize,
}

/// The socket, with its file removed at the end.
struct ApiSocket(SocketFile);

impl Listener for ApiSocket {
    type Io = UnixStream;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.0.listener().accept().await {
                Ok((stream, _)) => return (stream, ()),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an API connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(())
    }
}

/// Serves until `stop` resolves and the answers under way are out.
///
/// # Errors
/// None at present: axum's own type.
pub async fn serve(
    socket: SocketFile,
    calls: mpsc::Sender<Call>,
    payload_max: usize,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new().fallback(answer).with_state(Api { calls, payload_max });
    axum::serve(ApiSocket(socket), router).with_graceful_shutdown(stop).await
}

async fn answer(State(api): State<Api>, request: axum::extract::Request) -> Response {
    match perform(&api, request).await {
        Ok(Some(value)) => Json(value).into_response(),
        Ok(None) => StatusCode::NO_CONTENT.into_response(),
        Err(fault) => refusal(&fault),
    }
}

async fn perform(api: &Api, request: axum::extract::Request) -> Result<Option<Value>, Fault> {
    let (head, body) = request.into_parts();
    let announced = head.headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let limit = api.payload_max;
    if let Some(size) = announced.filter(|size| *size > limit) {
        return Err(Fault::PayloadTooLarge { size, limit });
    }
    let body = to_bytes(Body::new(body), limit).await.map_err(|_| Fault::PayloadTooLarge { size: limit + 1, limit })?;
    let request = Request::parse(&head.method, head.uri.path(), &body)?;
    let (reply, answer) = oneshot::channel();
    let gone = |_| Fault::Internal("the VMM is ending".to_owned());
    api.calls.send(Call { request, reply }).await.map_err(|_| Fault::Internal("the VMM is ending".to_owned()))?;
    answer.await.map_err(gone)?
}

fn refusal(fault: &Fault) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({"fault_message": fault.to_string()}))).into_response()
}
