//! Catalogs of a server on loopback, which may be asked without TLS and goes away when a test says so.

#![cfg(test)]

use super::*;
use crate::catalog::CatalogSource;
use messages::WireError;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

const TEXT: &str =
    "[[kernel]]\nname = \"theirs\"\ndescription = \"d\"\nkind = \"debian\"\nsuite = \"sid\"\npackage = \"linux\"\n";

#[derive(Default)]
struct Shown {
    body: String,
    /// Each request's `if-none-match`, empty where there was none.
    asked: Vec<String>,
}

struct Place {
    directory: tempfile::TempDir,
    address: String,
    shown: Arc<Mutex<Shown>>,
}

impl Place {
    fn new(body: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shown = Arc::new(Mutex::new(Shown { body: body.to_owned(), asked: Vec::new() }));
        let serving = Arc::clone(&shown);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = vec![0; 4096];
                let count = stream.read(&mut request).unwrap();
                let request = String::from_utf8_lossy(&request[..count]).to_lowercase();
                let known = request.lines().find_map(|line| line.strip_prefix("if-none-match: ")).unwrap_or_default();
                let mut shown = serving.lock().unwrap();
                shown.asked.push(known.to_owned());
                let etag = format!("\"{}\"", shown.body.len());
                let (status, body) = match (shown.body.as_str(), known == etag) {
                    ("", _) => ("503 Service Unavailable", ""),
                    (_, true) => ("304 Not Modified", ""),
                    (body, false) => ("200 OK", body),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\netag: {etag}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                // One that has seen enough leaves.
                drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())));
            }
        });
        Self { directory: tempfile::tempdir().unwrap(), address, shown }
    }

    fn show(&self, body: &str) {
        self.shown.lock().unwrap().body = body.to_owned();
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shown.lock().unwrap().asked)
    }

    fn url(&self) -> String {
        format!("http://{}/catalog.toml?key=secret", self.address)
    }

    fn load(&self) -> Catalog {
        let remote = RemoteCatalogs { copies: self.copies(), insecure: vec![self.address.clone()] };
        Catalog::load(&[CatalogSource::try_from(self.url()).unwrap()], &remote).unwrap()
    }

    fn copies(&self) -> PathBuf {
        self.directory.path().join("catalogs")
    }

    /// Makes the copy older than it may be.
    fn age(&self) {
        let path = fs::read_dir(self.copies()).unwrap().next().unwrap().unwrap().path();
        let mut copy: Copy = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        copy.fetched_at_ms = 1_700_000_000_000;
        fs::write(&path, serde_json::to_vec(&copy).unwrap()).unwrap();
    }

    fn origin(&self) -> String {
        self.load().kernel("theirs").unwrap().view(false).origin
    }
}

#[test]
fn a_copy_is_used_while_it_is_young_then_asked_about() {
    let place = Place::new(TEXT);
    assert_eq!(place.origin(), format!("http://{}/catalog.toml", place.address));
    place.origin();
    assert_eq!(place.asked(), [""], "the second time nobody is asked");
    place.age();
    place.origin();
    assert_eq!(place.asked(), [format!("\"{}\"", TEXT.len())]);
    place.origin();
    assert!(place.asked().is_empty(), "what has not changed is young again");
    place.age();
    place.show(&TEXT.replace("theirs", "another"));
    assert!(place.load().kernel("another").is_ok());
}

#[test]
fn without_the_server_the_last_good_copy_is_used_and_says_so() {
    let place = Place::new(TEXT);
    place.origin();
    let hostile = format!(
        "{TEXT}[[image]]\nname = \"i\"\ndescription = \"d\"\nkernel = \"k\"\nkind = \"bundle\"\nurl = \"file:///etc/shadow\"\nsha256 = \"{}\"\n",
        "ab".repeat(32)
    );
    let long = format!("{TEXT}# {}", "x".repeat(2 << 20));
    for (body, why) in [
        ("", "the server answers 503"),
        ("colour = 1", "it is no catalog"),
        (hostile.as_str(), "`i` names a file of this host"),
        (long.as_str(), "it is longer than 1 MiB"),
    ] {
        place.age();
        place.show(body);
        let origin = place.origin();
        assert!(origin.contains("(copy of 2023-11-14T22:13:20Z: ") && origin.contains(why), "{origin}");
        assert!(!origin.contains("secret"), "{origin}");
    }
}

#[test]
fn a_catalog_that_never_was_here_keeps_no_daemon_from_starting() {
    let place = Place::new("");
    let catalog = place.load();
    assert!(catalog.kernel("debian-cloud-6.12").is_ok());
    let error = WireError::from(&catalog.kernel("theirs").unwrap_err());
    assert!(error.hints[0].starts_with("it may be in the catalog `http://"), "{error:?}");
    assert!(error.hints[0].ends_with("the server answers 503 Service Unavailable"), "{error:?}");
    let remote = RemoteCatalogs { copies: place.copies(), insecure: Vec::new() };
    let error = Catalog::load(&[CatalogSource::try_from(place.url()).unwrap()], &remote).unwrap_err();
    assert!(WireError::from(&error).to_string().contains("plain HTTP"), "{error}");
    assert!(!place.copies().exists());
}

#[test]
fn a_damaged_copy_is_none() {
    let place = Place::new(TEXT);
    place.origin();
    let path = fs::read_dir(place.copies()).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&path).unwrap();
    for damaged in [&whole[..whole.len() / 2], b"", br#"{"url":"http://other/","fetched_at_ms":1,"text":""}"#] {
        fs::write(&path, damaged).unwrap();
        place.asked();
        place.origin();
        assert_eq!(place.asked(), [""], "fetched anew, as if there were none");
    }
}
