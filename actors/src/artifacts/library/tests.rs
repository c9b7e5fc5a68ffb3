//! The two actors through their library, on stores made by hand.

#![cfg(test)]

use super::*;
use crate::artifacts::Staging;
use crate::catalog::Catalog;
use crate::download::Downloads;
use crate::images::{ImageRecord, ImageStore, ImagesConfig, Registries};
use crate::kernels::{GuestLink, KernelRecord, KernelStore, KernelsConfig};
use crate::oci::{Access, BlobCache};
use messages::image::ImageConfig;
use messages::request::Force;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

const VM: VmId = VmId([7; 8]);

fn kernels(directory: &Path) -> KernelStore {
    let store = KernelStore::new(directory.join("kernels"));
    let staging = Staging::create(store.directory(), "six").unwrap();
    for name in ["vmlinux", "modules.cpio", "modules.ext4"] {
        fs::write(staging.path().join(name), name).unwrap();
    }
    let record = KernelRecord {
        name: "six".parse().unwrap(),
        version: "6.12.1".to_owned(),
        digest: "sha256:00".to_owned(),
        source: "test".to_owned(),
        created_at_ms: 1,
        modules_uuid: Uuid::from_u128(6),
        command_line: "quiet".to_owned(),
        checked_by: None,
    };
    store.publish(staging, &record).unwrap();
    store
}

fn images(directory: &Path) -> ImageStore {
    let store = ImageStore::new(directory.join("images"));
    let staging = Staging::create(store.directory(), "twelve").unwrap();
    fs::write(staging.path().join("rootfs.ext4"), "x").unwrap();
    let record = ImageRecord {
        name: "twelve".parse().unwrap(),
        digest: "sha256:00".to_owned(),
        size_bytes: 1,
        uuid: Uuid::from_u128(12),
        kernel: "six".parse().unwrap(),
        source: "test".to_owned(),
        created_at_ms: 1,
        config: ImageConfig::default(),
        pulled_digest: None,
        layers: Vec::new(),
        parent: None,
        external: None,
    };
    store.publish(staging, &record).unwrap();
    store
}

fn downloads(state: &Path) -> Downloads {
    Downloads { blobs: BlobCache::new(state.join("blobs"), None), insecure: Vec::new() }
}

/// Runs a test against both actors, on a state directory with one image and its kernel.
fn with_library<F: Future<Output = ()>>(test: impl FnOnce(ArtifactLibrary, std::path::PathBuf) -> F) {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().to_owned();
    fs::write(state.join("agent"), "agent 1").unwrap();
    fs::create_dir_all(state.join("images/dead.123.partial")).unwrap();
    actix::System::new().block_on(async {
        let (images, kernels) = (images(&state), kernels(&state));
        let catalog = Arc::new(Catalog::built_in());
        let runtime = tokio::runtime::Handle::current();
        let of_images = ImagesConfig {
            store: images.clone(),
            catalog: Arc::clone(&catalog),
            mirror: None,
            registries: Registries {
                access: Access::default(),
                blobs: BlobCache::new(state.join("blobs"), None),
                kernel: "six".parse().unwrap(),
            },
            downloads: downloads(&state),
            runtime: runtime.clone(),
        };
        let of_kernels = KernelsConfig {
            store: kernels,
            images,
            catalog,
            mirror: None,
            downloads: downloads(&state),
            link: GuestLink::SerialPort,
            agent: state.join("agent"),
            runtime,
        };
        let images = Images::new(of_images).unwrap();
        let kernels = Kernels::new(of_kernels).unwrap();
        assert!(!state.join("images/dead.123.partial").exists(), "swept at the start");
        let library = ArtifactLibrary {
            images: actix::Supervisor::start(|_| images),
            kernels: actix::Supervisor::start(|_| kernels),
        };
        test(library, state.clone()).await;
    });
}

fn names() -> (ImageName, KernelName) {
    ("twelve".parse().unwrap(), "six".parse().unwrap())
}

async fn request(library: &ArtifactLibrary, body: RequestBody) -> Result<Reply, WireError> {
    let (progress, _reader) = mpsc::channel(8);
    library.request(body, progress).await
}

