//! The host keys of every VM, as a file for `ssh`. Written whole, from what the daemon says, before each connection: a name
//! that is used again has its new key there, and a VM that is gone has none.

use super::settings::DOMAIN;
use crate::cli::client::{Client, unexpected};
use crate::cli::failure::Failure;
use actors::ssh::host_key;
use messages::error::ErrorKind;
use messages::reply::Reply;
use messages::request::RequestBody;
use messages::vm::VmView;
use nix::fcntl::{Flock, FlockArg};
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;

/// Both names of each VM before its key, in the order of the ids.
pub(super) fn text(views: &[Arc<VmView>]) -> String {
    let mut lines: Vec<String> = views
        .iter()
        .filter_map(|view| {
            let key = view.ssh_host_key.as_ref()?;
            Some(format!("{id}{DOMAIN},{name}{DOMAIN} {}\n", host_key::line(key), id = view.id, name = view.name))
        })
        .collect();
    lines.sort();
    lines.insert(0, "# Written by banger; changes are lost.\n".to_owned());
    lines.concat()
}

/// Brings the file up to date, and gives every VM.
pub(super) async fn update(client: &Client, path: &Path) -> Result<Vec<Arc<VmView>>, Failure> {
    let failed = |error: &dyn std::error::Error, what: &Path| -> Failure {
        Failure::new(ErrorKind::Host, format!("failed to write `{}`: {error}", what.display()))
    };
    if let Some(dir) = path.parent() {
        super::make_private_dir(dir)?;
    }
    let lock = path.with_extension("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&lock);
    let file = file.map_err(|error| failed(&error, &lock))?;
    // Held while the daemon is asked too, so that no older list is written over a newer one.
    let held = tokio::task::spawn_blocking(move || Flock::lock(file, FlockArg::LockExclusive));
    let _held = held.await.map_err(|error| failed(&error, &lock))?.map_err(|(_, errno)| failed(&errno, &lock))?;
    let views = match client.ask(RequestBody::ListVms).await? {
        Reply::Vms(views) => views,
        other => return Err(unexpected(&other)),
    };
    super::replace_if_changed(path, text(&views).as_bytes()).map_err(|error| failed(&error, path))?;
    Ok(views)
}
