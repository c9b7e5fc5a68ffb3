//! The host keys of every VM, as a file for `ssh`. Written whole, from what the daemon says, before each connection: a name
//! that is used again has its new key there, and a VM that is gone has none.

use super::settings::DOMAIN;
use crate::cli::client::{Client, unexpected};
use crate::cli::failure::Failure;
use actors::ssh::host_key;
use messages::error::ErrorKind;
use messages::reply::Reply;
use messages::request::RequestBody;
use messages::vm::SshPublicKey;
use nix::fcntl::{Flock, FlockArg};
use std::fs::OpenOptions;
use std::path::Path;

/// Both names of each VM (id, name) before its key, in the order of the ids.
fn text<'a>(vms: impl Iterator<Item = (String, &'a str, &'a SshPublicKey)>) -> String {
    let line = |(id, name, key): (String, &str, &SshPublicKey)| {
        format!("{id}{DOMAIN},{name}{DOMAIN} {}\n", host_key::line(key))
    };
    let mut lines: Vec<String> = vms.map(line).collect();
    lines.sort();
    lines.insert(0, "# Written by banger; changes are lost.\n".to_owned());
    lines.concat()
}

/// Brings the file up to date.
pub(super) async fn update(client: &Client, path: &Path) -> Result<(), Failure> {
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
    let keys =
        views.iter().filter_map(|view| Some((view.id.to_string(), view.name.as_str(), view.ssh_host_key.as_ref()?)));
    super::replace_if_changed(path, text(keys).as_bytes()).map_err(|error| failed(&error, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vm_is_there_by_name_and_id_with_its_own_key() {
        let (one, two) = (SshPublicKey([1; 32]), SshPublicKey([2; 32]));
        let text = text([("0b".to_owned(), "box", &two), ("0a".to_owned(), "web", &one)].into_iter());
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], format!("0a.vm,web.vm {}", host_key::line(&one)));
        assert!(lines[1].starts_with("0b.vm,box.vm ssh-ed25519 AAAA") && lines[0] != lines[1]);
        assert!(text.starts_with('#') && text.ends_with('\n'));
    }
}
