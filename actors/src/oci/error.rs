//! What can go wrong between a reference and the bytes that it stands for.

use super::RequestError;
use messages::{ErrorKind, WireError};
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no such image.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error("`{text}` is no reference to an image: {why}")]
    Reference { text: String, why: String },
    #[error("failed to get the credentials for `{registry}`")]
    Credentials {
        registry: String,
        #[source]
        source: docker_credential::CredentialRetrievalError,
    },
    #[error("`{program}`, which has the credentials, did not answer within {seconds} s")]
    HelperSilent { program: String, seconds: u64 },
    #[error("the registry does not have `{reference}`")]
    NotFound { reference: String },
    #[error("the registry does not let us have `{reference}`")]
    Unauthorized { reference: String, registry: String },
    #[error("failed to fetch `{what}`")]
    Registry {
        what: String,
        registry: String,
        #[source]
        source: RequestError,
    },
    #[error("`{reference}` is not for linux/amd64, only for {}", offered.join(", "))]
    Platform { reference: String, offered: Vec<String> },
    #[error("`{reference}` is no container image: it has a part of type `{media_type}`")]
    MediaType { reference: String, media_type: String },
    #[error("the {what} of `{reference}` is malformed: {why}")]
    Malformed { what: &'static str, reference: String, why: String },
    #[error("what came as {digest} is not that")]
    Digest {
        digest: String,
        /// Part of it was here before: it is worth another try.
        stale: bool,
    },
    #[error("{digest} is longer than the {size} bytes that were announced")]
    TooLong { digest: String, size: u64 },
    #[error("failed to fetch `{url}`")]
    Web {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("the server answers {status} for `{url}`")]
    Status { url: String, status: u16 },
    #[error("the server does not say how long `{url}` is")]
    NoLength { url: String },
    #[error("`{what}` is longer than {} GiB", limit >> 30)]
    TooLarge { what: String, limit: u64 },
    #[error("the connection ended before the end of {digest}")]
    Cut { digest: String },
    #[error("failed to keep a blob in `{}`", path.display())]
    Cache {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the pull was stopped")]
    Cancelled,
}

impl OciError {
    pub(super) fn cache(path: &Path, source: io::Error) -> Self {
        Self::Cache { path: path.to_owned(), source }
    }

    /// Tells what a registry's answer means; `what` is the reference or digest that was asked for.
    pub(super) fn answered(what: &str, registry: &str, source: RequestError) -> Self {
        if let RequestError::Status { status, codes, .. } = &source {
            let said = |known: &[&str]| codes.iter().any(|code| known.contains(&code.as_str()));
            if *status == 404 || said(&["MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN", "NOT_FOUND"]) {
                return Self::NotFound { reference: what.to_owned() };
            }
            if matches!(status, 401 | 403) || said(&["UNAUTHORIZED", "DENIED"]) {
                return Self::Unauthorized { reference: what.to_owned(), registry: registry.to_owned() };
            }
        }
        Self::Registry { what: what.to_owned(), registry: registry.to_owned(), source }
    }

    /// True where the same request may well succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Cut { .. } => true,
            Self::Web { source, .. } => !source.is_builder() && !tls(source),
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            Self::Registry { source, .. } => match source {
                RequestError::Transport(error) => !error.is_builder() && !tls(error),
                RequestError::Status { status, codes, .. } => {
                    *status == 429 || *status >= 500 || codes.iter().any(|code| code == "TOOMANYREQUESTS")
                }
                RequestError::TooLong { .. } | RequestError::Realm { .. } | RequestError::Token { .. } => false,
            },
            _ => false,
        }
    }
}

/// True for what speaks no TLS, or none that is trusted: asking again does not help.
fn tls(error: &reqwest::Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        // Of tokio-rustls, which has no type for a peer that hangs up at the first word of TLS.
        if cause.is::<rustls::Error>() || cause.to_string() == "tls handshake eof" {
            return true;
        }
        // hyper and reqwest wrap it in an I/O error, whose own source is skipped by `source`.
        if let Some(inner) = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && inner.is::<rustls::Error>()
        {
            return true;
        }
        source = cause.source();
    }
    false
}

impl From<&OciError> for WireError {
    fn from(error: &OciError) -> Self {
        let kind = match error {
            OciError::Reference { .. } => ErrorKind::Usage,
            OciError::NotFound { .. } | OciError::Platform { .. } => ErrorKind::NotFound,
            OciError::Credentials { .. } => ErrorKind::Host,
            OciError::HelperSilent { .. } => ErrorKind::Timeout,
            OciError::Cancelled => ErrorKind::Cancelled,
            OciError::Cache { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorKind::Resources,
            OciError::Cache { .. } => ErrorKind::Host,
            _ => ErrorKind::Download,
        };
        let wire = Self::from_error(kind, error);
        match error {
            OciError::Unauthorized { registry, .. } => {
                wire.hint(format!("it may not exist, or need a login: `docker login {registry}` stores one"))
            }
            OciError::Credentials { .. } => {
                wire.hint("they are looked for as docker does: ~/.docker/config.json and its helpers")
            }
            OciError::HelperSilent { program, .. } => wire.hint(format!(
                "it may be waiting for you: see what `echo REGISTRY | {program} get` does in a terminal"
            )),
            OciError::Registry { registry, source: RequestError::Transport(error), .. } if tls(error) => {
                wire.hint(format!("if it speaks plain HTTP, add \"{registry}\" to `insecure_registries` in the config"))
            }
            _ => wire,
        }
    }
}
