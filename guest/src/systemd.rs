//! systemd in the image: which init an image has, runtime files that make it fit, and whether it has settled. Writes below
//! `/run` only. For a process that has entered the guest's root.

use crate::identity::{self, IdentityError, RUNTIME_DIRECTORY};
use messages::guest::GuestNetwork;
use messages::image::ImageConfig;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

/// What PID 1 becomes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Init {
    Systemd(PathBuf),
    /// Another init of the image's.
    Other(PathBuf),
    /// The agent's own PID 1 stays: the image has no init, or is meant to run one program.
    None,
}

impl Init {
    /// The program to become.
    #[must_use]
    pub fn program(&self) -> Option<&Path> {
        match self {
            Self::Systemd(path) | Self::Other(path) => Some(path),
            Self::None => None,
        }
    }
}

const INIT_PATHS: [&str; 5] =
    ["/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/bin/init"];
/// How often an early systemd is asked whether it listens yet.
const PRIVATE_SOCKET: &str = "/run/systemd/private";
const POLL: Duration = Duration::from_millis(25);
/// An old systemctl does not wait by itself.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Whether the program that an image names is its init.
#[must_use]
pub fn names_init(config: &ImageConfig) -> bool {
    own_program(config).is_some_and(is_init)
}

fn own_program(config: &ImageConfig) -> Option<&str> {
    config.entrypoint.first().or(config.cmd.first()).map(String::as_str).filter(|program| !program.is_empty())
}

fn is_init(program: &str) -> bool {
    INIT_PATHS.contains(&program) || program == "init"
}

/// Finds the image's init. An image that names a program of its own is meant to run that and no init.
#[must_use]
pub fn find_init(config: &ImageConfig) -> Init {
    if own_program(config).is_some_and(|program| !is_init(program)) {
        return Init::None;
    }
    let executable = |path: &Path| path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0);
    let Some(path) = INIT_PATHS.iter().map(Path::new).find(|path| executable(path)) else { return Init::None };
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if real.file_name().is_some_and(|name| name == "systemd") {
        Init::Systemd(path.to_owned())
    } else {
        Init::Other(path.to_owned())
    }
}

/// Units that would ask questions nobody hears, wait for what never comes, or spoil the given identity.
const MASKED: [&str; 15] = [
    "systemd-firstboot.service",
    "systemd-machine-id-commit.service",
    "systemd-networkd-wait-online.service",
    "NetworkManager-wait-online.service",
    // The console is a log here: nobody can type there.
    "serial-getty@ttyS0.service",
    "ssh.socket",
    "sshd.socket",
    "regenerate_ssh_host_keys.service",
    // Nobody sits at a screen either.
    "getty@tty1.service",
    // A program started to load each: what needs them has the kernel load them.
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
];
/// A third of the units' time goes into events for devices that were there before udev. These are what rules and mounts ask for.
const UDEV_TRIGGER: &str = "[Service]\nExecStart=\nExecStart=-udevadm trigger --type=devices --action=add \
    --subsystem-match=block --subsystem-match=net --subsystem-match=misc --subsystem-match=input\n";
/// The kernel's modules stay mounted until the end: what has one open (udev's index, say) makes an earlier unmount fail, in red. For
/// the mounts of all versions (systemd.unit(5), on drop-ins of units that share a prefix).
const MODULES: (&str, &str) = ("usr-lib-modules-.mount.d", "[Unit]\nDefaultDependencies=no\n");
/// (unit, program) of the two names that sshd has.
const SSHD: [&str; 2] = ["ssh.service", "sshd.service"];

/// Writes the runtime files.
///
/// # Errors
/// [`IdentityError`].
pub fn prepare(network: Option<&GuestNetwork>) -> Result<(), IdentityError> {
    let units = Path::new("/run/systemd/system");
    identity::directory(units, 0o755)?;
    for unit in MASKED {
        link("/dev/null", &units.join(unit))?;
    }
    let trigger = units.join("systemd-udev-trigger.service.d");
    identity::directory(&trigger, 0o755)?;
    identity::write(&trigger.join("50-banger.conf").to_string_lossy(), UDEV_TRIGGER.as_bytes(), 0o644)?;
    let (drop_in, text) = MODULES;
    identity::directory(&units.join(drop_in), 0o755)?;
    identity::write(&units.join(drop_in).join("50-banger.conf").to_string_lossy(), text.as_bytes(), 0o644)?;
    for unit in SSHD {
        prepare_sshd(units, unit)?;
    }
    if let Some(network) = network {
        prepare_network(network)?;
    }
    Ok(())
}

