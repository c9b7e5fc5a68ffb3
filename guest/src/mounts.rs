//! The new root: the image under the VM's own disk, with what the kernel offers and what must not lie on an overlay.
//!
//! In two steps, with a chroot between them: the first works in the initramfs on paths of ours; the second in the new root,
//! where every path may be a symlink of the image's making, and none leads outside any more.

use crate::drives::{self, DriveError};
use crate::init::{NEW_ROOT, SHUTDOWN_DIRECTORY};
use messages::guest::Drives;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const IMAGE: &str = "/image";
/// Where the disk is mounted in the initramfs.
pub const DISK: &str = "/disk";
/// Drivers are loaded while the boot spec is fetched, so drives are usually there at once.
const DRIVE_DEADLINE: Duration = Duration::from_secs(10);
/// What programs put on disks themselves, with file systems that an overlay is no ground for: (path, name on the disk, mode).
const OFF_OVERLAY: [(&str, &str, u32); 3] = [
    ("/var/lib/docker", "docker", 0o710),
    ("/var/lib/containerd", "containerd", 0o711),
    ("/var/lib/containers", "containers", 0o711),
];

/// Says which mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error(transparent)]
    Drive(#[from] DriveError),
    #[error("failed to mount {what} at `{target}`")]
    Mount { what: String, target: String, source: io::Error },
    #[error("failed to make `{path}`")]
    Make { path: String, source: io::Error },
    #[error("failed to enter the new root")]
    Enter(#[source] io::Error),
}

/// What has to be known of the initramfs once the root has changed.
#[derive(Debug)]
pub struct Below {
    /// The disk's root directory, to freeze it.
    pub disk: OwnedFd,
    off_overlay: Vec<(&'static str, OwnedFd)>,
    shutdown: Option<OwnedFd>,
    modules: Option<PathBuf>,
}

/// Mounts `what` at `target`.
fn attach(what: &str, target: &str, kind: Option<&str>, flags: MsFlags, options: &str) -> Result<(), MountError> {
    mount(Some(what), target, kind, flags, Some(options)).map_err(|error| MountError::Mount {
        what: kind.unwrap_or(what).to_owned(),
        target: target.to_owned(),
        source: error.into(),
    })
}

fn make_directory(path: &Path, mode: u32) -> Result<(), MountError> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|source| MountError::Make { path: path.display().to_string(), source })
}

fn directory_of(path: &str) -> Result<OwnedFd, MountError> {
    let opened = open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    opened.map_err(|error| MountError::Make { path: path.to_owned(), source: error.into() })
}

/// Undoes what an agent that died in the middle left behind.
pub fn clean_up() {
    for target in [NEW_ROOT, DISK, IMAGE] {
        while umount2(target, MntFlags::MNT_DETACH).is_ok() {}
    }
}

/// The first step: finds the drives and builds the overlay. For a process in the initramfs.
///
/// # Errors
/// [`MountError`].
pub fn build(drives: &Drives) -> Result<Below, MountError> {
    let deadline = Instant::now() + DRIVE_DEADLINE;
    let image = drives::find("image", &drives.image, deadline)?;
    let disk = drives::find("disk", &drives.disk, deadline)?;
    let modules = drives.modules.as_ref().map(|uuid| drives::find("modules", uuid, deadline)).transpose()?;
    for path in [IMAGE, DISK, NEW_ROOT] {
        make_directory(Path::new(path), 0o755)?;
    }
    attach(&image.to_string_lossy(), IMAGE, Some("ext4"), MsFlags::MS_RDONLY, "")?;
    // Without noinit_itable the kernel writes 128 MiB of inode tables per 8 GiB of disk in the background.
    attach(&disk.to_string_lossy(), DISK, Some("ext4"), MsFlags::MS_NOATIME, "noinit_itable")?;
    for name in ["upper", "work"] {
        make_directory(&Path::new(DISK).join(name), 0o755)?;
    }
    let mut off_overlay = Vec::new();
    for (target, name, mode) in OFF_OVERLAY {
        let path = format!("{DISK}/{name}");
        make_directory(Path::new(&path), mode)?;
        off_overlay.push((target, directory_of(&path)?));
    }
    let options = format!("lowerdir={IMAGE},upperdir={DISK}/upper,workdir={DISK}/work,redirect_dir=on");
    attach_overlay(&options, deadline)?;
    Ok(Below { disk: directory_of(DISK)?, off_overlay, shutdown: directory_of(SHUTDOWN_DIRECTORY).ok(), modules })
}

