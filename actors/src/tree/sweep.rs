//! Removes what no record knows: directories of VMs whose create was never committed, or whose delete was.

use crate::paths::Paths;
use crate::vmm::{self, VmFiles};
use messages::ids::VmId;
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
            Some(vm) => remove(vm, &entry.path()).await,
            // Not ours: somebody may miss it.
            None => tracing::warn!(path = %entry.path().display(), "a stranger in the directory of VMs"),
        }
    }
}

async fn remove(vm: VmId, dir: &Path) {
    tracing::info!(vm = %vm, "removing what an unfinished create or delete left");
    let orphan = match VmFiles::new(vm, dir) {
        Ok(files) => vmm::adopt(&files).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match orphan {
        Ok(Some(process)) => {
            if let Err(error) = process.kill_and_wait(KILL_PATIENCE).await {
                tracing::error!(vm = %vm, error = %error, "an orphaned VMM cannot be ended");
                return;
            }
        }
        Ok(None) => {}
        Err(error) => {
            tracing::error!(vm = %vm, error = %error, "cannot tell whether an orphaned VMM is alive");
            return;
        }
    }
    let owned = dir.to_path_buf();
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(owned)).await;
    if let Ok(Err(error)) = removed {
        tracing::error!(vm = %vm, error = %error, "cannot remove a leftover directory");
    }
}
