//! KVM where it really runs guests, else emulation.

use actors_sys::kvm_probe;
use clap::ValueEnum;
use std::time::Instant;

/// `--accel`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// KVM if a small guest really runs on it, else emulation
    #[default]
    Auto,
    /// KVM, untried
    Kvm,
    /// Emulation
    Tcg,
}

/// What runs the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    Tcg,
}

impl Choice {
    /// Decides. The probe takes a millisecond where KVM is sound and a few where it fails at once.
    pub async fn decide(self) -> Accelerator {
        match self {
            Self::Kvm => Accelerator::Kvm,
            Self::Tcg => Accelerator::Tcg,
            Self::Auto => Self::probe().await,
        }
    }

    async fn probe() -> Accelerator {
        let began = Instant::now();
        let probed = tokio::task::spawn_blocking(kvm_probe::probe).await;
        let took = began.elapsed();
        match probed {
            Ok(Ok(_)) => {
                tracing::info!(?took, "KVM works");
                Accelerator::Kvm
            }
            Ok(Err(why)) => {
                tracing::info!(?took, %why, "emulating");
                Accelerator::Tcg
            }
            Err(error) => {
                tracing::warn!(%error, "the probe of KVM panicked; emulating");
                Accelerator::Tcg
            }
        }
    }
}
