//! What this host has, and what sizes a VM gets on it. Pure apart from [`HostFacts::probe`], [`boot_id`] and [`disk_space`]; refuses only
//! what could never work: whether there is room *now* is the registry's admission.

use crate::config::VmDefaults;
use messages::error::{ErrorKind, WireError};
use messages::limits::{VM_DISK_MAX_BYTES, VM_DISK_MIN_BYTES, VM_MEMORY_MIN_MIB, VM_VCPUS_MAX};
use messages::vm::{Provenance, VmSize, VmSpec};
use std::path::Path;

const FLOOR_MEMORY_MIB: u32 = 512;
const FLOOR_DISK: u64 = 4 << 30;
const HOST_DISK: u64 = 8 << 30;
const HOST_VCPUS_CAP: u32 = 4;
const HOST_MEMORY_CAP_MIB: u64 = 8 << 10;
const MIB: u64 = 1 << 20;

/// The kernel's name for this boot of the host (random(4)).
///
/// # Errors
/// Where `/proc` does not have it.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// What there is to share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFacts {
    pub cpus: u32,
    pub memory_mib: u64,
    /// Free, or freed by the kernel when asked, in MiB.
    pub memory_available_mib: u64,
}

impl HostFacts {
    /// Asks the kernel.
    ///
    /// # Errors
    /// Where `/proc/meminfo` cannot be read or is not what proc(5) says.
    pub fn probe() -> std::io::Result<Self> {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        let kib = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
                .ok_or_else(|| std::io::Error::other(format!("/proc/meminfo has no `{key}`")))
        };
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self {
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            memory_mib: kib("MemTotal:")? / 1024,
            memory_available_mib: kib("MemAvailable:")? / 1024,
        })
    }
}

/// Bytes of a file system: (free for this user, in all).
///
/// # Errors
/// What statvfs says.
pub fn disk_space(dir: &Path) -> std::io::Result<(u64, u64)> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    Ok((stat.blocks_available() * stat.fragment_size(), stat.blocks() * stat.fragment_size()))
}

/// Decides a VM's sizes: from the request, else the config, else the host, else the built-in floor.
///
/// # Errors
/// Sizes that could never work, with the figures.
pub fn decide_size(spec: &VmSpec, defaults: &VmDefaults, host: &HostFacts) -> Result<VmSize, WireError> {
    let host_vcpus = u8::try_from((host.cpus / 4).min(HOST_VCPUS_CAP)).unwrap_or(1);
    let (vcpus, vcpus_from) = first([
        (spec.vcpus, Provenance::Flag),
        (defaults.vcpu, Provenance::Config),
        ((host_vcpus >= 1).then_some(host_vcpus), Provenance::Host),
    ])
    .unwrap_or((1, Provenance::BuiltIn));
    let host_memory = u32::try_from((host.memory_mib / 8).min(HOST_MEMORY_CAP_MIB)).unwrap_or(0);
    let (memory_mib, memory_from) = first([
        (spec.memory_mib, Provenance::Flag),
        (defaults.memory_mib, Provenance::Config),
        ((host_memory >= FLOOR_MEMORY_MIB).then_some(host_memory), Provenance::Host),
    ])
    .unwrap_or((FLOOR_MEMORY_MIB, Provenance::BuiltIn));
    let (disk_bytes, disk_from) = first([
        (spec.disk_bytes, Provenance::Flag),
        (defaults.disk_size, Provenance::Config),
        (Some(HOST_DISK), Provenance::Host),
    ])
    .unwrap_or((FLOOR_DISK, Provenance::BuiltIn));
    let size = VmSize { vcpus, memory_mib, disk_bytes, vcpus_from, memory_from, disk_from };
    check_size(&size, host).map(|()| size)
}

fn first<T, const N: usize>(levels: [(Option<T>, Provenance); N]) -> Option<(T, Provenance)> {
    levels.into_iter().find_map(|(value, from)| value.map(|value| (value, from)))
}