#[test]
fn what_a_vm_holds_is_not_deleted() {
    with_library(|library, state| async move {
        let (image, kernel) = names();
        let held = library.acquire(VM, "red-fox".to_owned(), image.clone(), kernel.clone()).await.unwrap();
        assert_eq!(held.image_uuid, Uuid::from_u128(12).to_string());
        assert!(held.image.ends_with("images/twelve/rootfs.ext4"));
        let Reply::Images(list) = request(&library, RequestBody::ListImages).await.unwrap() else { panic!() };
        assert_eq!(list[0].used_by, ["red-fox"]);

        let delete = |force| RequestBody::DeleteImage { image: "twelve".parse().unwrap(), force };
        let error = request(&library, delete(Force::No)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(error.to_string().contains("red-fox"));

        library.release(VM, image, kernel).await;
        request(&library, delete(Force::No)).await.unwrap();
        assert!(!state.join("images/twelve").exists());
    });
}

#[test]
fn a_kernel_is_held_by_vms_and_by_images() {
    with_library(|library, _| async move {
        let (image, kernel) = names();
        library.note_user(VM, "red-fox".to_owned(), image, kernel).await;
        let delete = |force| RequestBody::DeleteKernel { kernel: "six".parse().unwrap(), force };
        let error = request(&library, delete(Force::No)).await.unwrap_err();
        assert!(error.to_string().contains("red-fox"), "{error}");
        let show = RequestBody::ShowKernel { kernel: "six".parse().unwrap() };
        let Reply::KernelDetails(details) = request(&library, show).await.unwrap() else { panic!() };
        assert_eq!(details.command_line, "quiet");
        assert_eq!(details.kernel.used_by, ["image twelve", "red-fox"]);
        request(&library, delete(Force::Yes)).await.unwrap();
        assert_eq!(request(&library, delete(Force::Yes)).await.unwrap_err().kind, ErrorKind::NotFound);
    });
}

#[test]
fn the_initramfs_follows_the_agent() {
    with_library(|library, state| async move {
        let (image, kernel) = names();
        let acquire = || library.acquire(VM, "red-fox".to_owned(), image.clone(), kernel.clone());
        let first = acquire().await.unwrap().initramfs;
        assert!(fs::read(&first).unwrap().windows(7).any(|window| window == b"agent 1"));
        assert_eq!(acquire().await.unwrap().initramfs, first);
        fs::write(state.join("new"), "agent 2").unwrap();
        fs::rename(state.join("new"), state.join("agent")).unwrap();
        let second = acquire().await.unwrap().initramfs;
        assert_ne!(second, first);
        assert!(fs::read(&second).unwrap().windows(7).any(|window| window == b"agent 2"));
        fs::remove_file(&second).unwrap();
        assert_eq!(acquire().await.unwrap().initramfs, second, "made again where somebody removed it");
        assert!(second.exists());
    });
}

#[test]
fn a_start_that_fails_does_not_let_go_of_the_vms_image() {
    with_library(|library, _| async move {
        let (image, kernel) = names();
        let users = async || {
            let show = RequestBody::ShowImage { image: "twelve".parse().unwrap() };
            let Reply::Image(view) = request(&library, show).await.unwrap() else { panic!() };
            view.used_by.len()
        };
        let label = || "red-fox".to_owned();
        library.acquire(VM, label(), image.clone(), kernel.clone()).await.unwrap();
        let error = library.acquire(VM, label(), image.clone(), "nine".parse().unwrap()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(users().await, 1, "the VM's disk lies over it");
        library.release(VM, image, kernel).await;
        assert_eq!(users().await, 0);
    });
}

#[test]
fn unknown_names_are_answered_with_the_nearest() {
    with_library(|library, _| async move {
        let (progress, _reader) = mpsc::channel(8);
        let error = library.prepare(Some("debian-bokworm".parse().unwrap()), None, progress.clone()).await.unwrap_err();
        let hint = "did you mean `debian-bookworm` or `debian-trixie`?";
        assert_eq!((error.kind, error.hints[0].as_str()), (ErrorKind::NotFound, hint));
        let prepared = library.prepare(Some("twelve".parse().unwrap()), None, progress).await.unwrap();
        assert_eq!((prepared.image.as_str(), prepared.kernel.as_str()), ("twelve", "six"));
        let Reply::Catalog(catalog) = request(&library, RequestBody::ImageCatalog).await.unwrap() else { panic!() };
        assert!(catalog.iter().any(|entry| entry.name == "debian-bookworm" && !entry.present));
        assert_eq!(library.counts().await, (1, 1));
    });
}
