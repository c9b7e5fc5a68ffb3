//! The names keeper: gives up what it does not need, then does what the helper asks until the helper is gone.

use super::bus::Bus;
use super::firewalld;
use super::wire::{REQUEST_LEN, Request, encode_answer};
use crate::privileged::confine::confine_names_keeper;
use messages::privileged::owner_mark;
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

/// Where the kernel describes interfaces.
const INTERFACES: &str = "/sys/class/net";
/// The answer where an interface is none of the owner's.
const FOREIGN: &str = "that interface is no bridge of banger's";

/// The whole life of the process. Its stdin is the helper, which serves the user of this uid.
pub(in crate::privileged) fn main(owner: &str) -> ExitCode {
    let run = || -> io::Result<()> {
        let mark = owner_mark(owner.parse().map_err(io::Error::other)?);
        let helper = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        confine_names_keeper().map_err(io::Error::other)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        serve(helper, &Bus::System, &runtime, |index| own_bridge(Path::new(INTERFACES), &mark, index))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "names are not kept");
            ExitCode::FAILURE
        }
    }
}

/// Serves until the helper's end closes, then takes back what it set of names. What firewalld was told stays, as taps and
/// rules do: without it the VMs that run on would lose their connections.
pub(super) fn serve(
    mut helper: UnixStream,
    bus: &Bus,
    runtime: &tokio::runtime::Runtime,
    own_bridge: impl Fn(u32) -> Option<String>,
) -> io::Result<()> {
    let mut routed = BTreeSet::new();
    let mut bytes = [0; REQUEST_LEN];
    while helper.read_exact(&mut bytes).is_ok() {
        let result = match Request::decode(bytes) {
            Some(Request::Route { index, address }) if address.is_private() && own_bridge(index).is_some() => {
                // Before the call: what was half done has to be taken back, too.
                routed.insert(index);
                runtime.block_on(bus.route(index, address))
            }
            Some(Request::Route { .. }) => Err(FOREIGN.to_owned()),
            // Only what was set here is ever reverted.
            Some(Request::Revert { index }) if routed.remove(&index) => runtime.block_on(bus.revert(index)),
            Some(Request::Revert { .. }) => Ok(()),
            Some(Request::Trust { index }) => match own_bridge(index) {
                Some(name) => runtime.block_on(firewalld::trust(bus, &name)),
                None => Err(FOREIGN.to_owned()),
            },
            Some(Request::Distrust { index }) => match own_bridge(index) {
                Some(name) => runtime.block_on(firewalld::distrust(bus, &name)),
                None => Ok(()),
            },
            None => break,
        };
        if helper.write_all(&encode_answer(&result)).is_err() {
            break;
        }
    }
    for index in routed {
        if let Err(error) = runtime.block_on(bus.revert(index)) {
            tracing::debug!(index, error, "nothing to take back");
        }
    }
    Ok(())
}

/// The name of an interface, if it is a bridge that a helper marked as the owner's; the one that asks is not believed. Read from
/// the kernel's own files.
fn own_bridge(interfaces: &Path, mark: &str, index: u32) -> Option<String> {
    let entries = std::fs::read_dir(interfaces).ok()?;
    let read = |path: &Path, file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
    let is_ours = |path: &Path| {
        read(path, "ifindex").trim() == index.to_string()
            && path.join("bridge").is_dir()
            && read(path, "ifalias").starts_with(mark)
    };
    let found = entries.flatten().map(|entry| entry.path()).find(|path| is_ours(path))?;
    Some(found.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_marked_bridges_of_the_owner_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let add = |name: &str, index: u32, alias: &str, bridge: bool| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("ifindex"), format!("{index}\n")).unwrap();
            fs::write(path.join("ifalias"), format!("{alias}\n")).unwrap();
            bridge.then(|| fs::create_dir(path.join("bridge")).unwrap());
        };
        add("bb00000a", 1, "banger:1000:00000a", true);
        add("br-guests", 2, "banger:1000:00000b", true);
        add("bb00000c", 3, "banger:100:00000c", true);
        add("bb00000d", 4, "banger:00000d", true);
        add("bt00000a-0", 5, "banger:1000:00000a", false);
        add("docker0", 6, "", true);
        let found: Vec<_> = (0..8).filter_map(|index| own_bridge(dir.path(), &owner_mark(1000), index)).collect();
        assert_eq!(found, ["bb00000a", "br-guests"]);
    }
}
