//! Catalogs on the web: fetched when the daemon starts, with the last good copy kept for when they cannot be. Blocks.

use super::{Catalog, CatalogError};
use crate::artifacts::now_ms;
use crate::download::Location;
use crate::oci::http;
use reqwest::StatusCode;
use reqwest::blocking::{Client, Response};
use reqwest::header::{ETAG, HeaderMap, IF_NONE_MATCH};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// The longest catalog, in bytes.
const CATALOG_MAX: u64 = 1 << 20;
/// A copy that is younger is as good as the original: a daemon that is restarted asks nobody.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// The daemon's start waits for it.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
const DEADLINE: Duration = Duration::from_secs(8);
/// A longer ETag is not sent back.
const ETAG_MAX: usize = 256;

/// Where copies are kept, and who may be asked without TLS.
#[derive(Debug, Clone)]
pub struct RemoteCatalogs {
    /// Below the cache directory; made when it is first needed.
    pub copies: PathBuf,
    /// `insecure_registries` of the config.
    pub insecure: Vec<String>,
}

/// What is known of a catalog on the web.
#[derive(Debug)]
pub(super) enum Found {
    /// As it is there now, or was a short while ago.
    Fresh(Catalog),
    /// The last good copy, and why it is not a new one.
    Copy(Catalog, String),
    /// Neither.
    Nothing(String),
}

/// A copy, as its file has it.
#[derive(Debug, Serialize, Deserialize)]
struct Copy {
    /// The name of the file is a digest of it.
    url: String,
    etag: Option<String>,
    /// Milliseconds since the Unix epoch.
    fetched_at_ms: u64,
    text: String,
}

/// Why there is no new copy.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{}", chain(.0))]
    Http(#[from] reqwest::Error),
    #[error("the server answers {0}")]
    Status(StatusCode),
    #[error("it breaks off: {0}")]
    Read(#[from] io::Error),
    #[error("it is longer than {} MiB", CATALOG_MAX >> 20)]
    TooLong,
    #[error("it is no catalog: {0}")]
    Malformed(String),
}

impl RemoteCatalogs {
    /// The catalog at an address, which has been checked.
    pub(super) fn load(&self, location: &Location) -> Found {
        let url = String::from(location.clone());
        let path = self.copies.join(format!("{}.json", hex::encode(&Sha256::digest(&url)[..16])));
        let copy = read_copy(&path, &url);
        if let Some((copy, catalog)) = &copy
            && now_ms()
                .checked_sub(copy.fetched_at_ms)
                .is_some_and(|age| age < MAX_AGE.as_millis().try_into().unwrap_or(0))
        {
            return Found::Fresh(catalog.clone());
        }
        let why = match fetch(&url, copy.as_ref().map(|(copy, _)| copy)) {
            Ok((fetched, catalog)) => {
                if let Err(error) = write_copy(&path, &fetched) {
                    tracing::warn!(url = %location, %error, "a catalog could not be kept for when it cannot be fetched");
                }
                return Found::Fresh(catalog);
            }
            Err(error) => error.to_string(),
        };
        match copy {
            Some((copy, catalog)) => {
                let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(copy.fetched_at_ms));
                tracing::warn!(url = %location, copy = %time, why, "a catalog could not be fetched: its last copy is used");
                Found::Copy(catalog, format!("copy of {time}: {why}"))
            }
            None => {
                tracing::warn!(url = %location, why, "a catalog could not be fetched, and there is no copy of it");
                Found::Nothing(why)
            }
        }
    }
}

/// Refuses plain HTTP that the config does not allow.
pub(super) fn check(location: &Location, insecure: &[String]) -> Result<(), CatalogError> {
    location.check(insecure).map_err(CatalogError::Address)
}

fn read_copy(path: &Path, url: &str) -> Option<(Copy, Catalog)> {
    let mut bytes = Vec::new();
    // JSON escapes at most six times over.
    fs::File::open(path).ok()?.take(CATALOG_MAX * 6 + 65_536).read_to_end(&mut bytes).ok()?;
    let copy: Copy = serde_json::from_slice(&bytes).ok().filter(|copy: &Copy| copy.url == url)?;
    let catalog = parse(&copy.text).ok()?;
    Some((copy, catalog))
}

/// Puts it there at once: a daemon that is killed leaves the former one.
fn write_copy(path: &Path, copy: &Copy) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let mut fresh = tempfile::Builder::new().prefix("catalog.").suffix(".partial").tempfile_in(directory)?;
    fresh.write_all(&serde_json::to_vec(copy).map_err(io::Error::other)?)?;
    fresh.as_file().sync_data()?;
    fresh.persist(path).map(drop).map_err(|error| error.error)
}

fn fetch(url: &str, known: Option<&Copy>) -> Result<(Copy, Catalog), FetchError> {
    http::install_provider();
    let client = Client::builder()
        .user_agent(http::USER_AGENT)
        .https_only(url.starts_with("https:"))
        .connect_timeout(CONNECT_DEADLINE)
        .timeout(DEADLINE)
        .build()?;
    let mut request = client.get(url);
    if let Some(etag) = known.and_then(|copy| copy.etag.as_deref()) {
        request = request.header(IF_NONE_MATCH, etag);
    }
    let response = request.send()?;
    let copy = match (response.status(), known) {
        (StatusCode::NOT_MODIFIED, Some(copy)) => {
            Copy { url: url.to_owned(), etag: copy.etag.clone(), fetched_at_ms: now_ms(), text: copy.text.clone() }
        }
        (StatusCode::OK, _) => {
            let etag = etag(response.headers());
            Copy { url: url.to_owned(), etag, fetched_at_ms: now_ms(), text: body(response)? }
        }
        (status, _) => return Err(FetchError::Status(status)),
    };
    let catalog = parse(&copy.text)?;
    Ok((copy, catalog))
}

fn body(response: Response) -> Result<String, FetchError> {
    let mut text = String::new();
    response.take(CATALOG_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > CATALOG_MAX { Err(FetchError::TooLong) } else { Ok(text) }
}

fn etag(headers: &HeaderMap) -> Option<String> {
    let etag = headers.get(ETAG)?.to_str().ok()?;
    (etag.len() <= ETAG_MAX).then(|| etag.to_owned())
}

/// Whoever keeps the catalog has no say in what is on this host.
fn parse(text: &str) -> Result<Catalog, FetchError> {
    let catalog: Catalog = toml::from_str(text).map_err(|error| FetchError::Malformed(error.message().to_owned()))?;
    if let Some(name) = catalog.names_files() {
        return Err(FetchError::Malformed(format!("`{name}` names a file of this host")));
    }
    Ok(catalog)
}

/// Without the address, which may hold a key.
fn chain(error: &reqwest::Error) -> String {
    use std::error::Error as _;
    let mut innermost: &dyn std::error::Error = match error.source() {
        Some(source) => source,
        None => {
            return if error.is_timeout() {
                "it took too long".to_owned()
            } else {
                "it cannot be asked for".to_owned()
            };
        }
    };
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    if error.is_timeout() { "it took too long".to_owned() } else { innermost.to_string() }
}

#[cfg(test)]
mod tests;
