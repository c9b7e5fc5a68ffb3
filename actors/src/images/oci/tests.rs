//! Container images from a registry on loopback, judged by e2fsck and read by debugfs: neither is ours.

use super::{OciPull, Registries, newest, pull};
use crate::artifacts::{Cancel, Reporter};
use crate::ext4::layer::Layer;
use crate::ext4::{Ext4Error, Hashes, ImageFile, Meta, Spool, Tree};
use crate::images::{ImageError, ImageRecord, ImageStore};
use crate::oci::hub::{Hub, Manners, digest};
use crate::oci::{Access, BlobCache, OciError, image_name};
use messages::reply::Stage;
use serde_json::json;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tar::EntryType::{self, Directory, Link, Regular, Symlink};

/// A layer being written: path, kind, contents or target.
fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, kind, text) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if *kind == Directory { 0o755 } else { 0o640 });
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        if matches!(kind, Link | Symlink) {
            archive.append_link(&mut header, path, text).unwrap();
        } else {
            header.set_size(text.len() as u64);
            archive.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
    }
    archive.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

struct Place {
    hub: Hub,
    directory: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { hub: Hub::start(), directory: tempfile::tempdir().unwrap(), runtime }
    }

    fn store(&self) -> ImageStore {
        ImageStore::new(self.directory.path().join("images"))
    }

    fn blobs(&self) -> std::path::PathBuf {
        self.directory.path().join("blobs")
    }

    fn pull(&self, reference: &str) -> Result<ImageRecord, ImageError> {
        self.pull_as(reference, None)
    }

    fn pull_as(&self, reference: &str, name: Option<&str>) -> Result<ImageRecord, ImageError> {
        let parsed = crate::oci::reference::parse(reference).unwrap();
        let wanted = OciPull {
            reference: reference.to_owned(),
            name: name.map_or_else(|| image_name(&parsed), |name| name.parse().unwrap()),
            chosen: name.is_some(),
            kernel: "six".parse().unwrap(),
        };
        let registries = Registries {
            access: Access::new(vec![self.hub.address.clone()], None),
            blobs: BlobCache::new(self.blobs(), None),
            kernel: "six".parse().unwrap(),
        };
        let _entered = self.runtime.enter();
        pull(&self.store(), &wanted, &registries, &Cancel::new(), &Reporter::silent(Stage::ImagePull))
    }

    fn pull_of(&self, layers: &[Vec<u8>]) -> Result<ImageRecord, ImageError> {
        let (reference, _) = self.hub.image("library/thing:1", layers, &json!({}));
        self.pull(&reference)
    }

    fn rootfs(&self, record: &ImageRecord) -> std::path::PathBuf {
        self.store().rootfs(record).unwrap()
    }

    /// Nothing but the images that are named, and no half of one.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path().join("images")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn tool(program: &str, arguments: &[&str], path: &Path) -> (bool, String) {
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).arg(path).env("PATH", search).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn contents(path: &Path, file: &str) -> Option<String> {
    let (_, stat) = tool("debugfs", &["-R", &format!("stat {file}")], path);
    stat.contains("Inode:").then(|| tool("debugfs", &["-R", &format!("cat {file}")], path).1)
}

