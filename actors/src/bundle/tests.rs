//! Bundles of images: there and back, and everything that may be wrong with one.

#![cfg(test)]

use super::*;
use crate::artifacts::{Cancel, Reporter};
use crate::ext4::{Label, Meta, Tree, build};
use messages::image::{ImageConfig, ImageExport};
use messages::reply::Stage;
use messages::{ErrorKind, WireError};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

fn file_system(directory: &Path) -> PathBuf {
    let mut tree = Tree::create(directory).unwrap();
    let noise: Vec<u8> = (0_u32..50_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    tree.file(b"noise", Meta::root(0o644), &mut noise.as_slice()).unwrap();
    tree.file(b"zeros", Meta::root(0o644), &mut [0; 1 << 20].as_slice()).unwrap();
    let path = directory.join("fs");
    build(tree, &path, Label("test")).unwrap();
    path
}

fn export(size_bytes: u64) -> ImageExport {
    ImageExport {
        name: "tiny".parse().unwrap(),
        kernel: "six".parse().unwrap(),
        size_bytes,
        source: "debian:bookworm".to_owned(),
        config: ImageConfig { cmd: vec!["sh".to_owned()], ..ImageConfig::default() },
    }
}

fn packed(path: &Path) -> Vec<u8> {
    let file = File::open(path).unwrap();
    let mut bytes = Vec::new();
    pack(&export(file.metadata().unwrap().len()), &file, &mut bytes, &mut |_| Ok(())).unwrap();
    bytes
}

fn unpacked(bytes: &[u8], to: &Path) -> Result<(ImageManifest, UnpackedImage), BundleError> {
    let bundle = ImageBundle::open(bytes, "x.bundle")?;
    let manifest = bundle.manifest.clone();
    Ok((manifest, bundle.unpack(to, &Cancel::new(), &Reporter::silent(Stage::ImagePull))?))
}

#[test]
fn an_image_comes_out_as_it_went_in() {
    let directory = tempfile::tempdir().unwrap();
    let path = file_system(directory.path());
    let bytes = packed(&path);
    let to = directory.path().join("back");
    let (manifest, image) = unpacked(&bytes, &to).unwrap();
    let original = fs::read(&path).unwrap();
    assert!(fs::read(&to).unwrap() == original);
    assert_eq!(manifest, ImageManifest::from(&export(original.len() as u64)));
    assert_eq!(image.digest, format!("sha256:{}", hex::encode(Sha256::digest(&original))));
    assert!(fs::metadata(&to).unwrap().blocks() * 512 < original.len() as u64 / 4, "holes stay holes");
}

#[test]
fn equal_images_are_equal_bundles_wherever_their_holes_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = file_system(directory.path());
    let full = directory.path().join("full");
    fs::write(&full, fs::read(&path).unwrap()).unwrap();
    assert!(packed(&path) == packed(&full));
    let file = File::open(&path).unwrap();
    let error = pack(&export(1), &file, std::io::sink(), &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("its record says 1"), "{error}");
    let stopped = |_| Err(std::io::ErrorKind::ConnectionAborted.into());
    pack(&export(file.metadata().unwrap().len()), &file, std::io::sink(), &mut { stopped }).unwrap_err();
}

/// A file system of eight kilobytes, as far as its superblock goes.
fn little() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; 8192];
    File::open(file_system(directory.path())).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes[1028..1032].copy_from_slice(&2_u32.to_le_bytes());
    bytes
}

fn manifest(size: usize) -> Vec<u8> {
    serde_json::to_vec(&ImageManifest::from(&export(size as u64))).unwrap()
}

