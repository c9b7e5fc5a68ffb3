//! Blobs from a registry on loopback: whole, resumed, damaged, refused.

use super::fetch::{Received, fetch};
use super::follow::Arrival;
use super::hub::{Desk, Hub, Manners, digest};
use super::reference::parse;
use super::{Access, Blob, BlobCache, Follower, OciError, Registry, RequestError};
use crate::artifacts::Cancel;
use messages::{ErrorKind, WireError};
use serde_json::json;
use std::io::Read as _;
use std::path::Path;
use tokio::runtime::Runtime;
use tokio::sync::watch;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn registry(hub: &Hub, reference: &str) -> Registry {
    let access = Access::new(vec![hub.address.clone()], None);
    Registry::new(&access, &parse(reference).unwrap(), &Cancel::new()).unwrap()
}

/// Bytes that do not repeat.
fn noise(length: usize) -> Vec<u8> {
    (0_u32..).flat_map(|index| index.wrapping_mul(2_654_435_761).to_le_bytes()).take(length).collect()
}

/// Fetches a blob while somebody follows it.
fn fetched(hub: &Hub, cache: &Path, blob: &Blob) -> (Result<(), OciError>, std::io::Result<Vec<u8>>) {
    let runtime = runtime();
    let registry = registry(hub, &format!("{}/x:1", hub.address));
    let (sender, arrival) = watch::channel(Arrival::default());
    let mut follower = Follower::new(arrival, runtime.handle().clone());
    std::thread::scope(|scope| {
        let read = scope.spawn(move || {
            let mut bytes = Vec::new();
            follower.read_to_end(&mut bytes).map(|_| bytes)
        });
        let cache = BlobCache::new(cache, None);
        let done = runtime.block_on(fetch(&registry, &cache, blob, sender, Received::default()));
        (done, read.join().unwrap())
    })
}

#[test]
fn a_broken_connection_goes_on_where_it_broke() {
    for whole_only in [false, true] {
        let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
        let bytes = noise(3 << 20);
        let blob = Blob { digest: digest(&bytes), size: bytes.len() as u64 };
        hub.blob(&blob.digest, &bytes);
        hub.behave(Manners { cuts: 1, cut_after: 1 << 20, whole_only, ..Manners::default() });
        let (done, read) = fetched(&hub, cache.path(), &blob);
        done.unwrap();
        assert!(read.unwrap() == bytes, "the follower saw other bytes (whole_only: {whole_only})");
        let asked: Vec<String> = hub.asked().into_iter().filter(|line| line.contains("/blobs/")).collect();
        assert_eq!(asked.len(), 2, "{asked:?}");
        assert!(asked[1].ends_with(&format!("bytes={}-", 1 << 20)), "{asked:?}");
        // Whole: nobody is asked any more.
        let (done, read) = fetched(&hub, cache.path(), &blob);
        done.unwrap();
        assert!(read.unwrap() == bytes);
        assert!(hub.asked().iter().all(|line| !line.contains("/blobs/")));
    }
}

#[test]
fn a_blob_that_there_is_no_room_for_is_not_asked_for() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let bytes = noise(1000);
    let blob = Blob { digest: digest(&bytes), size: 1 << 60 };
    hub.blob(&blob.digest, &bytes);
    let (done, read) = fetched(&hub, cache.path(), &blob);
    let error = WireError::from(&done.unwrap_err());
    assert_eq!(error.kind, ErrorKind::Resources, "{error}");
    assert!(read.is_err() && hub.asked().is_empty());
}

#[test]
fn what_was_fetched_before_a_kill_is_not_fetched_again() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let bytes = noise(100_000);
    let blob = Blob { digest: digest(&bytes), size: bytes.len() as u64 };
    hub.blob(&blob.digest, &bytes);
    let partial = cache.path().join(format!("{}.partial", blob.digest.trim_start_matches("sha256:")));
    std::fs::write(&partial, &bytes[..60_000]).unwrap();
    fetched(&hub, cache.path(), &blob).0.unwrap();
    assert!(hub.asked().iter().any(|line| line.ends_with("bytes=60000-")));
    assert!(!partial.exists());
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1);
}

