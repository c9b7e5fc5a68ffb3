//! The machine itself: architecture, KVM, QEMU, our own programs, directories, space.

use super::{Check, program};
use crate::cli::human;
use actors::paths::Paths;
use actors_sys::kvm_probe::Unusable;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};
use std::path::Path;
use std::process::Command;

/// Below this a first image does not fit.
const SPACE_NEEDED: u64 = 2 << 30;
/// Below this a few VMs may fill the disk.
const SPACE_COMFORTABLE: u64 = 10 << 30;

pub(super) fn checks(paths: &Paths) -> Vec<Check> {
    let mut checks = vec![host(std::env::consts::OS, std::env::consts::ARCH), kvm(), qemu()];
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

fn kvm() -> Check {
    // The probe takes a signal for itself and a thread; nothing else of this program minds.
    match actors_sys::kvm_probe::probe() {
        Ok(cost) => Check::ok("kvm", format!("runs a small guest in {} µs", cost.as_micros())),
        Err(Unusable::Denied) => {
            let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).ok().flatten();
            let name = user.map_or_else(|| "USER".to_owned(), |user| user.name);
            let fix = format!("`sudo usermod -aG kvm {name}`, then log in again; until then VMs are emulated");
            Check::warn("kvm", "you may not open /dev/kvm", fix)
        }
        Err(reason) => {
            let fix = "none is needed: QEMU emulates VMs, slowly; for speed use a machine with KVM";
            Check::warn("kvm", reason.to_string(), fix)
        }
    }
}

fn qemu() -> Check {
    let fix = "`sudo apt install qemu-system-x86`";
    let Some(path) = program("qemu-system-x86_64") else {
        return Check::fail("qemu", "qemu-system-x86_64 is not installed", fix);
    };
    let version = Command::new(&path).arg("--version").output().ok().filter(|output| output.status.success());
    let text = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    match text.as_deref().and_then(|text| text.split("version ").nth(1)).and_then(qemu_version) {
        Some((major, minor)) if major >= 7 => Check::ok("qemu", format!("version {major}.{minor}")),
        Some((major, minor)) => Check::fail("qemu", format!("version {major}.{minor} is older than 7.0"), fix),
        None => Check::fail("qemu", format!("`{}` does not run", path.display()), fix),
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