#[test]
fn layers_are_put_on_top_of_one_another() {
    let place = Place::new();
    let base = archive(&[
        ("./", Directory, ""),
        ("usr/bin/", Directory, ""),
        ("bin", Symlink, "usr/bin"),
        ("usr/bin/tool", Regular, "tool"),
        ("etc/kept", Regular, "kept"),
        ("etc/gone", Regular, "gone"),
        ("old/one", Regular, "1"),
        ("old/two", Regular, "2"),
        ("was-file", Regular, "file"),
        ("was-dir/below", Regular, "below"),
        ("linked", Regular, "linked"),
    ]);
    let middle = archive(&[
        ("etc/.wh.gone", Regular, ""),
        // The order within a layer makes no difference to what is the layer's own.
        ("old/three", Regular, "3"),
        ("old/.wh..wh..opq", Regular, ""),
        ("also-linked", Link, "linked"),
        ("bin/added", Regular, "through a link"),
        (".wh..wh.plnk/1.2", Regular, "of aufs"),
    ]);
    let top = archive(&[
        ("was-file/", Directory, ""),
        ("was-file/now", Regular, "a directory"),
        ("was-dir", Regular, "a file"),
        ("linked", Regular, "replaced"),
        ("etc/kept", Regular, "changed"),
        ("etc/kept", Regular, "changed twice"),
        ("etc/again", Regular, "again"),
        ("etc/.wh.again", Regular, ""),
        (".wh.nothing", Regular, ""),
    ]);
    let layers = [gzip(&base), zstd::encode_all(middle.as_slice(), 3).unwrap(), top];
    let config = json!({ "Env": ["A=b"], "Entrypoint": ["/init"], "User": "7:8", "WorkingDir": "/srv" });
    let (reference, manifest) = place.hub.image("library/thing:1", &layers, &config);
    let record = place.pull(&reference).unwrap();
    assert_eq!((record.name.as_str(), &record.digest, &record.source), ("thing-1", &manifest, &reference));
    assert_eq!(record.layers.len(), 3);
    assert_eq!((record.config.user.as_deref(), record.config.workdir.as_deref()), (Some("7:8"), Some("/srv")));

    let path = place.rootfs(&record);
    let (clean, said) = tool("e2fsck", &["-fn"], &path);
    assert!(clean, "{said}");
    for (file, expected) in [
        ("/usr/bin/tool", Some("tool")),
        ("/usr/bin/added", Some("through a link")),
        ("/etc/kept", Some("changed twice")),
        ("/etc/again", Some("again")),
        ("/etc/gone", None),
        ("/etc/.wh.gone", None),
        ("/old/one", None),
        ("/old/two", None),
        ("/old/three", Some("3")),
        ("/was-file/now", Some("a directory")),
        ("/was-dir", Some("a file")),
        ("/linked", Some("replaced")),
        ("/also-linked", Some("linked")),
        ("/.wh..wh.plnk", None),
    ] {
        assert_eq!(contents(&path, file).as_deref(), expected, "{file}");
    }
    let (_, link) = tool("debugfs", &["-R", "stat /bin"], &path);
    assert!(link.contains("Type: symlink") && link.contains("usr/bin"), "{link}");
}

#[test]
fn the_same_digest_gives_the_same_bytes_and_asks_for_no_blob_again() {
    let place = Place::new();
    let layers: Vec<Vec<u8>> = (0..6)
        .map(|index| gzip(&archive(&[(&format!("file-{index}"), Regular, &"x".repeat(100_000 + index))])))
        .collect();
    let record = place.pull_of(&layers).unwrap();
    let first = std::fs::read(place.rootfs(&record)).unwrap();
    place.hub.asked();
    let again = place.pull_of(&layers).unwrap();
    assert_eq!(again, record);
    let asked = place.hub.asked();
    assert!(asked.iter().filter(|line| line.contains("/manifests/")).count() == 1, "{asked:?}");
    assert!(asked.iter().all(|line| !line.contains("/blobs/")), "{asked:?}");

    place.store().delete(record.name.as_str()).unwrap().remove().unwrap();
    let record = place.pull_of(&layers).unwrap();
    assert!(std::fs::read(place.rootfs(&record)).unwrap() == first, "the bytes differ");
    let blobs = place.hub.asked().into_iter().filter(|line| line.contains("/blobs/")).count();
    assert_eq!(blobs, 1, "only the config, which is not kept");
}

#[test]
fn two_images_share_their_layers() {
    let place = Place::new();
    let shared = gzip(&archive(&[("shared", Regular, "shared")]));
    let (one, _) = place.hub.image("a/one:1", &[shared.clone(), gzip(&archive(&[("one", Regular, "1")]))], &json!({}));
    let own = gzip(&archive(&[("two", Regular, "2")]));
    let (two, _) = place.hub.image("a/two:1", &[shared.clone(), own, shared.clone()], &json!({}));
    place.pull(&one).unwrap();
    place.pull(&two).unwrap();
    let path = format!("/v2/a/two/blobs/{}", digest(&shared));
    assert!(place.hub.asked().iter().all(|line| !line.contains(&path)));
    assert_eq!(place.names(), ["one-1", "two-1"]);
}

