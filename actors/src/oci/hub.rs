//! A registry for the tests: on loopback, from memory, and as unreliable as a test wants it.

use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// How it behaves.
#[derive(Debug, Default)]
pub(crate) struct Manners {
    /// How often a blob's connection is cut, and after how many bytes.
    pub(crate) cuts: u32,
    pub(crate) cut_after: usize,
    /// Knows no ranges.
    pub(crate) whole_only: bool,
    /// How many requests are answered with 503.
    pub(crate) busy: u32,
    /// User and password that it asks for.
    pub(crate) login: Option<(String, String)>,
    /// Sends whoever asks for something to its own desk for a token.
    pub(crate) desk: Option<Desk>,
    /// So many blanks after every manifest and token: they are still JSON.
    pub(crate) padding: usize,
    /// Says of no answer how long it is.
    pub(crate) unstated: bool,
}

/// Where tokens are had.
#[derive(Debug, Default, Clone)]
pub(crate) struct Desk {
    /// The refresh token that it wants; tokens are for everybody where there is none.
    pub(crate) refresh: Option<String>,
    /// The place that the registry names instead of this desk.
    pub(crate) realm: Option<String>,
    /// How many requests each token is good for.
    pub(crate) uses: usize,
}

#[derive(Debug, Default)]
struct Shelves {
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, (&'static str, Vec<u8>)>,
    manners: Manners,
    asked: Vec<String>,
    /// The token that was granted last, and how many requests it is still good for.
    granted: (usize, usize),
}

/// A running registry. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    pub(crate) address: String,
    shelves: Arc<Mutex<Shelves>>,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl Hub {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Self { address: listener.local_addr().unwrap().to_string(), shelves: Arc::default() };
        let serving = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let hub = serving.clone();
                // A client that leaves is no concern of the registry's.
                std::thread::spawn(move || drop(hub.serve(stream.unwrap())));
            }
        });
        hub
    }

    pub(crate) fn behave(&self, manners: Manners) {
        self.shelves.lock().unwrap().manners = manners;
    }

    /// Every request's first line since the last call.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shelves.lock().unwrap().asked)
    }

    /// Puts a blob there under a digest that may be a lie.
    pub(crate) fn blob(&self, digest: &str, bytes: &[u8]) {
        self.shelves.lock().unwrap().blobs.insert(digest.to_owned(), bytes.to_vec());
    }

    /// Publishes an image; returns its reference and its manifest's digest.
    pub(crate) fn image(&self, name: &str, layers: &[Vec<u8>], config: &serde_json::Value) -> (String, String) {
        let described = |kind: &str, bytes: &[u8]| {
            self.blob(&digest(bytes), bytes);
            serde_json::json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
        };
        let config = serde_json::json!({ "architecture": "amd64", "os": "linux", "config": config });
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes()),
            "layers": layers.iter().map(|layer| described(LAYER, layer)).collect::<Vec<_>>(),
        });
        self.manifest(name, MANIFEST, manifest.to_string().into_bytes())
    }

    /// Publishes an index of what is there already, by platform.
    pub(crate) fn index(&self, name: &str, entries: &[(&str, &str)]) -> (String, String) {
        let entry = |(architecture, digest): &(&str, &str)| {
            serde_json::json!({
                "mediaType": MANIFEST, "digest": digest, "size": 1,
                "platform": { "architecture": architecture, "os": "linux" },
            })
        };
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": entries.iter().map(entry).collect::<Vec<_>>(),
        });
        self.manifest(name, INDEX, index.to_string().into_bytes())
    }

    /// Publishes any manifest under `REPOSITORY:TAG`.
    pub(crate) fn manifest(&self, name: &str, kind: &'static str, bytes: Vec<u8>) -> (String, String) {
        let (repository, tag) = name.split_once(':').unwrap();
        let digest = digest(&bytes);
        let mut shelves = self.shelves.lock().unwrap();
        for by in [tag, &digest] {
            shelves.manifests.insert(format!("{repository}/manifests/{by}"), (kind, bytes.clone()));
        }
        (format!("{}/{name}", self.address), digest)
    }

    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut lines = reader.by_ref().lines();
        let first = lines.next().unwrap_or(Ok(String::new()))?;
        let headers: HashMap<String, String> = lines
            .map_while(Result::ok)
            .take_while(|line| !line.is_empty())
            .filter_map(|line| line.split_once(": ").map(|(key, value)| (key.to_lowercase(), value.to_owned())))
            .collect();
        let mut form = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut form)?;
        let (status, extra, body, sent) = {
            let mut shelves = self.shelves.lock().unwrap();
            let range = headers.get("range").map(String::as_str).unwrap_or_default();
            shelves.asked.push(format!("{} {range}", first.trim_end_matches(" HTTP/1.1")).trim_end().to_owned());
            let mut answer = answer(&mut shelves, &self.address, &first, &headers, &String::from_utf8(form).unwrap());
            if !shelves.manners.unstated {
                answer.1 += &format!("content-length: {}\r\n", answer.2.len());
            }
            answer
        };
        write!(stream, "HTTP/1.1 {status}\r\nconnection: close\r\n{extra}\r\n")?;
        if !first.starts_with("HEAD ") {
            stream.write_all(&body[..sent.min(body.len())])?;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    }
}

