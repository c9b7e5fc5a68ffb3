//! `make sandbox`: a shell in a fresh VM. The network of the machine stays as it is, for everything happens in a namespace;
//! only the state and the cache are kept, so that the second time is quick.

#![expect(clippy::print_stderr, reason = "stdout belongs to the guest")]

use crate::artifacts::give_to;
use crate::case::{Outcome, Stop};
use crate::host::wait_through_signals;
use crate::world::{self, World};
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fs;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What to open.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Options {
    /// Holds state and cache.
    pub(crate) dir: PathBuf,
    /// More for `banger vm run`.
    pub(crate) arguments: Vec<String>,
}

/// What a sandbox shows where there is nobody to give a shell to.
const SHOW: [&str; 4] = ["--", "sh", "-c", "uname -a; cat /etc/os-release"];

/// Opens a sandbox, and gives the exit code of its command or shell.
pub(crate) fn run(options: &Options, slot: u8, base: &Path, programs: &Path) -> Result<u8, Box<dyn Error>> {
    let (state, cache) = (options.dir.join("s"), options.dir.join("c"));
    world::private_etc(base)?;
    let uid = owner(slot, base)?;
    for directory in [&state, &cache] {
        fs::create_dir_all(directory)?;
        if fs::metadata(directory)?.uid() != uid {
            give_to(uid, directory)?;
        }
    }
    let world = World::open_as(uid, base, programs, &state, &cache)?;
    world.start_helper()?;
    let mut arguments = vec!["vm", "run", "--rm"];
    arguments.extend(options.arguments.iter().map(String::as_str));
    if options.arguments.is_empty() && !std::io::stdin().is_terminal() {
        arguments.extend(SHOW);
    }
    let mut command = world.banger(&arguments).command();
    command.stdin(std::process::Stdio::inherit());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(wait_through_signals(command))?;
    let closed = close(&world);
    eprintln!("kept: {} (state and images; `sudo rm -rf` it to be rid of them)", options.dir.display());
    match closed {
        Ok(()) => Ok(code),
        Err(Stop::Failed(why) | Stop::Skipped(why)) => Err(why.into()),
    }
}

/// Deletes what is left of the VMs, and stops the daemon and the helper.
fn close(world: &World) -> Outcome {
    let case = crate::case::Case::new(world, "sandbox");
    let list = case.ok(&["vm", "list", "--json"])?;
    let vms: serde_json::Value = serde_json::from_slice(&list.stdout)?;
    for vm in vms.as_array().into_iter().flatten() {
        if let Some(id) = vm["id"].as_str() {
            case.ok(&["vm", "delete", "--force", id])?;
        }
    }
    case.ok(&["daemon", "stop"])?;
    world.stop_helper()?;
    Ok(())
}

/// Whoever called sudo, else a user that exists for this sandbox only. In both cases with subordinate ids, which building
/// an image needs.
fn owner(slot: u8, base: &Path) -> Result<u32, Box<dyn Error>> {
    let caller = std::env::var("SUDO_USER").ok().filter(|name| name != "root");
    let Some(user) = caller.and_then(|name| nix::unistd::User::from_name(&name).ok().flatten()) else {
        return Ok(world::add_slot_user(base, slot)?);
    };
    let known = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let uid = user.uid.to_string();
        text.lines().any(|line| line.split(':').next().is_some_and(|first| first == user.name || first == uid))
    };
    if !(known("/etc/subuid") && known("/etc/subgid")) {
        world::add_subordinates(&user.name, slot)?;
    }
    Ok(user.uid.as_raw())
}