#[test]
fn a_tag_that_moved_makes_another_image() {
    let place = Place::new();
    let first = place.pull_of(&[archive(&[("v", Regular, "1")])]).unwrap();
    let second = place.pull_of(&[archive(&[("v", Regular, "2")])]).unwrap();
    assert_eq!(first.name.as_str(), "thing-1");
    assert!(second.name.as_str().starts_with("thing-1-"), "{}", second.name);
    assert_eq!(contents(&place.rootfs(&first), "/v").as_deref(), Some("1"));
    assert_eq!(contents(&place.rootfs(&second), "/v").as_deref(), Some("2"));
    let found = newest(&place.store(), &first.source).unwrap().unwrap();
    assert_eq!(found.name, second.name);

    let (reference, _) = place.hub.image("other/thing:1", &[archive(&[("v", Regular, "3")])], &json!({}));
    let other = place.pull(&reference).unwrap();
    assert_ne!(other.name, first.name);
    let error = place.pull_as(&reference, Some("thing-1")).unwrap_err();
    assert!(matches!(&error, ImageError::Taken { name } if name.as_str() == "thing-1"), "{error}");
    // The same image under a second name, and each of them again.
    let named = place.pull_as(&reference, Some("mine")).unwrap();
    assert_eq!((named.name.as_str(), &named.digest), ("mine", &other.digest));
    assert_eq!(place.pull_as(&reference, Some(other.name.as_str())).unwrap(), other);
    assert_eq!(place.pull_as(&reference, Some("mine")).unwrap(), named);
}

#[test]
fn a_failed_pull_leaves_no_image_and_the_next_one_goes_on() {
    let place = Place::new();
    let text: String =
        (0..200_000_u32).map(|index| char::from(b'a' + (index.wrapping_mul(2_654_435_761) >> 27) as u8 % 26)).collect();
    let big = gzip(&archive(&[("big", Regular, &text)]));
    place.hub.behave(Manners { cuts: 100, cut_after: 1000, ..Manners::default() });
    // Every connection brings a thousand bytes, so it goes on for ever; the digest of another layer does not fit.
    let bad = gzip(&archive(&[("bad", Regular, "bad")]));
    let (reference, _) = place.hub.image("library/thing:1", &[big.clone(), bad.clone()], &json!({}));
    place.hub.blob(&digest(&bad), &vec![0; bad.len()]);
    let error = place.pull(&reference).unwrap_err();
    assert!(matches!(error, ImageError::Oci(OciError::Digest { .. })), "{error:?}");
    assert_eq!(place.names(), [""; 0]);
    place.hub.behave(Manners::default());
    place.hub.blob(&digest(&bad), &bad);
    let record = place.pull(&reference).unwrap();
    assert!(contents(&place.rootfs(&record), "/big").as_deref() == Some(text.as_str()));
}

#[test]
fn a_damaged_blob_in_the_cache_is_fetched_anew() {
    let place = Place::new();
    let layer = gzip(&archive(&[("file", Regular, "right")]));
    std::fs::create_dir_all(place.blobs()).unwrap();
    let path = place.blobs().join(digest(&layer).trim_start_matches("sha256:"));
    std::fs::write(&path, vec![0; layer.len()]).unwrap();
    let record = place.pull_of(std::slice::from_ref(&layer)).unwrap();
    assert_eq!(contents(&place.rootfs(&record), "/file").as_deref(), Some("right"));
    assert!(std::fs::read(&path).unwrap() == layer);
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let raw = |name: &[u8], kind: EntryType, size: u64, body: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    };
    let long = vec![b'x'; 2 << 20];
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a path that climbs", raw(b"../../etc/passwd", Regular, 0, b"")),
        ("a size that is not there", raw(b"big", Regular, 1 << 40, b"short")),
        ("a size beyond all sense", raw(b"big", Regular, (1 << 63) - 1, b"short")),
        (
            "a name of two megabytes",
            [raw(b"././@LongLink", EntryType::GNULongName, long.len() as u64, &long), raw(b"x", Regular, 0, b"")]
                .concat(),
        ),
        (
            "records of two megabytes",
            [raw(b"x", EntryType::XHeader, long.len() as u64, &long), raw(b"x", Regular, 0, b"")].concat(),
        ),
        ("a link to nothing", archive(&[("a", Link, "nowhere")])),
        ("links in a ring", archive(&[("a", Symlink, "b"), ("b", Symlink, "a"), ("a/x", Regular, "")])),
        ("a file for a directory", archive(&[("a", Regular, ""), ("a/b", Regular, "")])),
        ("no archive", b"not a tar archive at all".repeat(100)),
        ("half of an archive", archive(&[("a", Regular, &"y".repeat(5000))])[..2000].to_vec()),
    ];
    for (what, layer) in cases {
        let place = Place::new();
        let error = place.pull_of(&[gzip(&layer)]).unwrap_err();
        assert!(matches!(error, ImageError::Ext4(_)), "{what}: {error:?}");
        assert_eq!(place.names(), [""; 0], "{what}");
    }
}

