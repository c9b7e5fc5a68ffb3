//! Images from bundles, out of a file and over the web.

#![cfg(test)]

use super::*;
use crate::bundle::pack;
use crate::ext4::{Label, Meta, Tree, build};
use crate::oci::BlobCache;
use crate::oci::hub::{Hub, Manners, digest};
use messages::image::ImageConfig;
use messages::reply::Stage;
use messages::{ErrorKind, WireError};
use std::fs;
use std::path::PathBuf;

struct Place {
    directory: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    hub: Hub,
}

impl Place {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { directory: tempfile::tempdir().unwrap(), runtime, hub: Hub::start() }
    }

    fn store(&self) -> ImageStore {
        ImageStore::new(self.directory.path().join("images"))
    }

    fn left(&self) -> usize {
        fs::read_dir(self.store().directory()).map_or(0, Iterator::count)
    }

    fn bundle(&self) -> Vec<u8> {
        let mut tree = Tree::create(self.directory.path()).unwrap();
        let noise: Vec<u8> = (0_u32..100_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        tree.file(b"noise", Meta::root(0o644), &mut noise.as_slice()).unwrap();
        let path = self.directory.path().join("fs");
        let built = build(tree, &path, Label("test")).unwrap();
        let export = ImageExport {
            name: "tiny".parse().unwrap(),
            kernel: "six".parse().unwrap(),
            size_bytes: built.size_bytes,
            source: "docker.io/library/alpine:3.20".to_owned(),
            config: ImageConfig { cmd: vec!["sh".to_owned()], ..ImageConfig::default() },
        };
        let mut bytes = Vec::new();
        pack(&export, &File::open(&path).unwrap(), &mut bytes, &mut |_| Ok(())).unwrap();
        bytes
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join("x.bundle");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn import(&self, bytes: &[u8], name: Option<&str>) -> Result<ImageRecord, ImageError> {
        let file = self.file(bytes).display().to_string().parse().unwrap();
        let name = name.map(|name| name.parse().unwrap());
        import(&self.store(), &file, name.as_ref(), &Cancel::new(), &Reporter::silent(Stage::ImagePull))
    }

    fn pull(&self, url: &str, sha256: &str) -> Result<ImageRecord, WireError> {
        let pinned: Pinned = serde_json::from_value(serde_json::json!({ "url": url, "sha256": sha256 })).unwrap();
        let downloads = Downloads {
            blobs: BlobCache::new(self.directory.path().join("blobs"), None),
            insecure: vec![self.hub.address.clone()],
        };
        let (store, kernel, name) = (self.store(), "six".parse().unwrap(), "web".parse().unwrap());
        let pulling = self.runtime.spawn_blocking(move || {
            let (cancel, reporter) = (Cancel::new(), Reporter::silent(Stage::ImagePull));
            pull(&store, &pinned, &kernel, &name, &downloads, &cancel, &reporter)
                .map_err(|error| WireError::from(&error))
        });
        self.runtime.block_on(pulling).unwrap()
    }

    /// Where the hub has these bytes.
    fn publish(&self, digest: &str, bytes: &[u8]) -> String {
        self.hub.blob(digest, bytes);
        format!("http://{}/v2/x/blobs/{digest}", self.hub.address)
    }
}

#[test]
fn an_import_gives_the_image_back_and_its_source_is_no_reference() {
    let place = Place::new();
    let bytes = place.bundle();
    let record = place.import(&bytes, None).unwrap();
    assert_eq!((record.name.as_str(), record.kernel.as_str()), ("tiny", "six"));
    assert_eq!((record.source.as_str(), record.config.cmd.len()), ("bundle:docker.io/library/alpine:3.20", 1));
    let rootfs = fs::read(place.store().rootfs(&record).unwrap()).unwrap();
    assert!(rootfs == fs::read(place.directory.path().join("fs")).unwrap());
    assert_eq!(record.digest, digest(&rootfs));
    assert_eq!(record.size_bytes, rootfs.len() as u64);
    // What goes out again is the same bundle, to the byte.
    let (exported, file) = export(&place.store(), record).unwrap();
    let mut again = Vec::new();
    pack(&exported, &file, &mut again, &mut |_| Ok(())).unwrap();
    assert!(again == bytes);

    let error = WireError::from(&place.import(&bytes, None).unwrap_err());
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert_eq!(place.import(&bytes, Some("other")).unwrap().name.as_str(), "other");
    assert_eq!(place.left(), 2);
}

#[test]
fn a_bad_bundle_leaves_nothing() {
    let place = Place::new();
    let bytes = place.bundle();
    let error = WireError::from(&place.import(&bytes[..bytes.len() - 20], None).unwrap_err());
    assert_eq!((error.kind, place.left()), (ErrorKind::Download, 0), "{error}");
    assert!(error.to_string().contains("x.bundle` is damaged or cut off"), "{error}");
    let none: HostPath = "/nonexistent/x".parse().unwrap();
    let error = import(&place.store(), &none, None, &Cancel::new(), &Reporter::silent(Stage::ImagePull)).unwrap_err();
    assert_eq!(WireError::from(&error).kind, ErrorKind::Usage);
}

#[test]
fn a_catalogs_bundle_is_resumed_verified_and_kept() {
    let place = Place::new();
    let bytes = place.bundle();
    let digest = digest(&bytes);
    let (hex, url) = (digest.trim_start_matches("sha256:").to_owned(), place.publish(&digest, &bytes));
    for whole_only in [false, true] {
        place.hub.behave(Manners { cuts: 3, cut_after: 100_000, whole_only, ..Manners::default() });
        let record = place.pull(&url, &hex).unwrap();
        assert_eq!((record.name.as_str(), record.kernel.as_str()), ("web", "six"));
        assert_eq!(record.source, format!("bundle:{url}"));
        place.store().delete("web").unwrap().remove().unwrap();
        let ranges = place.hub.asked().iter().filter(|line| line.contains("bytes=")).count();
        assert!(ranges >= 2, "{ranges}");
        if !whole_only {
            // Nobody is asked for what is here.
            place.pull(&url, &hex).unwrap();
            assert!(place.hub.asked().is_empty());
            place.store().delete("web").unwrap().remove().unwrap();
        }
        fs::remove_dir_all(place.directory.path().join("blobs")).unwrap();
    }
    // What is kept and has been damaged since is fetched anew.
    place.pull(&url, &hex).unwrap();
    place.store().delete("web").unwrap().remove().unwrap();
    fs::write(place.directory.path().join("blobs").join(&hex), vec![7; bytes.len()]).unwrap();
    place.pull(&url, &hex).unwrap();
    let of_file = format!("file://{}", place.file(&bytes).display());
    place.store().delete("web").unwrap().remove().unwrap();
    place.pull(&of_file, &hex).unwrap();
}

#[test]
fn what_is_not_what_was_pinned_is_never_an_image() {
    let place = Place::new();
    let bytes = place.bundle();
    let other = "ab".repeat(32);
    let url = place.publish(&format!("sha256:{other}"), &bytes);
    let of_file = format!("file://{}", place.file(&bytes).display());
    for url in [url.as_str(), &of_file] {
        let error = place.pull(url, &other).unwrap_err();
        assert_eq!((error.kind, place.left()), (ErrorKind::Download, 0), "{error}");
        assert!(error.to_string().contains("is not what the catalog pins"), "{error}");
    }
    let nowhere = format!("http://{}/v2/x/blobs/none", place.hub.address);
    let error = place.pull(&nowhere, &other).unwrap_err();
    assert!(error.to_string().contains("the server answers 404"), "{error}");
    let error = place.pull("http://127.0.0.1:1/x", &other).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Usage);
    assert!(error.hints[0].contains("insecure_registries"), "{error:?}");
    let error = place.pull("file:///nonexistent/x", &other).unwrap_err();
    assert!(error.to_string().contains("failed to read `/nonexistent/x`"), "{error}");
    assert_eq!(place.left(), 0);
}
