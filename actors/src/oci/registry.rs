//! One registry, as one pull talks to it: what a reference stands for, and the bytes of its blobs. Keeps nothing on disk.

use super::OciError;
use super::credentials::credentials;
use super::fetch::{BlobSource, Part, pauses};
use super::reference::{canonical, is_sha256};
use super::tls;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use messages::image::ImageConfig;
use oci_client::Reference;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{ImageIndexEntry, OciDescriptor, OciImageManifest, OciManifest};
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const CONNECT_DEADLINE: Duration = Duration::from_secs(15);
/// Without a byte for so long, a connection counts as broken.
const READ_DEADLINE: Duration = Duration::from_secs(30);
/// More registries than anybody uses: the clients of the others are made anew.
const CLIENTS_MAX: usize = 16;
/// The most that an image's config may take, in bytes.
const CONFIG_MAX: u64 = 4 << 20;
/// More layers than any tool makes: overlay file systems stop at 128, docker at 127.
const LAYERS_MAX: usize = 512;
/// The most that one image's blobs may take together, in bytes.
const BLOBS_MAX: u64 = 64 << 30;

/// How registries are reached.
#[derive(Clone, Default)]
pub struct Access {
    /// `insecure_registries` of the config: those that speak plain HTTP.
    pub insecure: Vec<String>,
    /// Where docker keeps its settings, and with them the credentials; none at all where absent.
    pub docker_config: Option<PathBuf>,
    /// A client for each registry, and whom it speaks for: making one reads all of this host's certificates.
    clients: Arc<Mutex<HashMap<String, (RegistryAuth, oci_client::Client)>>>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("insecure", &self.insecure).finish_non_exhaustive()
    }
}

impl Access {
    /// How registries are reached by a daemon with these settings.
    #[must_use]
    pub fn new(insecure: Vec<String>, docker_config: Option<PathBuf>) -> Self {
        Self { insecure, docker_config, clients: Arc::default() }
    }

    /// The client for a registry. A login that has changed since makes another one.
    fn client(&self, registry: &str, auth: &RegistryAuth) -> Result<oci_client::Client, OciDistributionError> {
        tls::install_provider();
        // A map of clients: a panic elsewhere cannot have left it half-changed.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, client)) = clients.get(registry)
            && known == auth
        {
            return Ok(client.clone());
        }
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(self.insecure.clone()),
            connect_timeout: Some(CONNECT_DEADLINE),
            read_timeout: Some(READ_DEADLINE),
            user_agent: concat!("banger/", env!("CARGO_PKG_VERSION")),
            platform_resolver: None,
            ..ClientConfig::default()
        };
        let client = oci_client::Client::try_from(config)?;
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        clients.insert(registry.to_owned(), (auth.clone(), client.clone()));
        Ok(client)
    }
}

/// A part of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:` and 64 digits: it has been checked, and may be a file's name.
    pub digest: String,
    pub size: u64,
}

/// What a reference stands for.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Of the manifest or, where there is one for each platform, of their index: what a tag points to.
    pub digest: String,
    /// Of the manifest of our platform.
    pub manifest: String,
    pub layers: Vec<Blob>,
    pub config: ImageConfig,
}

/// A connection to the registry of one reference.
pub struct Registry {
    client: oci_client::Client,
    reference: Reference,
    auth: RegistryAuth,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("reference", &self.reference).finish_non_exhaustive()
    }
}

impl Registry {
    /// Makes ready to talk to the registry of `reference`. Blocks: credentials may come from a program.
    ///
    /// # Errors
    /// When the credentials cannot be read, or this host's certificates.
    pub fn new(access: &Access, reference: &Reference) -> Result<Self, OciError> {
        let auth = credentials(access.docker_config.as_deref(), reference.registry())?;
        let registry = reference.registry();
        let client = access.client(registry, &auth);
        let client = client.map_err(|error| OciError::answered(&canonical(reference), registry, error))?;
        Ok(Self { client, reference: reference.clone(), auth })
    }

    /// An error of this registry's about `what`.
    pub(super) fn failed(&self, what: &str, source: OciDistributionError) -> OciError {
        OciError::answered(what, self.reference.registry(), source)
    }

