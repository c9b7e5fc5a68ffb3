//! Where images, kernels and taps come from, as the tree wires them: real actors, or fakes.

use crate::artifacts::ArtifactLibrary;
use crate::vm::ports::{Artifacts, TapGrant};
use futures::future::BoxFuture;
use messages::WireError;
use messages::ids::{ImageName, KernelName, VmId, VmName};
use messages::privileged::TapNumber;
use messages::vm::NetAllow;

/// Files to boot from, and who uses them.
pub trait ArtifactSource: Send + Sync + 'static {
    /// Takes image and kernel for a VM of this name; again is fine.
    fn acquire(
        &self,
        vm: VmId,
        name: VmName,
        image: ImageName,
        kernel: KernelName,
    ) -> BoxFuture<'static, Result<Artifacts, WireError>>;
    /// Lets them go; not taken is fine.
    fn release(&self, vm: VmId, image: ImageName, kernel: KernelName) -> BoxFuture<'static, ()>;
}

/// Taps.
pub trait TapSource: Send + Sync + 'static {
    /// Leases a tap; again gives the same. What is allowed is open before it answers.
    fn lease(
        &self,
        vm: VmId,
        wanted: Option<TapNumber>,
        allow: Vec<NetAllow>,
    ) -> BoxFuture<'static, Result<TapGrant, WireError>>;
    /// Gives it back; none is fine.
    fn give_back(&self, vm: VmId) -> BoxFuture<'static, ()>;
}

impl ArtifactSource for ArtifactLibrary {
    fn acquire(
        &self,
        vm: VmId,
        name: VmName,
        image: ImageName,
        kernel: KernelName,
    ) -> BoxFuture<'static, Result<Artifacts, WireError>> {
        Self::acquire(self, vm, name.to_string(), image, kernel)
    }

    fn release(&self, vm: VmId, image: ImageName, kernel: KernelName) -> BoxFuture<'static, ()> {
        Self::release(self, vm, image, kernel)
    }
}