fn check_size(size: &VmSize, host: &HostFacts) -> Result<(), WireError> {
    let usage = |text: String| Err(WireError::new(ErrorKind::Usage, text));
    let VmSize { vcpus, memory_mib, disk_bytes, .. } = *size;
    if vcpus == 0 {
        return usage("a VM cannot have 0 vCPUs: ask for at least 1".to_owned());
    }
    if vcpus > VM_VCPUS_MAX {
        return usage(format!("a VM cannot have {vcpus} vCPUs: the VMM takes at most {VM_VCPUS_MAX}"));
    }
    if u32::from(vcpus) > host.cpus {
        return Err(WireError::new(
            ErrorKind::Resources,
            format!("a VM of {vcpus} vCPUs does not fit this host, which has {}", host.cpus),
        ));
    }
    if memory_mib < VM_MEMORY_MIN_MIB {
        return usage(format!("a VM cannot have {memory_mib} MiB of memory: ask for at least {VM_MEMORY_MIN_MIB} MiB"));
    }
    if u64::from(memory_mib) > host.memory_mib {
        return Err(WireError::new(
            ErrorKind::Resources,
            format!("a VM of {memory_mib} MiB does not fit this host, which has {} MiB", host.memory_mib),
        ));
    }
    if disk_bytes < VM_DISK_MIN_BYTES {
        return usage(format!(
            "a VM cannot have a disk of {disk_bytes} bytes: ask for at least {} MiB",
            VM_DISK_MIN_BYTES / MIB
        ));
    }
    if disk_bytes > VM_DISK_MAX_BYTES {
        return usage(format!(
            "a VM cannot have a disk of {disk_bytes} bytes: the most is {} TiB",
            VM_DISK_MAX_BYTES >> 40
        ));
    }
    if !disk_bytes.is_multiple_of(4096) {
        return usage(format!("a disk of {disk_bytes} bytes is not a multiple of 4096"));
    }
    Ok(())
}

/// The `spec:` line: each size and where it came from.
#[must_use]
pub fn spec_line(size: &VmSize) -> String {
    let from = |provenance: Provenance| match provenance {
        Provenance::Flag => "flag",
        Provenance::Config => "config",
        Provenance::Host => "host",
        Provenance::BuiltIn => "built in",
    };
    format!(
        "{} vCPU ({}), {} RAM ({}), {} disk ({})",
        size.vcpus,
        from(size.vcpus_from),
        human_size(u64::from(size.memory_mib) * MIB),
        from(size.memory_from),
        human_size(size.disk_bytes),
        from(size.disk_from)
    )
}

/// Bytes for people: the largest unit that leaves a whole number, else two decimals.
#[must_use]
pub fn human_size(bytes: u64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        None => format!("{bytes} B"),
        Some((unit, name)) if bytes.is_multiple_of(unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{}.{:02} {name}", bytes / unit, (bytes % unit) * 100 / unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostFacts = HostFacts { cpus: 8, memory_mib: 16_000, memory_available_mib: 9_000 };

    #[test]
    fn sizes_come_from_flag_then_config_then_host_then_floor() {
        let spec = VmSpec { vcpus: Some(3), ..VmSpec::default() };
        let defaults = VmDefaults { memory_mib: Some(700), ..VmDefaults::default() };
        let size = decide_size(&spec, &defaults, &HOST).unwrap();
        assert_eq!(spec_line(&size), "3 vCPU (flag), 700 MiB RAM (config), 8 GiB disk (host)");
        let small = HostFacts { cpus: 2, memory_mib: 2_000, memory_available_mib: 900 };
        let size = decide_size(&VmSpec::default(), &VmDefaults::default(), &small).unwrap();
        assert_eq!(spec_line(&size), "1 vCPU (built in), 512 MiB RAM (built in), 8 GiB disk (host)");
    }

    #[test]
    fn impossible_sizes_are_refused_with_the_figures() {
        let refused = |spec: VmSpec| decide_size(&spec, &VmDefaults::default(), &HOST).unwrap_err();
        for (spec, kind, figure) in [
            (VmSpec { vcpus: Some(0), ..VmSpec::default() }, ErrorKind::Usage, "0 vCPUs"),
            (VmSpec { vcpus: Some(9), ..VmSpec::default() }, ErrorKind::Resources, "has 8"),
            (VmSpec { vcpus: Some(33), ..VmSpec::default() }, ErrorKind::Usage, "at most 32"),
            (VmSpec { memory_mib: Some(1), ..VmSpec::default() }, ErrorKind::Usage, "at least 128 MiB"),
            (VmSpec { memory_mib: Some(16_001), ..VmSpec::default() }, ErrorKind::Resources, "16000 MiB"),
            (VmSpec { disk_bytes: Some(3), ..VmSpec::default() }, ErrorKind::Usage, "3 bytes"),
            (VmSpec { disk_bytes: Some(u64::MAX), ..VmSpec::default() }, ErrorKind::Usage, "8 TiB"),
            (VmSpec { disk_bytes: Some(VM_DISK_MIN_BYTES + 1), ..VmSpec::default() }, ErrorKind::Usage, "4096"),
        ] {
            let error = refused(spec);
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.to_string().contains(figure), "{error}");
        }
    }

    #[test]
    fn this_host_can_be_probed() {
        let host = HostFacts::probe().unwrap();
        assert!(host.cpus > 0 && host.memory_available_mib <= host.memory_mib);
        let (free, all) = disk_space(Path::new("/")).unwrap();
        assert!(free <= all && all > 0);
    }

    #[test]
    fn sizes_print_for_people() {
        assert_eq!(human_size(3), "3 B");
        assert_eq!(human_size(3 << 29), "1.50 GiB");
        assert_eq!(human_size(8 << 30), "8 GiB");
    }
}