    /// Asks what the reference stands for now, and only that: one request.
    ///
    /// # Errors
    /// [`OciError`].
    pub async fn digest(&self) -> Result<String, OciError> {
        self.retried(async || {
            let digest = self.client.fetch_manifest_digest(&self.reference, &self.auth).await;
            digest.map_err(|error| self.failed(&canonical(&self.reference), error))
        })
        .await
    }

    /// Fetches manifest and config, of this platform.
    ///
    /// # Errors
    /// [`OciError`].
    pub async fn resolve(&self) -> Result<Resolved, OciError> {
        self.retried(async || self.resolve_once().await).await
    }

    async fn retried<T>(&self, request: impl AsyncFn() -> Result<T, OciError>) -> Result<T, OciError> {
        let mut pause = pauses();
        loop {
            let error = match request().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(wait) = pause.next().filter(|_| error.is_transient()) else { return Err(error) };
            tracing::info!(reference = %self.reference, error = %error, "the registry failed; trying again");
            tokio::time::sleep(wait).await;
        }
    }

    async fn resolve_once(&self) -> Result<Resolved, OciError> {
        let (manifest, digest) = self.manifest(&self.reference).await?;
        let (manifest, of_platform) = match manifest {
            OciManifest::Image(manifest) => (manifest, digest.clone()),
            OciManifest::ImageIndex(index) => {
                let chosen = choose(&index.manifests).ok_or_else(|| self.not_for_us(platforms(&index.manifests)))?;
                match self.manifest(&self.reference.clone_with_digest(chosen.clone())).await? {
                    (OciManifest::Image(manifest), _) => (manifest, chosen),
                    (OciManifest::ImageIndex(_), _) => {
                        return Err(self.malformed("index", "it leads to another index".to_owned()));
                    }
                }
            }
        };
        let layers = self.layers(&manifest)?;
        let config = self.config(&manifest).await?;
        Ok(Resolved { digest, manifest: of_platform, layers, config })
    }

    async fn manifest(&self, reference: &Reference) -> Result<(OciManifest, String), OciError> {
        let pulled = self.client.pull_manifest(reference, &self.auth).await;
        let (manifest, digest) = pulled.map_err(|error| self.failed(&canonical(&self.reference), error))?;
        if !is_sha256(&digest) {
            return Err(self.malformed("manifest", format!("its digest is `{digest}`")));
        }
        Ok((manifest, digest))
    }

    fn layers(&self, manifest: &OciImageManifest) -> Result<Vec<Blob>, OciError> {
        if manifest.layers.len() > LAYERS_MAX {
            return Err(self.malformed("manifest", format!("it has more than {LAYERS_MAX} layers")));
        }
        let layers: Vec<Blob> = manifest.layers.iter().map(|layer| self.layer(layer)).collect::<Result<_, _>>()?;
        let total = layers.iter().try_fold(0_u64, |sum, layer| sum.checked_add(layer.size));
        if total.is_none_or(|total| total > BLOBS_MAX) {
            return Err(self.malformed("manifest", format!("its layers are larger than {} GiB", BLOBS_MAX >> 30)));
        }
        Ok(layers)
    }

    fn layer(&self, descriptor: &OciDescriptor) -> Result<Blob, OciError> {
        let kind = descriptor.media_type.as_str();
        // `…image.layer.v1.tar+gzip` of OCI's, `…image.rootfs.diff.tar.gzip` of docker's. What is not ours to read is neither.
        if !kind.contains(".tar") || kind.ends_with("+encrypted") {
            return Err(OciError::MediaType { reference: canonical(&self.reference), media_type: kind.to_owned() });
        }
        self.blob_of(descriptor)
    }

    fn blob_of(&self, descriptor: &OciDescriptor) -> Result<Blob, OciError> {
        let size = u64::try_from(descriptor.size).ok();
        match size.filter(|_| is_sha256(&descriptor.digest)) {
            Some(size) => Ok(Blob { digest: descriptor.digest.clone(), size }),
            None => Err(self.malformed(
                "manifest",
                format!("it has a part of digest `{}` and size {}", descriptor.digest, descriptor.size),
            )),
        }
    }