fn sums(manifest: &[u8], rootfs: &[u8]) -> Vec<u8> {
    pack::checksums(&Sha256::digest(manifest), &Sha256::digest(rootfs)).into_bytes()
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        // Past the checks of the writer: what comes in was written by others.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn what_is_no_bundle_is_refused_in_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("back");
    let rootfs = little();
    let manifest = manifest(rootfs.len());
    let sums = sums(&manifest, &rootfs);
    let changed = |old: &str, new: &str| String::from_utf8(manifest.clone()).unwrap().replace(old, new).into_bytes();
    let with =
        |manifest: &[u8]| tar(&[(MANIFEST, manifest), (ROOTFS, &rootfs), (CHECKSUMS, &self::sums(manifest, &rootfs))]);
    let of_fs = |change: fn(&mut Vec<u8>)| {
        let mut rootfs = rootfs.clone();
        change(&mut rootfs);
        tar(&[(MANIFEST, &manifest), (ROOTFS, &rootfs), (CHECKSUMS, &self::sums(&manifest, &rootfs))])
    };
    unpacked(&zstd(&with(&manifest)), &to).unwrap();
    unpacked(&with(&manifest), &to).unwrap();
    for (bytes, said) in [
        (b"hello".repeat(500), "does not begin like an archive"),
        (Vec::new(), "it is empty"),
        (tar(&[(ROOTFS, &rootfs)]), "first member is not `manifest.json`"),
        (tar(&[("../manifest.json", &manifest)]), "first member is not `manifest.json`"),
        (tar(&[(MANIFEST, b"{")]), "manifest cannot be read"),
        (with(&changed("\"format\":1", "\"format\":9")), "format 9, and this banger knows 1"),
        (with(&changed("\"image\"", "\"kernel\"")), "a bundle of a kernel, not of an image"),
        (with(&changed("\"tiny\"", "\"../../etc\"")), "is not a name for an image"),
        (with(&changed("8192", "999999999999999")), "larger than 256 GiB"),
        (with(&changed("debian:bookworm", "a\\u0007b")), "no line of text"),
        (tar(&[(MANIFEST, &manifest)]), "no `rootfs.ext4` of 8192 bytes follows"),
        (tar(&[(MANIFEST, &manifest), ("/etc/passwd", &rootfs)]), "no `rootfs.ext4` of 8192 bytes follows"),
        (tar(&[(MANIFEST, &manifest), (ROOTFS, &rootfs[..4096])]), "no `rootfs.ext4` of 8192 bytes follows"),
        (tar(&[(MANIFEST, &manifest), (ROOTFS, &rootfs)]), "no `SHA256SUMS` follows"),
        (
            tar(&[(MANIFEST, &manifest), (ROOTFS, &rootfs), (CHECKSUMS, b"")]),
            "`manifest.json` is not what its checksum",
        ),
        (
            tar(&[(MANIFEST, &manifest), (ROOTFS, &vec![7; 8192]), (CHECKSUMS, &sums)]),
            "`rootfs.ext4` is not what its checksum says",
        ),
        (
            tar(&[(MANIFEST, &manifest), (ROOTFS, &rootfs), (CHECKSUMS, &sums), ("more", b"x")]),
            "something follows `SHA256SUMS`",
        ),
        ([with(&manifest), vec![0; 3 << 20]].concat(), "something follows the archive"),
        (of_fs(|fs| fs[1024 + 0x38] = 0), "it is no ext4 file system"),
        (of_fs(|fs| fs[1024 + 0x60] |= 4), "its journal was not written back"),
        (of_fs(|fs| fs[1024 + 4] = 200), "it is cut off"),
    ] {
        for bytes in [zstd(&bytes), bytes] {
            let error = WireError::from(&unpacked(&bytes, &to).map_or_else(|error| error, |_| panic!("{said}: taken")));
            assert!(error.to_string().contains(said), "{said}: {error}");
            assert_eq!(error.kind, ErrorKind::Download, "{error}");
        }
    }
}

#[test]
fn a_bundle_that_is_cut_or_changed_anywhere_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("back");
    let rootfs = little();
    let manifest = manifest(rootfs.len());
    let sums = sums(&manifest, &rootfs);
    let bytes = zstd(&tar(&[(MANIFEST, &manifest), (ROOTFS, &rootfs), (CHECKSUMS, &sums)]));
    unpacked(&bytes, &to).unwrap();
    for cut in 0..bytes.len() {
        assert!(unpacked(&bytes[..cut], &to).is_err(), "cut at {cut} of {}", bytes.len());
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        // Of zstd's frame header a bit or two mean nothing; then what comes out is what went in.
        if let Ok((found, image)) = unpacked(&changed, &to) {
            assert_eq!(found, ImageManifest::parse(&manifest, "x").unwrap(), "changed at {at}");
            assert_eq!(image.digest, format!("sha256:{}", hex::encode(Sha256::digest(&rootfs))), "changed at {at}");
        }
    }
}

#[test]
fn a_bomb_fills_no_disk_and_can_be_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("back");
    let size = 64 << 20;
    let manifest = manifest(size);
    let mut header = tar::Header::new_gnu();
    header.set_path(ROOTFS).unwrap();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header.set_cksum();
    let mut bytes = tar(&[(MANIFEST, &manifest)]);
    bytes.truncate(bytes.len() - 1024);
    bytes.extend_from_slice(header.as_bytes());
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(&bytes).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), size as u64), &mut encoder).unwrap();
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 1 << 20);
    unpacked(&bomb, &to).unwrap_err();
    assert!(fs::metadata(&to).unwrap().blocks() < 64);
    let cancel = Cancel::new();
    cancel.cancel();
    let bundle = ImageBundle::open(bomb.as_slice(), "x").unwrap();
    let stopped = bundle.unpack(&to, &cancel, &Reporter::silent(Stage::ImagePull));
    assert!(matches!(stopped, Err(BundleError::Cancelled)), "{stopped:?}");
}