type Answer = (&'static str, String, Vec<u8>, usize);

fn answer(shelves: &mut Shelves, address: &str, first: &str, headers: &HashMap<String, String>, form: &str) -> Answer {
    let whole = |status, extra: String, body: Vec<u8>| {
        let sent = body.len();
        (status, extra, body, sent)
    };
    if shelves.manners.busy > 0 {
        shelves.manners.busy -= 1;
        return whole("503 Service Unavailable", String::new(), b"busy".to_vec());
    }
    if let Some((user, password)) = &shelves.manners.login {
        use base64::Engine as _;
        let basic = format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}")));
        if headers.get("authorization") != Some(&basic) {
            return whole("401 Unauthorized", "www-authenticate: Basic realm=\"test\"\r\n".to_owned(), Vec::new());
        }
    }
    let padding = vec![b' '; shelves.manners.padding];
    if let Some(desk) = shelves.manners.desk.clone() {
        if first.split(' ').nth(1).unwrap_or_default().starts_with("/token") {
            let asked = match &desk.refresh {
                Some(token) => {
                    first.starts_with("POST ") && form.split('&').any(|field| field == format!("refresh_token={token}"))
                }
                None => first.starts_with("GET "),
            };
            if !asked {
                return whole("401 Unauthorized", String::new(), Vec::new());
            }
            shelves.granted = (shelves.granted.0 + 1, desk.uses);
            let token = format!("{{\"access_token\":\"granted-{}\",\"expires_in\":300}}", shelves.granted.0);
            return whole("200 OK", String::new(), [token.as_bytes(), &padding].concat());
        }
        let (number, left) = shelves.granted;
        if left == 0 || headers.get("authorization") != Some(&format!("Bearer granted-{number}")) {
            let realm = desk.realm.unwrap_or_else(|| format!("http://{address}/token"));
            let challenge = format!("www-authenticate: Bearer realm=\"{realm}\",service=\"the hub\"\r\n");
            return whole("401 Unauthorized", challenge, Vec::new());
        }
        shelves.granted.1 -= 1;
    }
    let path = first.split(' ').nth(1).unwrap_or_default().trim_start_matches("/v2/");
    if path.is_empty() {
        return whole("200 OK", String::new(), Vec::new());
    }
    if let Some((kind, bytes)) = shelves.manifests.get(path) {
        let extra = format!("content-type: {kind}\r\ndocker-content-digest: {}\r\n", digest(bytes));
        return whole("200 OK", extra, [bytes.as_slice(), &padding].concat());
    }
    let blob = path.split_once("/blobs/").and_then(|(_, digest)| shelves.blobs.get(digest)).cloned();
    let Some(bytes) = blob else {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        return whole("404 Not Found", "content-type: application/json\r\n".to_owned(), body.to_vec());
    };
    let offset = headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let (status, extra, body) = match offset {
        Some(offset) if !shelves.manners.whole_only => {
            let extra = format!("content-range: bytes {offset}-{}/{}\r\n", bytes.len() - 1, bytes.len());
            ("206 Partial Content", extra, bytes[offset..].to_vec())
        }
        _ => ("200 OK", String::new(), bytes),
    };
    let manners = &mut shelves.manners;
    if manners.cuts > 0 && body.len() > manners.cut_after {
        manners.cuts -= 1;
        return (status, extra, body, manners.cut_after);
    }
    whole(status, extra, body)
}