    async fn config(&self, manifest: &OciImageManifest) -> Result<ImageConfig, OciError> {
        let blob = self.blob_of(&manifest.config)?;
        if blob.size > CONFIG_MAX {
            return Err(self.malformed("config", format!("it is longer than {} MiB", CONFIG_MAX >> 20)));
        }
        let (BlobResponse::Full(mut body) | BlobResponse::Partial(mut body)) = self.blob(&blob, 0).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = body.stream.next().await {
            let chunk = chunk.map_err(|error| self.failed(&blob.digest, OciDistributionError::IoError(error)))?;
            if bytes.len() as u64 + chunk.len() as u64 > blob.size {
                return Err(OciError::TooLong { digest: blob.digest, size: blob.size });
            }
            bytes.extend_from_slice(&chunk);
        }
        if (bytes.len() as u64) < blob.size {
            return Err(OciError::Cut { digest: blob.digest });
        }
        if format!("sha256:{}", hex::encode(Sha256::digest(&bytes))) != blob.digest {
            return Err(OciError::Digest { digest: blob.digest, stale: false });
        }
        let file: ConfigFile =
            serde_json::from_slice(&bytes).map_err(|error| self.malformed("config", error.to_string()))?;
        if (file.os.as_str(), file.architecture.as_str()) != ("linux", "amd64") {
            return Err(self.not_for_us(vec![format!("{}/{}", file.os, file.architecture)]));
        }
        Ok(file.config.unwrap_or_default().into())
    }

    /// The bytes of a blob from `offset` on, or all of them where the registry knows no ranges. Not verified.
    pub(super) async fn blob(&self, blob: &Blob, offset: u64) -> Result<BlobResponse, OciError> {
        self.client.store_auth_if_needed(self.reference.resolve_registry(), &self.auth).await;
        let answer = self.client.pull_blob_stream_partial(&self.reference, blob.digest.as_str(), offset, None).await;
        answer.map_err(|error| self.failed(&blob.digest, error))
    }

    fn broke(&self, blob: &Blob) -> impl Fn(std::io::Error) -> OciError + Send + use<> {
        let (digest, registry) = (blob.digest.clone(), self.reference.registry().to_owned());
        move |error| OciError::answered(&digest, &registry, OciDistributionError::IoError(error))
    }

    fn not_for_us(&self, offered: Vec<String>) -> OciError {
        OciError::Platform { reference: canonical(&self.reference), offered }
    }

    fn malformed(&self, what: &'static str, why: String) -> OciError {
        OciError::Malformed { what, reference: canonical(&self.reference), why }
    }
}

impl BlobSource for Registry {
    fn open<'a>(&'a self, blob: &'a Blob, offset: u64) -> BoxFuture<'a, Result<Part, OciError>> {
        Box::pin(async move {
            let (from, body) = match self.blob(blob, offset).await? {
                BlobResponse::Partial(body) => (offset, body),
                BlobResponse::Full(body) => (0, body),
            };
            let broke = self.broke(blob);
            Ok(Part { from, bytes: body.stream.map(move |chunk| chunk.map_err(&broke)).boxed() })
        })
    }
}

/// The manifest for the platform that our guests are.
fn choose(manifests: &[ImageIndexEntry]) -> Option<String> {
    let ours = |entry: &&ImageIndexEntry| platform(entry).as_deref() == Some("linux/amd64");
    manifests.iter().find(ours).map(|entry| entry.digest.clone())
}

fn platform(entry: &ImageIndexEntry) -> Option<String> {
    entry.platform.as_ref().map(|platform| format!("{}/{}", platform.os, platform.architecture))
}

fn platforms(manifests: &[ImageIndexEntry]) -> Vec<String> {
    // `unknown/unknown` is what builders put their attestations under.
    let all: BTreeSet<String> = manifests.iter().filter_map(platform).filter(|it| it != "unknown/unknown").collect();
    if all.is_empty() { vec!["no platform at all".to_owned()] } else { all.into_iter().collect() }
}

/// An image's config, as far as it is of use (OCI image specification, config.md).
#[derive(Debug, Deserialize)]
struct ConfigFile {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    config: Option<Execution>,
}

/// Every field may be absent, or null.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

impl From<Execution> for ImageConfig {
    fn from(execution: Execution) -> Self {
        let said = |text: Option<String>| text.filter(|text| !text.is_empty());
        Self {
            env: execution.env.unwrap_or_default(),
            entrypoint: execution.entrypoint.unwrap_or_default(),
            cmd: execution.cmd.unwrap_or_default(),
            workdir: said(execution.working_dir),
            user: said(execution.user),
        }
    }
}
