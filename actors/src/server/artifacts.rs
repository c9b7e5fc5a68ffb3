//! What the server needs of images and kernels, as one trait: the tests have none on disk.

use crate::images::commit::CommitPlan;
use crate::images::messages::ExportedImage;
use futures::future::BoxFuture;
use messages::WireError;
use messages::ids::{ImageName, KernelName, Reference};
use messages::image::ImageView;
use messages::reply::{Progress, Reply};
use messages::request::RequestBody;
use std::os::fd::OwnedFd;
use tokio::sync::mpsc;

/// An image and a kernel that are present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    pub image: ImageName,
    pub kernel: KernelName,
}

/// Images and kernels.
pub trait Library: Send + Sync + 'static {
    /// Makes sure of an image and a kernel, pulling what is absent.
    fn prepare(
        &self,
        image: Option<Reference>,
        kernel: Option<Reference>,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'static, Result<Prepared, WireError>>;

    /// Answers a request about images or kernels.
    fn request(
        &self,
        body: RequestBody,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'static, Result<Reply, WireError>>;

    /// Makes an image of what the guest sends on the socket of an archive operation.
    fn commit(
        &self,
        plan: CommitPlan,
        archive: OwnedFd,
        progress: mpsc::Sender<Progress>,
    ) -> BoxFuture<'static, Result<ImageView, WireError>>;

    /// Opens an image's file system for a client that packs it.
    fn export(&self, image: Reference) -> BoxFuture<'static, Result<ExportedImage, WireError>>;

    /// How many images and kernels are present.
    fn counts(&self) -> BoxFuture<'static, (u32, u32)>;
}
