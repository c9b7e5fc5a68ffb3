//! Images and kernels straight from their stores, until their actors land: no single flight, no reference counts.

use super::sources::ArtifactSource;
use crate::artifacts::{Cancel, Reporter};
use crate::catalog::Catalog;
use crate::images::{self, ImageStore};
use crate::kernels::{self, BootFiles, KernelStore};
use crate::server::{Library, Prepared};
use crate::vm::ports::Artifacts;
use futures::future::BoxFuture;
use messages::error::{ErrorKind, WireError};
use messages::ids::{ImageName, KernelName, Reference, VmId, VmName};
use messages::reply::{Progress, Reply, Stage};
use messages::request::RequestBody;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

/// The stores.
#[derive(Clone)]
pub(super) struct StoreLibrary(Arc<Inner>);

struct Inner {
    images: ImageStore,
    kernels: KernelStore,
    catalog: Catalog,
    mirror: Option<String>,
    agent: PathBuf,
    /// Boot files by kernel, good while the agent's file is the same: hashing it takes longer than all else of a start.
    boot: Mutex<HashMap<KernelName, (Option<SystemTime>, BootFiles)>>,
}

impl StoreLibrary {
    pub(super) fn new(
        images: ImageStore,
        kernels: KernelStore,
        catalog: Catalog,
        mirror: Option<String>,
        agent: PathBuf,
    ) -> Self {
        Self(Arc::new(Inner { images, kernels, catalog, mirror, agent, boot: Mutex::default() }))
    }

    async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce(&Inner) -> Result<T, WireError> + Send + 'static,
    ) -> Result<T, WireError> {
        spawn_blocking(move || work(&self.0))
            .await
            .unwrap_or_else(|error| Err(WireError::from_error(ErrorKind::Internal, &error)))
    }
}

/// Ends a pull whose caller has left.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Inner {
    fn boot_files(&self, kernel: &KernelName) -> Result<BootFiles, WireError> {
        let modified = std::fs::metadata(&self.agent).and_then(|meta| meta.modified()).ok();
        let known = self.boot.lock().unwrap_or_else(PoisonError::into_inner).get(kernel).cloned();
        if let Some((of, files)) = known
            && of == modified
            && files.initramfs.exists()
        {
            return Ok(files);
        }
        let files = self.kernels.boot_files(kernel.as_str(), &self.agent).map_err(|error| WireError::from(&error))?;
        self.boot.lock().unwrap_or_else(PoisonError::into_inner).insert(kernel.clone(), (modified, files.clone()));
        Ok(files)
    }

    fn pull_image(
        &self,
        name: &str,
        as_name: Option<ImageName>,
        cancel: &Cancel,
        sender: mpsc::Sender<Progress>,
    ) -> Result<images::ImageRecord, WireError> {
        let entry = self.catalog.image(name).map_err(|error| WireError::from(&error))?;
        let name = match as_name {
            Some(name) => name,
            None => name.parse().map_err(|error| WireError::from_error(ErrorKind::Usage, &error))?,
        };
        let reporter = Reporter::channel(Stage::ImagePull, sender);
        images::pull::pull(&self.images, entry, &name, self.mirror.as_deref(), cancel, &reporter)
            .map_err(|error| WireError::from(&error))
    }

    fn pull_kernel(
        &self,
        name: &str,
        cancel: &Cancel,
        sender: mpsc::Sender<Progress>,
    ) -> Result<kernels::KernelRecord, WireError> {
        let entry = self.catalog.kernel(name).map_err(|error| WireError::from(&error))?;
        let reporter = Reporter::channel(Stage::KernelPull, sender);
        kernels::pull::pull(&self.kernels, entry, self.mirror.as_deref(), cancel, &reporter)
            .map_err(|error| WireError::from(&error))
    }
}