#[test]
fn a_blob_that_is_not_what_was_asked_for_is_never_taken() {
    let (hub, cache) = (Hub::start(), tempfile::tempdir().unwrap());
    let bytes = noise(50_000);
    let blob = Blob { digest: digest(&bytes), size: bytes.len() as u64 };
    let mut other = bytes.clone();
    other[40_000] ^= 1;
    hub.blob(&blob.digest, &other);
    let (done, read) = fetched(&hub, cache.path(), &blob);
    assert!(matches!(done, Err(OciError::Digest { stale: false, .. })), "{done:?}");
    assert!(read.is_err());
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);

    other.push(0);
    hub.blob(&blob.digest, &other);
    let (done, read) = fetched(&hub, cache.path(), &blob);
    assert!(matches!(done, Err(OciError::TooLong { .. })), "{done:?}");
    assert!(read.is_err());

    // The cache's own copy is no better.
    std::fs::write(cache.path().join(blob.digest.trim_start_matches("sha256:")), &other[..50_000]).unwrap();
    let (done, _) = fetched(&hub, cache.path(), &blob);
    assert!(matches!(done, Err(OciError::Digest { stale: true, .. })), "{done:?}");
    hub.blob(&blob.digest, &bytes);
    let (done, read) = fetched(&hub, cache.path(), &blob);
    done.unwrap();
    assert!(read.unwrap() == bytes);
}

#[test]
fn a_registry_that_is_busy_is_asked_again() {
    let hub = Hub::start();
    let (reference, digest) = hub.image("x:1", &[], &json!({ "Cmd": ["sh"], "Env": null, "WorkingDir": "" }));
    hub.behave(Manners { busy: 2, ..Manners::default() });
    let resolved = runtime().block_on(registry(&hub, &reference).resolve()).unwrap();
    assert_eq!((&resolved.manifest, &resolved.digest), (&digest, &digest));
    assert_eq!(resolved.config.cmd, ["sh"]);
    assert_eq!((resolved.config.workdir, resolved.config.env.len()), (None, 0));
}

#[test]
fn the_platform_is_ours_or_the_image_is_refused() {
    let hub = Hub::start();
    let (_, ours) = hub.image("x:amd64", &[], &json!({}));
    let (reference, index) = hub.index("x:many", &[("arm64", &digest(b"other")), ("amd64", &ours)]);
    let resolved = runtime().block_on(registry(&hub, &reference).resolve()).unwrap();
    assert_eq!((resolved.manifest, resolved.digest), (ours, index));

    let (reference, _) = hub.index("x:other", &[("arm64", &digest(b"other")), ("s390x", &digest(b"another"))]);
    let error = runtime().block_on(registry(&hub, &reference).resolve()).unwrap_err();
    assert_eq!(error.to_string(), format!("`{reference}` is not for linux/amd64, only for linux/arm64, linux/s390x"));
}

#[test]
fn what_is_not_there_and_what_is_not_ours_are_told_apart() {
    let hub = Hub::start();
    let (reference, _) = hub.image("x:1", &[], &json!({}));
    let wrong = reference.replace("x:1", "x:2");
    let error = WireError::from(&runtime().block_on(registry(&hub, &wrong).digest()).unwrap_err());
    assert_eq!((error.kind, error.to_string()), (ErrorKind::NotFound, format!("the registry does not have `{wrong}`")));
    hub.behave(Manners { login: Some(("me".into(), "secret".into())), ..Manners::default() });
    let error = WireError::from(&runtime().block_on(registry(&hub, &reference).resolve()).unwrap_err());
    assert_eq!(error.kind, ErrorKind::Download);
    assert!(error.hints[0].contains("docker login"), "{error:?}");
    // TLS is what is spoken where the config says nothing else, and this one does not.
    let secure = Registry::new(&Access::default(), &parse(&reference).unwrap(), &Cancel::new()).unwrap();
    let error = WireError::from(&runtime().block_on(secure.resolve()).unwrap_err());
    assert!(error.hints.iter().any(|hint| hint.contains("insecure_registries")), "{error:?}");
}

#[test]
fn what_is_no_container_image_is_refused() {
    let hub = Hub::start();
    let part = |kind: &str, size: i64| json!({ "mediaType": kind, "digest": digest(b"x"), "size": size });
    let tar = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    for (layers, word) in [
        (vec![part("application/vnd.cncf.helm.chart.content.v1.tar+gzip+encrypted", 1)], "encrypted"),
        (vec![part("application/vnd.wasm.content.layer.v1+wasm", 1)], "wasm"),
        (vec![part(tar, -1)], "size -1"),
        (vec![part(tar, i64::MAX), part(tar, i64::MAX)], "larger"),
        (vec![part(tar, 1); 600], "layers"),
    ] {
        let manifest = json!({ "schemaVersion": 2, "config": part("c", 1), "layers": layers });
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let (reference, _) = hub.manifest("x:1", kind, manifest.to_string().into_bytes());
        let error = runtime().block_on(registry(&hub, &reference).resolve()).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(WireError::from(&error).kind, ErrorKind::Download);
    }
}