#[test]
fn a_path_through_a_link_stays_in_the_image() {
    let place = Place::new();
    let record = place
        .pull_of(&[
            archive(&[("etc/", Directory, ""), ("out", Symlink, "/etc"), ("up", Symlink, "../../../..")]),
            archive(&[
                ("out/passwd", Regular, "in the image"),
                ("up/top", Regular, "top"),
                ("dangling", Symlink, "made/here"),
            ]),
            archive(&[("dangling/file", Regular, "made")]),
        ])
        .unwrap();
    let path = place.rootfs(&record);
    assert_eq!(contents(&path, "/etc/passwd").as_deref(), Some("in the image"));
    assert_eq!(contents(&path, "/top").as_deref(), Some("top"));
    assert_eq!(contents(&path, "/made/here/file").as_deref(), Some("made"));
}

#[test]
fn a_directory_that_a_layer_says_again_survives_its_whiteouts() {
    let place = Place::new();
    let base = archive(&[("old/sub/x", Regular, "x"), ("old/other/y", Regular, "y"), ("gone/sub/z", Regular, "z")]);
    let top = archive(&[
        ("old/sub/", Directory, ""),
        ("old/.wh..wh..opq", Regular, ""),
        ("gone/sub/", Directory, ""),
        (".wh.gone", Regular, ""),
    ]);
    let record = place.pull_of(&[base, top]).unwrap();
    let path = place.rootfs(&record);
    for (there, expected) in
        [("/old/sub", true), ("/old/sub/x", false), ("/old/other", false), ("/gone/sub", true), ("/gone/sub/z", false)]
    {
        assert_eq!(contents(&path, there).is_some(), expected, "{there}");
    }
}

#[test]
fn directories_deeper_than_any_stack_are_taken_away() {
    // Each link leads to the end of what the one before it made: a path of a few bytes goes 80,000 directories down.
    let deep = "d/".repeat(2000);
    let mut entries = vec![(deep.clone(), Directory, String::new())];
    let mut end = deep;
    for number in 0..38 {
        let link = format!("l{number}");
        entries.push((link.clone(), Symlink, end));
        end = format!("{link}/{}", "d/".repeat(2000));
        entries.push((end.clone(), Directory, String::new()));
    }
    let base: Vec<_> = entries.iter().map(|(path, kind, text)| (path.as_str(), *kind, text.as_str())).collect();
    // The same names again, so that they are this layer's own and looked through, and then a whiteout of the topmost.
    let again: Vec<_> = base.iter().copied().chain([(".wh.d", Regular, "")]).collect();
    let directory = tempfile::tempdir().unwrap();
    let image = Arc::new(ImageFile::create(directory.path()).unwrap());
    let mut tree = Tree::layered(Arc::clone(&image));
    for (number, entries) in [base, again].iter().enumerate() {
        let spool = Spool::new(&image, number, Hashes::Left);
        tree.add_layer(Layer::read(archive(entries).as_slice(), spool).unwrap()).unwrap();
    }
    assert!(tree.contains(format!("l37/{}", "d/".repeat(2000)).as_bytes()).unwrap());
}

#[test]
fn a_path_longer_than_any_kernel_takes_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut tree = Tree::create(directory.path()).unwrap();
    let error = tree.directory("d/".repeat(2100).as_bytes(), Meta::root(0o755)).unwrap_err();
    assert!(matches!(error, Ext4Error::BadPath { .. }), "{error}");
}