/// PID 1 may still be loading the overlay's module: until it is there the kernel knows no such file system.
fn attach_overlay(options: &str, deadline: Instant) -> Result<(), MountError> {
    loop {
        match attach("overlay", NEW_ROOT, Some("overlay"), MsFlags::empty(), options) {
            Err(MountError::Mount { source, .. })
                if source.raw_os_error() == Some(libc::ENODEV) && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            other => return other,
        }
    }
}

/// Makes a directory the root of this process, all of its threads included.
///
/// # Errors
/// [`MountError::Enter`].
pub fn enter(root: &str) -> Result<(), MountError> {
    nix::unistd::chroot(root).and_then(|()| nix::unistd::chdir("/")).map_err(|error| MountError::Enter(error.into()))
}

/// The second step: everything inside the new root. For a process that has entered it.
///
/// # Errors
/// [`MountError`].
pub fn furnish(below: &Below) -> Result<(), MountError> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let kernel = [
        ("proc", "/proc", quiet, ""),
        ("sysfs", "/sys", quiet, ""),
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
        ("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777"),
        ("tmpfs", "/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755"),
    ];
    for (kind, target, flags, options) in kernel {
        make_directory(Path::new(target), 0o755)?;
        attach(kind, target, Some(kind), flags, options)?;
    }
    for (target, source) in &below.off_overlay {
        make_directory(Path::new(target), 0o711)?;
        bind(source, target)?;
    }
    if let Some(modules) = &below.modules {
        furnish_modules(&modules.to_string_lossy())?;
    }
    if let Some(shutdown) = &below.shutdown {
        make_directory(Path::new("/run/initramfs"), 0o755)?;
        bind(shutdown, "/run/initramfs")?;
    }
    Ok(())
}

/// The source lies outside this root, so it is named by its open descriptor.
fn bind(source: &OwnedFd, target: &str) -> Result<(), MountError> {
    attach(&format!("/proc/self/fd/{}", source.as_raw_fd()), target, None, MsFlags::MS_BIND, "")
}

fn furnish_modules(device: &str) -> Result<(), MountError> {
    let version = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let version =
        version.map_err(|error| MountError::Make { path: "/usr/lib/modules".into(), source: error.into() })?;
    let target = format!("/usr/lib/modules/{version}");
    make_directory(Path::new(&target), 0o755)?;
    attach(device, &target, Some("ext4"), MsFlags::MS_RDONLY, "")?;
    // Images whose /lib is a directory of its own look there.
    let usual = format!("/lib/modules/{version}");
    let same = fs::canonicalize("/lib").is_ok_and(|lib| lib == Path::new("/usr/lib"));
    if !same {
        make_directory(Path::new(&usual), 0o755)?;
        attach(&target, &usual, None, MsFlags::MS_BIND, "")?;
    }
    Ok(())
}

/// What systemd would start a program for each to mount: it takes what it finds. A kernel without one of them lacks it.
pub fn furnish_for_systemd() {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounts = [
        ("hugetlbfs", "/dev/hugepages", MsFlags::MS_NOSUID | MsFlags::MS_NODEV),
        ("mqueue", "/dev/mqueue", quiet),
        ("debugfs", "/sys/kernel/debug", quiet),
        ("tracefs", "/sys/kernel/tracing", quiet),
        ("fusectl", "/sys/fs/fuse/connections", quiet),
    ];
    for (kind, target, flags) in mounts {
        let made = make_directory(Path::new(target), 0o755).and_then(|()| attach(kind, target, Some(kind), flags, ""));
        if let Err(error) = made {
            tracing::debug!(%error, "left to systemd");
        }
    }
}

/// What an init would mount, for images that have none.
pub fn furnish_without_init() {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for (kind, target, options) in [("cgroup2", "/sys/fs/cgroup", "nsdelegate"), ("mqueue", "/dev/mqueue", "")] {
        let made =
            make_directory(Path::new(target), 0o755).and_then(|()| attach(kind, target, Some(kind), quiet, options));
        if let Err(error) = made {
            tracing::warn!(%error, "a convenience of the kernel is missing");
        }
    }
    // Programs expect these names; devtmpfs has them only where udev made them.
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        if let Err(error) = std::os::unix::fs::symlink(target, Path::new("/dev").join(name))
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            tracing::warn!(%error, name, "a device's usual name is missing");
        }
    }
    if let Err(error) = fs::set_permissions("/dev/shm", fs::Permissions::from_mode(0o1777)) {
        tracing::debug!(%error, "/dev/shm keeps its mode");
    }
}

/// The disk's root, for an agent that was restarted. For a process in the initramfs.
#[must_use]
pub fn reopen_disk() -> Option<OwnedFd> {
    File::open(DISK).ok().map(OwnedFd::from)
}