#[test]
fn an_answer_that_is_too_long_is_not_read() {
    let hub = Hub::start();
    let (reference, _) = hub.image("x:1", &[], &json!({}));
    for unstated in [false, true] {
        // The blanks are JSON: it is their number that is refused, also where nobody says it beforehand.
        hub.behave(Manners { padding: 64 << 20, unstated, ..Manners::default() });
        let error = runtime().block_on(registry(&hub, &reference).resolve()).unwrap_err();
        let too_long = matches!(&error, OciError::Registry { source: RequestError::TooLong { limit: 4_194_304 }, .. });
        assert!(too_long, "{error:?}");
        assert_eq!(hub.asked().len(), 1, "asked again, though nothing would change");
        let desk = Some(Desk { uses: 9, ..Desk::default() });
        hub.behave(Manners { padding: 64 << 20, unstated, desk, ..Manners::default() });
        let error = runtime().block_on(registry(&hub, &reference).resolve()).unwrap_err();
        let too_long = matches!(&error, OciError::Registry { source: RequestError::TooLong { limit: 1_048_576 }, .. });
        assert!(too_long, "{error:?}");
        assert_eq!(hub.asked().len(), 2);
    }
}

#[test]
fn an_identity_token_is_exchanged_where_the_registry_says() {
    let (hub, docker) = (Hub::start(), tempfile::tempdir().unwrap());
    let (reference, digest) = hub.image("x:1", &[], &json!({ "Cmd": ["sh"] }));
    let desk = Desk { refresh: Some("t0ken".into()), uses: 2, ..Desk::default() };
    hub.behave(Manners { desk: Some(desk.clone()), ..Manners::default() });
    let resolve = |access: &Access| {
        let registry = Registry::new(access, &parse(&reference).unwrap(), &Cancel::new()).unwrap();
        runtime().block_on(registry.resolve())
    };
    let access = Access::new(vec![hub.address.clone()], Some(docker.path().to_owned()));
    let kept = |token: &str| {
        let config = json!({ "auths": { &hub.address: { "auth": "eDp5", "identitytoken": token } } });
        std::fs::write(docker.path().join("config.json"), config.to_string()).unwrap();
    };
    kept("another");
    let error = resolve(&access).unwrap_err();
    assert!(matches!(error, OciError::Unauthorized { .. }), "{error:?}");
    kept("t0ken");
    drop(hub.asked());
    assert_eq!(resolve(&access).unwrap().digest, digest);
    // Manifest, refused; token; manifest; config: the token is kept, and is no one's business in a URL.
    let asked = hub.asked();
    assert_eq!(
        asked.iter().map(|line| line.split('/').nth(1).unwrap()).collect::<Vec<_>>(),
        ["v2", "token", "v2", "v2"]
    );
    assert!(!asked.concat().contains("t0ken"), "{asked:?}");
    // It was good for two requests: the third is refused, and a new one fetched.
    assert_eq!(resolve(&access).unwrap().config.cmd, ["sh"]);
    assert_eq!(hub.asked().iter().filter(|line| line.starts_with("POST /token")).count(), 1);

    // The same login is sent nowhere where nobody could keep it secret.
    let realm = Some("ftp://127.0.0.1/token".to_owned());
    hub.behave(Manners { desk: Some(Desk { realm, ..desk }), ..Manners::default() });
    let error = resolve(&access).unwrap_err();
    assert!(matches!(&error, OciError::Registry { source: RequestError::Realm { .. }, .. }), "{error:?}");
}

#[test]
fn a_manifest_that_is_not_what_was_asked_for_is_never_taken() {
    let hub = Hub::start();
    let (reference, right) = hub.image("x:1", &[], &json!({}));
    let by_digest = format!("{}@{right}", reference.trim_end_matches(":1"));
    assert_eq!(runtime().block_on(registry(&hub, &by_digest).resolve()).unwrap().manifest, right);
    // One more blank, and it is another one.
    hub.behave(Manners { padding: 1, ..Manners::default() });
    for reference in [&reference, &by_digest] {
        let error = runtime().block_on(registry(&hub, reference).resolve()).unwrap_err();
        assert!(matches!(&error, OciError::Digest { digest, .. } if *digest == right), "{error:?}");
    }
    assert_eq!(runtime().block_on(registry(&hub, &reference).digest()).unwrap(), right);
}