impl Library for StoreLibrary {
    fn prepare(
        &self,
        image: Option<Reference>,
        kernel: Option<Reference>,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'static, Result<Prepared, WireError>> {
        let cancel = Cancel::new();
        let guard = CancelOnDrop(cancel.clone());
        let library = self.clone();
        Box::pin(async move {
            let prepared = library
                .run(move |inner| {
                    let image = image.ok_or_else(|| WireError::new(ErrorKind::Usage, "no image"))?;
                    let record = match inner.images.find(image.as_str()).map_err(|error| WireError::from(&error))? {
                        Some(record) => record,
                        None => inner.pull_image(image.as_str(), None, &cancel, progress.clone())?,
                    };
                    let kernel = kernel.map_or_else(|| record.kernel.to_string(), String::from);
                    let kernel = match inner.kernels.find(&kernel).map_err(|error| WireError::from(&error))? {
                        Some(record) => record,
                        None => inner.pull_kernel(&kernel, &cancel, progress)?,
                    };
                    Ok(Prepared { image: record.name, kernel: kernel.name })
                })
                .await;
            drop(guard);
            prepared
        })
    }

    fn request(
        &self,
        body: RequestBody,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'static, Result<Reply, WireError>> {
        let cancel = Cancel::new();
        let guard = CancelOnDrop(cancel.clone());
        let library = self.clone();
        Box::pin(async move {
            let reply = library
                .run(move |inner| match body {
                    RequestBody::PullImage { reference, name } => {
                        let record = inner.pull_image(reference.as_str(), name, &cancel, progress)?;
                        inner.images.view(&record, vec![]).map(Reply::Image).map_err(|error| WireError::from(&error))
                    }
                    RequestBody::PullKernel { reference } => {
                        let record = inner.pull_kernel(reference.as_str(), &cancel, progress)?;
                        inner.kernels.view(&record, vec![]).map(Reply::Kernel).map_err(|error| WireError::from(&error))
                    }
                    RequestBody::ListImages => {
                        let records = inner.images.list().map_err(|error| WireError::from(&error))?;
                        let views = records.iter().map(|record| inner.images.view(record, vec![]));
                        views.collect::<Result<_, _>>().map(Reply::Images).map_err(|error| WireError::from(&error))
                    }
                    RequestBody::ListKernels => {
                        let records = inner.kernels.list().map_err(|error| WireError::from(&error))?;
                        let views = records.iter().map(|record| inner.kernels.view(record, vec![]));
                        views.collect::<Result<_, _>>().map(Reply::Kernels).map_err(|error| WireError::from(&error))
                    }
                    other => Err(WireError::new(ErrorKind::Internal, format!("not an artifact request: {other:?}"))),
                })
                .await;
            drop(guard);
            reply
        })
    }

    fn counts(&self) -> BoxFuture<'static, (u32, u32)> {
        let library = self.clone();
        Box::pin(async move {
            let counted = library.run(|inner| {
                let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                let images = inner.images.list().map_or(0, |list| count(list.len()));
                Ok((images, inner.kernels.list().map_or(0, |list| count(list.len()))))
            });
            counted.await.unwrap_or((0, 0))
        })
    }
}

impl ArtifactSource for StoreLibrary {
    fn acquire(
        &self,
        _: VmId,
        _: VmName,
        image: ImageName,
        kernel: KernelName,
    ) -> BoxFuture<'static, Result<Artifacts, WireError>> {
        Box::pin(self.clone().run(move |inner| {
            let record = inner.images.show(image.as_str()).map_err(|error| WireError::from(&error))?;
            let boot = inner.boot_files(&kernel)?;
            Ok(Artifacts {
                image: inner.images.rootfs(&image),
                image_uuid: record.uuid.hyphenated().to_string(),
                config: record.config,
                vmlinux: boot.vmlinux,
                initramfs: boot.initramfs,
                command_line: boot.command_line,
                modules: Some((boot.modules, boot.modules_uuid.hyphenated().to_string())),
            })
        }))
    }

    fn release(&self, _: VmId, _: ImageName, _: KernelName) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}
