//! Removes directories of VMs: of one that is deleted, and those that no record knows, whose create was never committed or whose delete
//! was.

use super::ports::{blocking, host_error};
use crate::paths::Paths;
use crate::vmm::{self, VmFiles};
use messages::error::{ErrorKind, WireError};
use messages::ids::VmId;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// For a VMM that should not be there to die.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Removes the directories of VMs that are not known. A VMM alive in one of them is ended first: it belongs to nobody.
pub(super) async fn vm_dirs(paths: &Arc<Paths>, known: &[VmId]) {
    let entries = match std::fs::read_dir(paths.vms_dir()) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(error = %error, "cannot look for leftovers");
            return;
        }
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        match name.to_str().and_then(|name| name.parse::<VmId>().ok()) {
            Some(vm) if known.contains(&vm) => {}
            Some(vm) => remove_leftover(vm, &entry.path()).await,
            // Not ours: somebody may miss it.
            None => tracing::warn!(path = %entry.path().display(), "a stranger in the directory of VMs"),
        }
    }
}

async fn remove_leftover(vm: VmId, dir: &Path) {
    tracing::info!(vm = %vm, "removing what an unfinished create or delete left");
    let files = VmFiles::new(vm, dir).map_err(|error| WireError::from_error(ErrorKind::Host, &error));
    let removed = match files {
        Ok(files) => remove(files).await,
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        tracing::error!(vm = %vm, error = %error, "cannot remove a leftover directory");
    }
}

/// Removes a VM's directory. A VMM that still lives in it is ended first: its lock is in there, without which it would never be found
/// again.
///
/// # Errors
/// Where it cannot be told whether one lives, it cannot be ended, or the file system refuses.
pub(super) async fn remove(files: VmFiles) -> Result<(), WireError> {
    let left = vmm::adopt(&files).await.map_err(|error| host_error("failed to look for the VMM", &error))?;
    if let Some(process) = left {
        tracing::warn!(vm = %files.vm(), pid = process.pid(), "a VMM lives that should have ended: it is killed");
        let killed = process.kill_and_wait(KILL_PATIENCE).await;
        killed.map_err(|error| host_error("the VM's VMM cannot be ended", &error))?;
    }
    blocking("remove the VM's files", move || match std::fs::remove_dir_all(files.dir()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(host_error("failed to remove the VM's files", &error))
        }
        Ok(()) | Err(_) => Ok(()),
    })
    .await
}
