//! A file on the web, as the cache of blobs takes its bytes: from any offset on, where the server knows ranges.

use crate::oci::fetch::{BlobSource, Part};
use crate::oci::{Blob, OciError, http};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream;
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Client, Response, StatusCode, Url};

/// The longest file that is taken, in bytes: as much as a container image's layers together.
const LENGTH_MAX: u64 = 64 << 30;

/// A file on the web.
#[derive(Debug, Clone)]
pub struct WebFile {
    client: Client,
    url: Url,
}

impl WebFile {
    /// Makes ready to ask for it. A redirection never leads from HTTPS to HTTP.
    ///
    /// # Errors
    /// When this host's certificates cannot be read.
    pub fn new(url: &Url) -> Result<Self, OciError> {
        let client = http::client().https_only(url.scheme() == "https").build();
        let client = client.map_err(|source| failed(url, source))?;
        Ok(Self { client, url: url.clone() })
    }

    /// Asks how long it is.
    ///
    /// # Errors
    /// When the server does not have it or does not say, or it is longer than anything that is taken.
    pub async fn length(&self) -> Result<u64, OciError> {
        // Not HEAD: servers that hand out signed addresses sign them for GET alone. The body is never read.
        let response = self.ask(0).await?;
        let length = response.content_length().ok_or_else(|| OciError::NoLength { url: shown(&self.url) })?;
        if length > LENGTH_MAX {
            return Err(OciError::TooLarge { what: shown(&self.url), limit: LENGTH_MAX });
        }
        Ok(length)
    }

    async fn ask(&self, offset: u64) -> Result<Response, OciError> {
        let mut request = self.client.get(self.url.clone());
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        let response = request.send().await.map_err(|source| failed(&self.url, source))?;
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(OciError::Status { url: shown(&self.url), status: status.as_u16() }),
        }
    }
}

impl BlobSource for WebFile {
    fn open<'a>(&'a self, _: &'a Blob, offset: u64) -> BoxFuture<'a, Result<Part, OciError>> {
        Box::pin(async move {
            let response = self.ask(offset).await?;
            let begins = format!("bytes {offset}-");
            let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
            let partial = response.status() == StatusCode::PARTIAL_CONTENT
                && range.is_some_and(|range| range.starts_with(&begins));
            let url = self.url.clone();
            let bytes = stream::try_unfold(response, move |mut response| {
                let url = url.clone();
                async move {
                    let chunk = response.chunk().await.map_err(|source| failed(&url, source))?;
                    Ok(chunk.map(|chunk| (chunk, response)))
                }
            });
            Ok(Part { from: if partial { offset } else { 0 }, bytes: bytes.boxed() })
        })
    }
}

/// Without the address, which may hold a key behind its path.
fn failed(url: &Url, source: reqwest::Error) -> OciError {
    OciError::Web { url: shown(url), source: source.without_url() }
}

fn shown(url: &Url) -> String {
    super::Location::Web(url.clone()).to_string()
}
