//! The machine itself: architecture, KVM, Firecracker or QEMU, our own programs, directories, space.

use super::{Check, executable, program, user};
use crate::cli::human;
use actors::config::{Config, VmmSetting};
use actors::paths::Paths;
use actors_sys::kvm_probe::Unusable;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Below this a first image does not fit.
const SPACE_NEEDED: u64 = 2 << 30;
/// Below this a few VMs may fill the disk.
const SPACE_COMFORTABLE: u64 = 10 << 30;

pub(super) fn checks(paths: &Paths, config: &Config) -> Vec<Check> {
    let mut checks = vec![host(std::env::consts::OS, std::env::consts::ARCH)];
    checks.extend(vmms(config));
    checks.extend(programs(paths));
    checks.extend([directory("state dir", &paths.state_dir), directory("cache dir", &paths.cache_dir)]);
    checks.extend([sockets(paths), space(&paths.state_dir)]);
    checks
}

fn host(system: &str, architecture: &str) -> Check {
    if (system, architecture) == ("linux", "x86_64") {
        Check::ok("host", "x86_64 Linux")
    } else {
        Check::fail(
            "host",
            format!("this is {architecture} {system}, and banger runs on x86_64 Linux only"),
            "use an x86_64 Linux machine",
        )
    }
}

/// KVM, and the two VMMs: of those only the one that VMs get here has to be there.
fn vmms(config: &Config) -> Vec<Check> {
    // The probe takes a signal for itself and a thread; nothing else of this program minds.
    let probed = actors_sys::kvm_probe::probe();
    let works = probed.is_ok();
    let found = firecracker_file(config);
    let installed = found.as_deref().is_some_and(executable);
    let emulated = match config.vmm {
        VmmSetting::Auto => !(works && installed),
        VmmSetting::Firecracker => false,
        VmmSetting::Emulated => true,
    };
    vec![kvm(probed), firecracker(config.vmm, found.as_deref(), installed, works), qemu(emulated)]
}

fn kvm(probed: Result<Duration, Unusable>) -> Check {
    match probed {
        Ok(cost) => Check::ok("kvm", format!("runs a small guest in {} µs", cost.as_micros())),
        Err(Unusable::Denied) => {
            let fix = format!("`sudo usermod -aG kvm {}`, then log in again; until then VMs are emulated", user());
            Check::warn("kvm", "you may not open /dev/kvm", fix)
        }
        Err(reason) => {
            let fix = "none is needed: QEMU emulates VMs, slowly; for speed use a machine with KVM";
            Check::warn("kvm", reason.to_string(), fix)
        }
    }
}

/// The file that the daemon would take: the one of the config, or the first of `PATH`.
fn firecracker_file(config: &Config) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let search = || std::env::split_paths(&path).map(|dir| dir.join("firecracker")).find(|file| executable(file));
    config.firecracker_bin.clone().or_else(search)
}

fn firecracker(setting: VmmSetting, file: Option<&Path>, installed: bool, kvm_works: bool) -> Check {
    const NAME: &str = "firecracker";
    let fix = "put `firecracker` into PATH, or name it by `firecracker_bin` in the config";
    let text = match file {
        Some(file) if installed => file.display().to_string(),
        Some(file) => format!("`{}` cannot be run", file.display()),
        None => "not installed".to_owned(),
    };
    match setting {
        VmmSetting::Emulated => Check::ok(NAME, "not used: the config says `vmm = \"emulated\"`"),
        VmmSetting::Firecracker if !installed => {
            Check::fail(NAME, format!("{text}, and the config says `vmm = \"firecracker\"`"), fix)
        }
        VmmSetting::Auto if kvm_works && !installed => {
            Check::warn(NAME, format!("{text}: VMs are emulated, slowly, though KVM works"), fix)
        }
        VmmSetting::Auto if !kvm_works => Check::ok(NAME, format!("{text}; not used without KVM")),
        VmmSetting::Firecracker | VmmSetting::Auto => Check::ok(NAME, text),
    }
}

