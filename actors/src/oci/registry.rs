//! One registry, as one pull talks to it: what a reference stands for, and the bytes of its blobs. Keeps nothing on disk.

use super::OciError;
use super::credentials::{Login, credentials};
use super::document::{self, ConfigFile};
use super::fetch::{BlobSource, Part, patiently};
use super::reference::{canonical, is_sha256};
use super::session::{ANSWER_DEADLINE, Ask, RequestError, Session, whole};
use crate::artifacts::Cancel;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use messages::image::ImageConfig;
use oci_client::Reference;
use oci_client::manifest::{ImageIndexEntry, OciDescriptor, OciImageManifest, OciManifest};
use reqwest::header::HeaderMap;
use reqwest::{Method, Response, StatusCode};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// The longest manifest or index, in bytes: what the specification lets registries refuse beyond (OCI distribution
/// specification, "Pushing Manifests").
const MANIFEST_MAX: usize = 4 << 20;
/// Where registries say what they send.
const DIGEST_HEADER: &str = "docker-content-digest";
/// More registries than anybody uses: the sessions with the others are made anew.
const SESSIONS_MAX: usize = 16;
/// The most that an image's config may take, in bytes.
const CONFIG_MAX: u64 = 4 << 20;
/// More layers than any tool makes: overlay file systems stop at 128, docker at 127.
const LAYERS_MAX: usize = 512;
/// The most that one image's blobs may take together, in bytes.
const BLOBS_MAX: u64 = 64 << 30;

/// By registry, each with the login that it was made for.
type Sessions = HashMap<String, (Login, Arc<Session>)>;

/// How registries are reached.
#[derive(Clone, Default)]
pub struct Access {
    /// `insecure_registries` of the config: those that speak plain HTTP.
    pub insecure: Vec<String>,
    /// Where docker keeps its settings, and with them the credentials; none at all where absent.
    pub docker_config: Option<PathBuf>,
    /// A session for each registry, and whom it speaks for: making one reads all of this host's certificates.
    sessions: Arc<Mutex<Sessions>>,
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
        Self { insecure, docker_config, sessions: Arc::default() }
    }

    /// The session with a registry. A login that has changed since makes another one.
    fn session(&self, reference: &Reference, login: Login) -> Result<Arc<Session>, RequestError> {
        // A map of sessions: a panic elsewhere cannot have left it half-changed.
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let registry = reference.resolve_registry();
        if let Some((known, session)) = sessions.get(registry)
            && *known == login
        {
            return Ok(Arc::clone(session));
        }
        let secure = !self.insecure.iter().any(|insecure| insecure == registry);
        let session = Arc::new(Session::new(registry, secure, login.clone())?);
        if sessions.len() >= SESSIONS_MAX {
            sessions.clear();
        }
        sessions.insert(registry.to_owned(), (login, Arc::clone(&session)));
        Ok(session)
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
    session: Arc<Session>,
    reference: Reference,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("reference", &self.reference).finish_non_exhaustive()
    }
}

impl Registry {
    /// Makes ready to talk to the registry of `reference`. Blocks, within a runtime: credentials may come from a program, which
    /// `cancel` ends.
    ///
    /// # Errors
    /// When the credentials cannot be read, or this host's certificates.
    pub fn new(access: &Access, reference: &Reference, cancel: &Cancel) -> Result<Self, OciError> {
        let login = credentials(access.docker_config.as_deref(), reference.registry(), cancel)?;
        let session = access.session(reference, login);
        let failed = |error| OciError::answered(&canonical(reference), reference.registry(), error);
        Ok(Self { session: session.map_err(failed)?, reference: reference.clone() })
    }

    /// An error of this registry's about `what`.
    pub(super) fn failed(&self, what: &str, source: RequestError) -> OciError {
        OciError::answered(what, self.reference.registry(), source)
    }

    /// Asks what the reference stands for now, and only that: one request.
    ///
    /// # Errors
    /// [`OciError`].
    pub async fn digest(&self) -> Result<String, OciError> {
        patiently(async || {
            let failed = |error| self.failed(&canonical(&self.reference), error);
            let response = self.ask_manifest(Method::HEAD, &self.reference).await.map_err(failed)?;
            match stated(response.headers()).filter(|digest| is_sha256(digest)) {
                Some(digest) => self.as_asked(&self.reference, digest),
                // It may leave the header out, but not the bytes.
                None => self.manifest(&self.reference).await.map(|(_, digest)| digest),
            }
        })
        .await
    }

