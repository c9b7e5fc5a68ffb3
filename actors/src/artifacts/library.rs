//! Images and kernels as the server and the VMs see them: their requests, turned into messages to the two actors.

use crate::images::Images;
use crate::images::commit::CommitPlan;
use crate::images::messages::{
    AcquireImage, AcquiredImage, CommitImage, DeleteImage, ExportImage, ExportedImage, ImageCatalog, ImportImage,
    InspectImage, ListImages, NoteImageUser, PromoteImage, PruneLayers, PullImage, RegisterImage, ReleaseImage,
    ShowImage,
};
use crate::kernels::Kernels;
use crate::kernels::messages::{
    AcquireKernel, DeleteKernel, ImportKernel, KernelCatalog, ListKernels, NoteKernelUser, PullKernel, ReleaseKernel,
    ShowKernel,
};
use crate::server::{Library, Prepared};
use crate::supervise::told;
use crate::vm::ports::Artifacts;
use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message};
use futures::future::BoxFuture;
use messages::ids::{ImageName, KernelName, Reference, VmId};
use messages::image::{ImageView, KernelView};
use messages::reply::{Progress, Reply};
use messages::request::RequestBody;
use messages::{ErrorKind, WireError};
use std::os::fd::OwnedFd;
use tokio::sync::mpsc;

/// The two actors.
#[derive(Debug, Clone)]
pub struct ArtifactLibrary {
    pub images: Addr<Images>,
    pub kernels: Addr<Kernels>,
}

/// Sends to an actor that may just be restarting.
async fn ask<A, M, T>(actor: &Addr<A>, message: M) -> Result<T, WireError>
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message<Result = Result<T, WireError>> + Send + 'static,
    T: Send + 'static,
{
    actor.send(message).await.unwrap_or_else(|_| {
        Err(WireError::new(ErrorKind::Unavailable, "a part of the daemon is being restarted")
            .hint("try again in a second"))
    })
}

impl ArtifactLibrary {
    /// Takes image and kernel for a VM, which users know as `label`; again is fine. Where this fails, one of them may be held: a VM
    /// that had both before must not lose them by a start that failed, and one that is not made lets go of both.
    ///
    /// # Errors
    /// When one of them is not here or its files cannot be made.
    pub fn acquire(
        &self,
        vm: VmId,
        label: String,
        image: ImageName,
        kernel: KernelName,
    ) -> BoxFuture<'static, Result<Artifacts, WireError>> {
        let library = self.clone();
        Box::pin(async move {
            let of_image = AcquireImage { image: image.clone(), vm, label: label.clone() };
            let of_kernel = AcquireKernel { kernel: kernel.clone(), vm, label };
            let (acquired, boot) = tokio::join!(ask(&library.images, of_image), ask(&library.kernels, of_kernel));
            let (AcquiredImage { record, rootfs }, boot) = match (acquired, boot) {
                (Ok(acquired), Ok(boot)) => (acquired, boot),
                (Err(error), _) | (_, Err(error)) => return Err(error),
            };
            Ok(Artifacts {
                image: rootfs,
                image_uuid: record.uuid.hyphenated().to_string(),
                config: record.config,
                vmlinux: boot.vmlinux,
                initramfs: boot.initramfs,
                command_line: boot.command_line,
                modules: Some((boot.modules, boot.modules_uuid.hyphenated().to_string())),
            })
        })
    }

    /// Tells of a VM that a new daemon found in its store: it holds its image and kernel though it may not run.
    pub fn note_user(&self, vm: VmId, label: String, image: ImageName, kernel: KernelName) -> BoxFuture<'static, ()> {
        let library = self.clone();
        Box::pin(async move {
            told(library.images.send(NoteImageUser { image, vm, label: label.clone() }).await);
            told(library.kernels.send(NoteKernelUser { kernel, vm, label }).await);
        })
    }

    /// Lets image and kernel go; not held is fine.
    pub fn release(&self, vm: VmId, image: ImageName, kernel: KernelName) -> BoxFuture<'static, ()> {
        let library = self.clone();
        Box::pin(async move {
            told(library.images.send(ReleaseImage { image, vm }).await);
            told(library.kernels.send(ReleaseKernel { kernel, vm }).await);
        })
    }

    async fn present_image(&self, image: Reference, progress: mpsc::Sender<Progress>) -> Result<ImageView, WireError> {
        match ask(&self.images, ShowImage { name: image.to_string() }).await {
            Err(error) if error.kind == ErrorKind::NotFound => {
                ask(&self.images, PullImage { reference: image, name: None, kernel: None, progress }).await
            }
            shown => shown,
        }
    }

    async fn present_kernel(
        &self,
        kernel: Reference,
        progress: mpsc::Sender<Progress>,
    ) -> Result<KernelView, WireError> {
        match ask(&self.kernels, ShowKernel { name: kernel.to_string() }).await {
            Err(error) if error.kind == ErrorKind::NotFound => {
                ask(&self.kernels, PullKernel { reference: kernel, progress }).await
            }
            shown => shown.map(|details| details.kernel),
        }
    }

    /// An image is not much without its kernel: it is pulled with it.
    async fn pull_image(
        &self,
        reference: Reference,
        name: Option<ImageName>,
        kernel: Option<KernelName>,
        progress: mpsc::Sender<Progress>,
    ) -> Result<ImageView, WireError> {
        let view = ask(&self.images, PullImage { reference, name, kernel, progress: progress.clone() }).await?;
        self.present_kernel(as_reference(view.kernel.as_str())?, progress).await?;
        Ok(view)
    }
}