fn qemu(needed: bool) -> Check {
    let missing = |text: String| {
        if needed {
            Check::fail("qemu", text, "`sudo apt install qemu-system-x86`")
        } else {
            Check::ok("qemu", format!("{text}; not needed: Firecracker runs VMs here"))
        }
    };
    let Some(path) = program("qemu-system-x86_64") else {
        return missing("qemu-system-x86_64 is not installed".to_owned());
    };
    let version = Command::new(&path).arg("--version").output().ok().filter(|output| output.status.success());
    let text = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    match text.as_deref().and_then(|text| text.split("version ").nth(1)).and_then(qemu_version) {
        Some((major, minor)) if major >= 7 => Check::ok("qemu", format!("version {major}.{minor}")),
        Some((major, minor)) => missing(format!("version {major}.{minor} is older than 7.0")),
        None => missing(format!("`{}` does not run", path.display())),
    }
}

fn qemu_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn programs(paths: &Paths) -> Vec<Check> {
    let missing: Vec<&str> = ["bangerd", "bangerd-root", "banger-emu", "banger-agent"]
        .into_iter()
        .filter(|name| paths.helper_program(name).is_none())
        .collect();
    if missing.is_empty() {
        return vec![Check::ok("programs", "bangerd, bangerd-root, banger-emu and banger-agent are there")];
    }
    vec![Check::fail(
        "programs",
        format!("not found beside this program: {}", missing.join(", ")),
        "install them together, or name their directory in BANGER_LIBEXEC",
    )]
}

fn directory(name: &'static str, path: &Path) -> Check {
    let nearest = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    if access(nearest, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        let variable = if name == "state dir" { "BANGER_STATE_DIR" } else { "BANGER_CACHE_DIR" };
        let text = format!("`{}` cannot be written", nearest.display());
        return Check::fail(name, text, format!("make it writable for you, or choose another with {variable}"));
    }
    Check::ok(name, path.display().to_string())
}

fn sockets(paths: &Paths) -> Check {
    match paths.check_sockets() {
        Ok(()) => Check::ok("socket", paths.socket().display().to_string()),
        Err(error) => Check::fail("socket", error.to_string(), "a shorter BANGER_STATE_DIR or BANGER_RUNTIME_DIR"),
    }
}

fn space(state_dir: &Path) -> Check {
    let nearest = state_dir.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let Ok(figures) = statvfs(nearest) else {
        return Check::warn("space", format!("the free space of `{}` is unknown", nearest.display()), "look with `df`");
    };
    let free = figures.blocks_available().saturating_mul(figures.fragment_size());
    let text = format!("{} free for images and disks", human::size(free));
    let fix = "make room, or choose another disk with BANGER_STATE_DIR and BANGER_CACHE_DIR";
    match free {
        0..SPACE_NEEDED => Check::fail("space", text, fix),
        SPACE_NEEDED..SPACE_COMFORTABLE => Check::warn("space", text, fix),
        _ => Check::ok("space", text),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn only_one_kind_of_host_will_do() {
        assert_eq!(host("linux", "x86_64").level, Level::Ok);
        assert_eq!(host("linux", "aarch64").level, Level::Fail);
        assert_eq!(host("macos", "x86_64").level, Level::Fail);
    }

    #[test]
    fn only_the_vmm_that_vms_get_has_to_be_there() {
        use VmmSetting::{Auto, Emulated, Firecracker};
        let file = Some(Path::new("/usr/bin/firecracker"));
        let level = |setting, file: Option<&Path>, installed, kvm| firecracker(setting, file, installed, kvm).level;
        assert_eq!(level(Auto, file, true, true), Level::Ok);
        assert_eq!(level(Auto, None, false, true), Level::Warn, "slow for no reason");
        assert_eq!(level(Auto, file, false, true), Level::Warn, "named, and not there");
        assert_eq!(level(Auto, None, false, false), Level::Ok, "of no use");
        assert_eq!(level(Firecracker, None, false, true), Level::Fail);
        assert_eq!(level(Emulated, None, false, true), Level::Ok);
        assert_ne!(qemu(false).level, Level::Fail);
    }

    #[test]
    fn versions() {
        assert_eq!(qemu_version("7.2.22 (Debian 1:7.2+dfsg-7)"), Some((7, 2)));
        assert_eq!(qemu_version("garbage"), None);
    }

    #[test]
    fn an_unwritable_directory_fails() {
        assert_eq!(directory("state dir", Path::new("/proc/sys/no/such")).level, Level::Fail);
        assert_eq!(directory("state dir", &std::env::temp_dir().join("new/and/deep")).level, Level::Ok);
    }
}