    /// Fetches manifest and config, of this platform.
    ///
    /// # Errors
    /// [`OciError`].
    pub async fn resolve(&self) -> Result<Resolved, OciError> {
        patiently(async || self.resolve_once().await).await
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

    async fn ask_manifest(&self, method: Method, reference: &Reference) -> Result<Response, RequestError> {
        let by = reference.digest().or(reference.tag()).unwrap_or("latest");
        let ask = Ask {
            method,
            repository: reference.repository(),
            place: format!("manifests/{by}"),
            accept: Some(&document::manifest_types()),
            offset: 0,
            deadline: Some(ANSWER_DEADLINE),
        };
        self.session.ask(&ask).await
    }

    async fn manifest(&self, reference: &Reference) -> Result<(OciManifest, String), OciError> {
        let failed = |error| self.failed(&canonical(&self.reference), error);
        let response = self.ask_manifest(Method::GET, reference).await.map_err(failed)?;
        let stated = stated(response.headers()).filter(|digest| is_sha256(digest));
        let bytes = whole(response, MANIFEST_MAX).await.map_err(failed)?;
        let digest = self.as_asked(reference, format!("sha256:{}", hex::encode(Sha256::digest(&bytes))))?;
        match stated {
            Some(stated) if stated != digest => Err(OciError::Digest { digest: stated, stale: false }),
            Some(_) | None => {
                let manifest = document::manifest(&bytes).map_err(|why| self.malformed("manifest", why))?;
                Ok((manifest, digest))
            }
        }
    }

    /// Refuses what is not what the reference says by its digest.
    fn as_asked(&self, reference: &Reference, digest: String) -> Result<String, OciError> {
        match reference.digest() {
            Some(asked) if asked != digest => Err(OciError::Digest { digest: asked.to_owned(), stale: false }),
            Some(_) | None => Ok(digest),
        }
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
        let failed = |error| self.failed(&blob.digest, error);
        let response = self.blob(&blob, 0).await?;
        let limit = usize::try_from(blob.size).expect("at most CONFIG_MAX");
        let bytes = match whole(response, limit).await {
            Err(RequestError::TooLong { .. }) => {
                return Err(OciError::TooLong { digest: blob.digest, size: blob.size });
            }
            read => read.map_err(failed)?,
        };
        if (bytes.len() as u64) < blob.size {
            return Err(OciError::Cut { digest: blob.digest });
        }
        if format!("sha256:{}", hex::encode(Sha256::digest(&bytes))) != blob.digest {
            return Err(OciError::Digest { digest: blob.digest, stale: false });
        }
        let file = ConfigFile::read(&bytes).map_err(|why| self.malformed("config", why))?;
        if (file.os.as_str(), file.architecture.as_str()) != ("linux", "amd64") {
            return Err(self.not_for_us(vec![format!("{}/{}", file.os, file.architecture)]));
        }
        Ok(file.into_config())
    }

    /// The bytes of a blob from `offset` on, or all of them where the registry knows no ranges. Not verified.
    pub(super) async fn blob(&self, blob: &Blob, offset: u64) -> Result<Response, OciError> {
        let ask = Ask {
            method: Method::GET,
            repository: self.reference.repository(),
            place: format!("blobs/{}", blob.digest),
            accept: None,
            offset,
            deadline: None,
        };
        self.session.ask(&ask).await.map_err(|error| self.failed(&blob.digest, error))
    }

    fn broke(&self, blob: &Blob) -> impl Fn(reqwest::Error) -> OciError + Send + use<> {
        let (digest, registry) = (blob.digest.clone(), self.reference.registry().to_owned());
        move |error| OciError::answered(&digest, &registry, RequestError::Transport(error))
    }

    fn not_for_us(&self, offered: Vec<String>) -> OciError {
        OciError::Platform { reference: canonical(&self.reference), offered }
    }

    fn malformed(&self, what: &'static str, why: String) -> OciError {
        OciError::Malformed { what, reference: canonical(&self.reference), why }
    }
}

/// What a registry says that it sends.
fn stated(headers: &HeaderMap) -> Option<String> {
    headers.get(DIGEST_HEADER)?.to_str().ok().map(str::to_owned)
}

impl BlobSource for Registry {
    fn open<'a>(&'a self, blob: &'a Blob, offset: u64) -> BoxFuture<'a, Result<Part, OciError>> {
        Box::pin(async move {
            let answer = self.blob(blob, offset).await?;
            let from = if answer.status() == StatusCode::PARTIAL_CONTENT { offset } else { 0 };
            let broke = self.broke(blob);
            Ok(Part { from, bytes: answer.bytes_stream().map(move |chunk| chunk.map_err(&broke)).boxed() })
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