fn as_reference(name: &str) -> Result<Reference, WireError> {
    name.parse().map_err(|error| WireError::from_error(ErrorKind::Internal, &error))
}

impl Library for ArtifactLibrary {
    fn prepare(
        &self,
        image: Option<Reference>,
        kernel: Option<Reference>,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'static, Result<Prepared, WireError>> {
        let library = self.clone();
        Box::pin(async move {
            let image = image.ok_or_else(|| WireError::new(ErrorKind::Usage, "no image was named"))?;
            let image = library.present_image(image, progress.clone()).await?;
            let kernel = kernel.map_or_else(|| as_reference(image.kernel.as_str()), Ok)?;
            let kernel = library.present_kernel(kernel, progress).await?;
            Ok(Prepared { image: image.name, kernel: kernel.name })
        })
    }

    fn request(
        &self,
        body: RequestBody,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'static, Result<Reply, WireError>> {
        let library = self.clone();
        Box::pin(async move {
            let Self { images, kernels } = &library;
            match body {
                RequestBody::ImageCatalog => ask(images, ImageCatalog).await.map(Reply::Catalog),
                RequestBody::PullImage { reference, name } => {
                    library.pull_image(reference, name, None, progress).await.map(Reply::Image)
                }
                RequestBody::PullImageFor { reference, name, kernel } => {
                    library.pull_image(reference, name, Some(kernel), progress).await.map(Reply::Image)
                }
                RequestBody::RegisterImage { name, rootfs, kernel } => {
                    let rootfs = rootfs.as_str().into();
                    ask(images, RegisterImage { name, rootfs, kernel, progress }).await.map(Reply::Image)
                }
                RequestBody::PromoteImage { image } => {
                    ask(images, PromoteImage { name: image.to_string(), progress }).await.map(Reply::Image)
                }
                RequestBody::InspectImage { image } => ask(images, InspectImage { name: image.to_string() })
                    .await
                    .map(|details| Reply::ImageDetails(Box::new(details))),
                RequestBody::ListImages => ask(images, ListImages).await.map(Reply::Images),
                RequestBody::ShowImage { image } => {
                    ask(images, ShowImage { name: image.to_string() }).await.map(Reply::Image)
                }
                RequestBody::DeleteImage { image, force } => {
                    ask(images, DeleteImage { name: image.to_string(), force }).await.map(|()| Reply::Done)
                }
                RequestBody::PruneImages => ask(images, PruneLayers).await.map(|bytes| Reply::Pruned { bytes }),
                RequestBody::KernelCatalog => ask(kernels, KernelCatalog).await.map(Reply::Catalog),
                RequestBody::PullKernel { reference } => {
                    ask(kernels, PullKernel { reference, progress }).await.map(Reply::Kernel)
                }
                RequestBody::ListKernels => ask(kernels, ListKernels).await.map(Reply::Kernels),
                RequestBody::ShowKernel { kernel } => {
                    ask(kernels, ShowKernel { name: kernel.to_string() }).await.map(Reply::KernelDetails)
                }
                RequestBody::ImportKernel(wanted) => {
                    ask(kernels, ImportKernel { wanted, progress }).await.map(Reply::KernelDetails)
                }
                RequestBody::ImportImage { file, name } => {
                    ask(images, ImportImage { file, name, progress }).await.map(Reply::Image)
                }
                RequestBody::DeleteKernel { kernel, force } => {
                    ask(kernels, DeleteKernel { name: kernel.to_string(), force }).await.map(|()| Reply::Done)
                }
                other => Err(WireError::new(ErrorKind::Internal, format!("not about images or kernels: {other:?}"))),
            }
        })
    }

    fn commit(
        &self,
        plan: CommitPlan,
        archive: OwnedFd,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'static, Result<ImageView, WireError>> {
        let images = self.images.clone();
        Box::pin(async move { ask(&images, CommitImage { plan, archive, progress }).await })
    }

    fn export(&self, image: Reference) -> BoxFuture<'static, Result<ExportedImage, WireError>> {
        let library = self.clone();
        Box::pin(async move { ask(&library.images, ExportImage { name: image.to_string() }).await })
    }

    fn counts(&self) -> BoxFuture<'static, (u32, u32)> {
        let library = self.clone();
        Box::pin(async move {
            let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
            let images = ask(&library.images, ListImages).await.map_or(0, |list| count(list.len()));
            (images, ask(&library.kernels, ListKernels).await.map_or(0, |list| count(list.len())))
        })
    }
}

#[cfg(test)]
mod tests;