fn link(target: &str, path: &Path) -> Result<(), IdentityError> {
    match std::os::unix::fs::symlink(target, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(IdentityError::Write { path: path.display().to_string(), source: error })
        }
        _ => Ok(()),
    }
}

/// The image's own unit runs with our configuration, whether it was enabled or not.
fn prepare_sshd(units: &Path, unit: &str) -> Result<(), IdentityError> {
    let installed = ["/usr/lib/systemd/system", "/lib/systemd/system", "/etc/systemd/system"]
        .iter()
        .map(|directory| Path::new(directory).join(unit))
        // An alias of the same unit: the other name is prepared.
        .find(|path| path.symlink_metadata().is_ok_and(|metadata| metadata.is_file()));
    let Some(installed) = installed else { return Ok(()) };
    let drop_in = units.join(format!("{unit}.d"));
    identity::directory(&drop_in, 0o755)?;
    let content = format!(
        "[Unit]\nConditionPathExists=\n\n[Service]\nExecStartPre=\nExecStart=\n\
         ExecStart=/usr/sbin/sshd -D -f {RUNTIME_DIRECTORY}/sshd_config\nExecReload=\nRuntimeDirectory=sshd\n"
    );
    identity::write(&drop_in.join("50-banger.conf").to_string_lossy(), content.as_bytes(), 0o644)?;
    let wants = units.join("multi-user.target.wants");
    identity::directory(&wants, 0o755)?;
    link(&installed.to_string_lossy(), &wants.join(unit))
}

/// The interface has its address and name already; whatever manages networks in the image leaves it alone.
fn prepare_network(network: &GuestNetwork) -> Result<(), IdentityError> {
    let mac = network.mac.map(|byte| format!("{byte:02x}")).join(":");
    let directory = Path::new("/run/systemd/network");
    identity::directory(directory, 0o755)?;
    let matched = format!("[Match]\nMACAddress={mac}\n\n");
    let files = [
        ("00-banger.network", format!("{matched}[Link]\nUnmanaged=yes\n")),
        ("00-banger.link", format!("{matched}[Link]\nNamePolicy=keep kernel\nMACAddressPolicy=none\n")),
    ];
    for (name, content) in files {
        identity::write(&directory.join(name).to_string_lossy(), content.as_bytes(), 0o644)?;
    }
    let resolved = Path::new("/run/systemd/resolved.conf.d");
    identity::directory(resolved, 0o755)?;
    let servers = network.resolvers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let content = format!("[Resolve]\nDNS={servers}\nDomains=vm\n");
    identity::write(&resolved.join("50-banger.conf").to_string_lossy(), content.as_bytes(), 0o644)
}

/// How systemd has settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    Running,
    /// Some units failed, or it is in a state that a user should hear of.
    Degraded(String),
}

/// Waits until systemd has settled.
pub async fn settled() -> Settled {
    while !Path::new(PRIVATE_SOCKET).exists() {
        tokio::time::sleep(POLL).await;
    }
    let mut asked = false;
    loop {
        let output = Command::new("systemctl").args(["is-system-running", "--wait"]).output().await;
        let state = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        match state.as_deref() {
            Ok("running") => return Settled::Running,
            Ok("degraded") => return Settled::Degraded(degraded().await),
            Ok("maintenance") => return Settled::Degraded("the guest's systemd is in maintenance mode".into()),
            Err(error) if !asked => return Settled::Degraded(format!("the guest's systemd cannot be asked: {error}")),
            // Not yet, or it does not listen yet; or the guest goes down before it was up, and nobody waits any more.
            Ok(_) | Err(_) => asked = true,
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn degraded() -> String {
    let listing = Command::new("systemctl").args(["--failed", "--no-legend", "--plain", "--no-pager"]).output().await;
    let listing = listing.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let units: Vec<&str> = listing.lines().filter_map(|line| line.split_ascii_whitespace().next()).take(8).collect();
    format!("the guest's systemd is degraded; failed: {}", units.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_names_its_own_program_gets_no_init() {
        let config = |entrypoint: &[&str], cmd: &[&str]| ImageConfig {
            entrypoint: entrypoint.iter().map(ToString::to_string).collect(),
            cmd: cmd.iter().map(ToString::to_string).collect(),
            ..ImageConfig::default()
        };
        assert_eq!(find_init(&config(&["/docker-entrypoint.sh"], &["nginx"])), Init::None);
        assert_eq!(find_init(&config(&[], &["bash"])), Init::None);
        assert_eq!(find_init(&config(&[], &["/sbin/init"])), find_init(&config(&[], &[])));
    }
}
