//! Where images, kernels and taps come from, as the tree wires them: real actors, or fakes.

use crate::vm::ports::{Artifacts, TapGrant};
use futures::future::BoxFuture;
use messages::error::{ErrorKind, WireError};
use messages::ids::{ImageName, KernelName, VmId};
use messages::privileged::TapNumber;

/// Files to boot from, and who uses them.
pub trait ArtifactSource: Send + Sync + 'static {
    /// Takes image and kernel for a VM; again is fine.
    fn acquire(
        &self,
        vm: VmId,
        image: ImageName,
        kernel: KernelName,
    ) -> BoxFuture<'static, Result<Artifacts, WireError>>;
    /// Lets them go; not taken is fine.
    fn release(&self, vm: VmId, image: ImageName, kernel: KernelName) -> BoxFuture<'static, ()>;
}

/// Taps.
pub trait TapSource: Send + Sync + 'static {
    /// Leases a tap; again gives the same.
    fn lease(&self, vm: VmId, wanted: Option<TapNumber>) -> BoxFuture<'static, Result<TapGrant, WireError>>;
    /// Gives it back; none is fine.
    fn give_back(&self, vm: VmId) -> BoxFuture<'static, ()>;
}

/// No taps: every VM with a network is refused.
#[derive(Clone, Copy, Debug)]
pub struct NoTaps;

impl TapSource for NoTaps {
    fn lease(&self, _: VmId, _: Option<TapNumber>) -> BoxFuture<'static, Result<TapGrant, WireError>> {
        Box::pin(std::future::ready(Err(WireError::new(
            ErrorKind::Host,
            "there is no network for VMs without bangerd-root",
        )
        .hint("`sudo banger daemon root start --owner $USER` starts it; `--net none` does without"))))
    }

    fn give_back(&self, _: VmId) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}
