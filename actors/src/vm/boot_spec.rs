//! Builds the boot spec: everything a guest is told of itself. Pure; entropy and clock are arguments.

use super::ports::Boot;
use crate::ssh::HostKey;
use crate::store::VmRecord;
use messages::guest::{BootSpec, Drives};
use messages::ids::{BootNonce, VmId};
use sha2::{Digest as _, Sha256};

/// What changes from one sending to the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fresh {
    pub(super) clock_unix_ns: u64,
    pub(super) entropy: [u8; 32],
}

/// The machine id of a VM: its own, and the same at each boot, so that journals and leases continue.
pub(super) fn machine_id(vm: VmId) -> String {
    let mut digest = Sha256::new();
    digest.update(b"banger machine-id");
    digest.update(vm.0);
    hex::encode(&digest.finalize()[..16])
}

/// The spec for the present boot of a VM.
pub(super) fn build(record: &VmRecord, nonce: BootNonce, boot: &Boot, fresh: Fresh) -> BootSpec {
    BootSpec {
        vm: record.id,
        name: record.name.clone(),
        machine_id: machine_id(record.id),
        drives: Drives {
            image: boot.artifacts.image_uuid.clone(),
            disk: boot.disk_uuid.clone(),
            modules: boot.artifacts.modules.as_ref().map(|(_, uuid)| uuid.clone()),
        },
        network: boot.tap.as_ref().map(|tap| tap.guest.clone()),
        authorized_keys: boot.authorized_keys.clone(),
        ssh_host_keys: record.ssh_host_key.iter().map(HostKey::for_guest).collect(),
        config: boot.artifacts.config.clone(),
        clock_unix_ns: fresh.clock_unix_ns,
        entropy: fresh.entropy,
        nonce,
    }
}
