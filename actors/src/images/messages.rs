//! What the [`super::actor::Images`] actor is asked.

use super::ImageRecord;
use super::commit::CommitPlan;
use actix::Message;
use messages::WireError;
use messages::ids::{HostPath, ImageName, KernelName, Reference, VmId};
use messages::image::{CatalogEntry, ImageDetails, ImageExport, ImageView};
use messages::reply::Progress;
use messages::request::Force;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use tokio::sync::mpsc;

/// Pulls an image. The caller waits as long as it keeps the receiver of `progress`.
#[derive(Debug, Message)]
#[rtype(result = "Result<ImageView, WireError>")]
pub struct PullImage {
    pub reference: Reference,
    /// The name it gets on this host; the catalog's where there is none.
    pub name: Option<ImageName>,
    /// What it is booted with; the catalog's where there is none.
    pub kernel: Option<KernelName>,
    pub progress: mpsc::Sender<Progress>,
}

/// What can be pulled.
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<CatalogEntry>, WireError>")]
pub struct ImageCatalog;

/// What is on this host.
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<ImageView>, WireError>")]
pub struct ListImages;

/// Makes an image of a bundle. The caller waits as long as it keeps the receiver of `progress`.
#[derive(Debug, Message)]
#[rtype(result = "Result<ImageView, WireError>")]
pub struct ImportImage {
    pub file: HostPath,
    /// The bundle's own where absent.
    pub name: Option<ImageName>,
    pub progress: mpsc::Sender<Progress>,
}

/// Opens an image for a client that packs it.
#[derive(Debug, Message)]
#[rtype(result = "Result<ExportedImage, WireError>")]
pub struct ExportImage {
    pub name: String,
}

/// An image that a client packs.
#[derive(Debug)]
pub struct ExportedImage {
    pub export: ImageExport,
    /// The file system, open for reading.
    pub rootfs: File,
}

/// One image of this host.
#[derive(Debug, Message)]
#[rtype(result = "Result<ImageView, WireError>")]
pub struct ShowImage {
    pub name: String,
}

/// Everything about one image.
#[derive(Debug, Message)]
#[rtype(result = "Result<ImageDetails, WireError>")]
pub struct InspectImage {
    pub name: String,
}

/// Makes an image of a file that stays where it is.
#[derive(Debug, Message)]
#[rtype(result = "Result<ImageView, WireError>")]
pub struct RegisterImage {
    pub name: ImageName,
    pub rootfs: PathBuf,
    /// The default one where there is none.
    pub kernel: Option<KernelName>,
    pub progress: mpsc::Sender<Progress>,
}

/// Copies a registered image's file into our storage.
#[derive(Debug, Message)]
#[rtype(result = "Result<ImageView, WireError>")]
pub struct PromoteImage {
    pub name: String,
    pub progress: mpsc::Sender<Progress>,
}

/// Makes an image of what a VM's agent sends.
#[derive(Debug, Message)]
#[rtype(result = "Result<ImageView, WireError>")]
pub struct CommitImage {
    pub plan: CommitPlan,
    /// The socket of an archive operation.
    pub archive: OwnedFd,
    pub progress: mpsc::Sender<Progress>,
}

/// Removes an image, also one that is used if forced.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), WireError>")]
pub struct DeleteImage {
    pub name: String,
    pub force: Force,
}

/// Removes the layers that were kept for the next pull. Returns the bytes that this gave back.
#[derive(Debug, Message)]
#[rtype(result = "Result<u64, WireError>")]
pub struct PruneLayers;

/// Takes an image for a VM, which users know as `label`. Again is fine. Held until [`ReleaseImage`].
#[derive(Debug, Message)]
#[rtype(result = "Result<AcquiredImage, WireError>")]
pub struct AcquireImage {
    pub image: ImageName,
    pub vm: VmId,
    pub label: String,
}

/// An image that a VM holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcquiredImage {
    pub record: ImageRecord,
    /// Attach it read-only.
    pub rootfs: PathBuf,
}

/// Tells of a VM that uses an image: for the VMs that a new daemon finds in its store.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct NoteImageUser {
    pub image: ImageName,
    pub vm: VmId,
    pub label: String,
}

/// Lets an image go. Not held is fine.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReleaseImage {
    pub image: ImageName,
    pub vm: VmId,
}
