//! HTTP with one registry: asks, proves who we are when it wants to know, and reads answers of a bounded length. Knows no images.
//!
//! Ours, because oci-client reads manifests and tokens whole, of whatever length, and sends an identity token as if it were one
//! for the registry (docs/adr/0002). Protocol: OCI distribution specification; the challenge of RFC 9110, section 11.

use super::credentials::Login;
use super::http;
use super::token::{Challenge, challenges, fetch_token};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Client, Method, Response, StatusCode};
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// For an answer that is read whole.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// The most of a refusal that is read, in bytes.
const REFUSAL_MAX: usize = 64 << 10;
/// The most of it that is shown, in characters.
const SHOWN_MAX: usize = 200;

/// How a request failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("the request did not get through")]
    Transport(#[source] reqwest::Error),
    #[error("the answer was {status}{}{said}", if said.is_empty() { "" } else { ": " })]
    Status {
        status: u16,
        /// The specification's names for what is wrong: `MANIFEST_UNKNOWN`, `DENIED`…
        codes: Vec<String>,
        said: String,
    },
    #[error("the answer is longer than the {limit} bytes that it may have")]
    TooLong { limit: usize },
    #[error("it sends us to `{realm}` for a token, which {why}")]
    Realm { realm: String, why: &'static str },
    #[error("`{realm}` gave no token that can be used")]
    Token { realm: String },
}

/// One request for something of a repository's.
#[derive(Debug, Clone)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) repository: &'a str,
    /// `manifests/TAG`, `blobs/DIGEST`.
    pub(super) place: String,
    pub(super) accept: Option<&'a str>,
    /// From which byte on.
    pub(super) offset: u64,
    /// For the whole of the answer; none where it may take as long as it takes.
    pub(super) deadline: Option<Duration>,
}

/// A registry, and who we are to it.
pub(super) struct Session {
    http: Client,
    base: String,
    secure: bool,
    login: Login,
    /// What was good for a repository the last time, until it is refused.
    proofs: Mutex<HashMap<String, HeaderValue>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Session {
    /// Makes ready; reads all of this host's certificates.
    pub(super) fn new(registry: &str, secure: bool, login: Login) -> Result<Self, RequestError> {
        let http = http::client().build().map_err(RequestError::Transport)?;
        let base = format!("{}://{registry}/v2", if secure { "https" } else { "http" });
        Ok(Self { http, base, secure, login, proofs: Mutex::default() })
    }

    /// Asks; where the registry wants to know who we are, once more with the proof.
    ///
    /// # Errors
    /// Also when the answer is no success.
    pub(super) async fn ask(&self, ask: &Ask<'_>) -> Result<Response, RequestError> {
        let known = self.proofs().get(ask.repository).cloned();
        let response = self.send(ask, known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return successful(response).await;
        }
        let values = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges = challenges(values.iter().filter_map(|value| value.to_str().ok()));
        let fresh = self.prove(&challenges, ask.repository).await?;
        match fresh.filter(|fresh| known.as_ref() != Some(fresh)) {
            None => successful(response).await,
            Some(fresh) => {
                self.proofs().insert(ask.repository.to_owned(), fresh.clone());
                successful(self.send(ask, Some(&fresh)).await?).await
            }
        }
    }

    fn proofs(&self) -> std::sync::MutexGuard<'_, HashMap<String, HeaderValue>> {
        // A map of values: a panic elsewhere cannot have left it half-changed.
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Redirects are followed, to other hosts without the proof (reqwest).
    async fn send(&self, ask: &Ask<'_>, proof: Option<&HeaderValue>) -> Result<Response, RequestError> {
        let url = format!("{}/{}/{}", self.base, ask.repository, ask.place);
        let mut request = self.http.request(ask.method.clone(), url);
        if let Some(proof) = proof {
            request = request.header(AUTHORIZATION, proof);
        }
        if let Some(accept) = ask.accept {
            request = request.header(ACCEPT, accept);
        }
        if ask.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", ask.offset));
        }
        if let Some(deadline) = ask.deadline {
            request = request.timeout(deadline);
        }
        request.send().await.map_err(RequestError::Transport)
    }

    /// What answers one of the challenges; none where we have nothing that does.
    async fn prove(&self, challenges: &[Challenge], repository: &str) -> Result<Option<HeaderValue>, RequestError> {
        for challenge in challenges {
            match (challenge, &self.login) {
                (Challenge::Bearer(bearer), login) => {
                    return fetch_token(&self.http, login, bearer, repository, self.secure).await.map(Some);
                }
                (Challenge::Basic, Login::Password { user, password }) => return Ok(basic(user, password)),
                (Challenge::Basic, Login::Anonymous | Login::IdentityToken(_)) => {}
            }
        }
        Ok(None)
    }
}

/// The header of HTTP's basic authentication (RFC 7617).
pub(super) fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    use base64::Engine as _;
    let encoded = base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}"));
    secret(&format!("Basic {encoded}"))
}

/// A header that is shown in no log; none for what a header cannot hold.
pub(super) fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// An answer that is a success, or what it says instead.
pub(super) async fn successful(response: Response) -> Result<Response, RequestError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = beginning(response, REFUSAL_MAX).await;
    let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
    let said = refusal.errors.iter().find_map(|error| error.message.as_deref()).unwrap_or_default();
    let said = said.chars().filter(|character| !character.is_control()).take(SHOWN_MAX).collect();
    let codes = refusal.errors.into_iter().filter_map(|error| error.code).collect();
    Err(RequestError::Status { status: status.as_u16(), codes, said })
}

/// What a registry says with a refusal (OCI distribution specification, "Error Codes").
#[derive(Debug, Default, Deserialize)]
struct Refusal {
    #[serde(default)]
    errors: Vec<Complaint>,
}

#[derive(Debug, Deserialize)]
struct Complaint {
    code: Option<String>,
    message: Option<String>,
}

/// As much of an answer as may be had of it.
async fn beginning(mut response: Response, limit: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        bytes.extend_from_slice(&chunk[..chunk.len().min(limit - bytes.len())]);
        if bytes.len() == limit {
            break;
        }
    }
    bytes
}

/// All of an answer, which has at most `limit` bytes.
///
/// # Errors
/// When it has more, or says so, or breaks off.
pub(super) async fn whole(mut response: Response, limit: usize) -> Result<Vec<u8>, RequestError> {
    let mut bytes = Vec::new();
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(RequestError::TooLong { limit });
    }
    while let Some(chunk) = response.chunk().await.map_err(RequestError::Transport)? {
        if bytes.len() + chunk.len() > limit {
            return Err(RequestError::TooLong { limit });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
