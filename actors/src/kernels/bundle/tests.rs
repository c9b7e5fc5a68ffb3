//! Bundles of kernels made here, read from a file of this host.

#![cfg(test)]

use super::*;
use crate::download::Location;
use crate::kernels::fixtures::{kernel, module};
use crate::kernels::requirements::all_built_in;
use crate::oci::BlobCache;
use messages::reply::Stage;
use messages::{ErrorKind, WireError};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::Path;

const VERSION: &str = "6.9.1-mine";
const MANIFEST_TEXT: &[u8] = br#"{"format":1,"kind":"kernel","command_line":"console=ttyS0 bundled"}"#;

fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        archive.append_data(&mut header, name, *bytes).unwrap();
    }
    zstd::encode_all(archive.into_inner().unwrap().as_slice(), 1).unwrap()
}

fn pulled(directory: &Path, bytes: &[u8], command_line: Option<&str>) -> Result<KernelRecord, KernelError> {
    let path = directory.join("kernel.tar.zst");
    fs::write(&path, bytes).unwrap();
    let pinned = Pinned { url: Location::File(path), sha256: hex::encode(Sha256::digest(bytes)).try_into().unwrap() };
    let entry = KernelEntry {
        name: "bundled".parse().unwrap(),
        description: "a test".to_owned(),
        command_line: command_line.map(|line| line.parse().unwrap()),
        source: crate::catalog::KernelSource::Bundle(pinned.clone()),
        origin: None,
    };
    let downloads = Downloads { blobs: BlobCache::new(directory.join("blobs"), None), insecure: Vec::new() };
    let (store, reporter) = (KernelStore::new(directory.join("kernels")), Reporter::silent(Stage::KernelPull));
    pull(&store, &entry, &pinned, GuestLink::Vsock, &downloads, &Cancel::new(), &reporter)
}

#[test]
fn kernel_modules_and_configuration_come_out_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let config = all_built_in().replace("VIRTIO_BLK=y", "VIRTIO_BLK=m");
    let (kernel, module) = (kernel(VERSION, None), module(&["vermagic=6.9.1-mine SMP"]));
    let bytes = archive(&[
        ("manifest.json", MANIFEST_TEXT),
        ("vmlinux", &kernel),
        ("config", config.as_bytes()),
        ("modules/kernel/virtio_blk.ko", &module),
        ("README", b"for people"),
    ]);
    let record = pulled(directory.path(), &bytes, None).unwrap();
    assert_eq!((record.version.as_str(), record.command_line.as_str()), (VERSION, "console=ttyS0 bundled"));
    assert_eq!(record.checked_by.as_deref(), Some("the bundle's configuration"));
    fs::remove_dir_all(directory.path().join("kernels")).unwrap();
    let record = pulled(directory.path(), &bytes, Some("console=ttyS0 the catalog's")).unwrap();
    assert_eq!(record.command_line, "console=ttyS0 the catalog's");
}

/// A GNU-sparse module of any size takes two blocks of an archive.
#[test]
fn a_module_that_is_one_large_hole_is_refused_before_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let whole = kernel(VERSION, Some(&all_built_in()));
    let with_hole = |size: u64| {
        let mut archive = tar::Builder::new(Vec::new());
        let module = ("modules/x.ko", &b""[..], Some(size));
        for (name, bytes, hole) in [("manifest.json", MANIFEST_TEXT, None), ("vmlinux", &whole, None), module] {
            let mut header = tar::Header::new_gnu();
            header.set_path(name).unwrap();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            if let Some(hole) = hole {
                header.set_entry_type(tar::EntryType::GNUSparse);
                header.as_gnu_mut().unwrap().set_real_size(hole);
            }
            header.set_cksum();
            archive.append(&header, bytes).unwrap();
        }
        zstd::encode_all(archive.into_inner().unwrap().as_slice(), 1).unwrap()
    };
    for (size, said) in
        [(65 << 20, "`x.ko` in the archive is larger than 64 MiB"), (100 << 30, "more than 17179869184")]
    {
        let error = WireError::from(&pulled(directory.path(), &with_hole(size), None).unwrap_err());
        assert!(error.to_string().contains(said) && error.kind == ErrorKind::Usage, "{error:?}");
    }
}

#[test]
fn what_is_no_bundle_of_a_kernel_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let whole = kernel(VERSION, Some(&all_built_in()));
    let good = archive(&[("manifest.json", MANIFEST_TEXT), ("vmlinux", &whole)]);
    let lacking = kernel(VERSION, Some(&all_built_in().replace("CONFIG_DEVTMPFS=y", "")));
    for (bytes, said) in [
        (archive(&[("vmlinux", &whole)]), "has no `manifest.json`"),
        (archive(&[("manifest.json", MANIFEST_TEXT)]), "has no `vmlinux`"),
        (archive(&[("manifest.json", br#"{"format":1,"kind":"image"}"#), ("vmlinux", &whole)]), "a bundle of an image"),
        (archive(&[("manifest.json", br#"{"format":2,"kind":"kernel"}"#), ("vmlinux", &whole)]), "format 2"),
        (archive(&[("manifest.json", MANIFEST_TEXT), ("vmlinux", &lacking)]), "CONFIG_DEVTMPFS (built in) for /dev"),
        (b"hello".repeat(200), "damaged or cut off"),
        (good[..good.len() / 2].to_vec(), "damaged or cut off"),
    ] {
        let error = WireError::from(&pulled(directory.path(), &bytes, None).unwrap_err());
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(error.kind, ErrorKind::Download, "{error}");
        assert_eq!(fs::read_dir(directory.path().join("kernels")).unwrap().count(), 0, "{error}");
    }
    pulled(directory.path(), &good, None).unwrap();
}
