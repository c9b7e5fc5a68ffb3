//! Whether the host can hold one more VM. Pure: the figures are arguments, and a refusal names them.

use crate::host::{HostFacts, human_size};
use messages::error::{ErrorKind, WireError};
use messages::vm::VmSize;

/// How many VMs may exist. A list of them fits a frame.
pub const VMS_MAX: usize = 10_000;
/// Free space below which no VM is made or started, in bytes: SQLite, logs and other VMs' disks must be able to grow.
pub(super) const DISK_RESERVE: u64 = 512 << 20;
const MIB: u64 = 1 << 20;

/// What is taken now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    pub vms: usize,
    /// VMs that run, start or stop.
    pub active: usize,
    /// Theirs, in MiB.
    pub memory_mib: u64,
}

/// Bytes of the state directory's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskFacts {
    pub free: u64,
    pub total: u64,
}

/// What is left to the host itself, in MiB: a tenth, at least 256 MiB, at most 4 GiB.
#[must_use]
pub fn memory_reserve_mib(host: &HostFacts) -> u64 {
    (host.memory_mib / 10).clamp(256, 4096)
}

/// Refuses a VM that there is no memory for now.
///
/// # Errors
/// With the figures.
pub fn admit_memory(size: &VmSize, taken: &Taken, host: &HostFacts) -> Result<(), WireError> {
    let reserve = memory_reserve_mib(host);
    let wanted = u64::from(size.memory_mib);
    let room = host.memory_mib.saturating_sub(reserve).saturating_sub(taken.memory_mib);
    if wanted <= room {
        return Ok(());
    }
    Err(WireError::new(
        ErrorKind::Resources,
        format!(
            "no room for a VM of {}: the host has {}, {} running VMs have {}, and {} are kept for the host",
            human_size(wanted * MIB),
            human_size(host.memory_mib * MIB),
            taken.active,
            human_size(taken.memory_mib * MIB),
            human_size(reserve * MIB),
        ),
    )
    .hint("stop a VM with `banger vm stop`, or ask for less with `--memory`"))
}

/// Refuses a VM whose disk could never be filled, or for which there is not even room to begin. Disks are sparse: the sum
/// of their sizes may exceed what there is.
///
/// # Errors
/// With the figures.
pub fn admit_disk(size: &VmSize, disk: &DiskFacts) -> Result<(), WireError> {
    if disk.free < DISK_RESERVE {
        return Err(WireError::new(
            ErrorKind::Resources,
            format!(
                "only {} are free in the state directory, and {} are kept for running VMs",
                human_size(disk.free),
                human_size(DISK_RESERVE)
            ),
        )
        .hint("delete VMs or images that nobody needs: `banger vm list`, `banger image list`"));
    }
    if size.disk_bytes > disk.total {
        return Err(WireError::new(
            ErrorKind::Resources,
            format!(
                "a disk of {} does not fit the state directory's file system of {}",
                human_size(size.disk_bytes),
                human_size(disk.total)
            ),
        ));
    }
    Ok(())
}

/// Refuses one VM too many.
///
/// # Errors
/// With the figures.
pub fn admit_count(taken: &Taken) -> Result<(), WireError> {
    if taken.vms < VMS_MAX {
        return Ok(());
    }
    Err(WireError::new(ErrorKind::Resources, format!("there are {} VMs, and {VMS_MAX} is the most", taken.vms)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use messages::vm::Provenance;

    fn size(memory_mib: u32, disk_bytes: u64) -> VmSize {
        let from = Provenance::Flag;
        VmSize { vcpus: 1, memory_mib, disk_bytes, vcpus_from: from, memory_from: from, disk_from: from }
    }

    #[test]
    fn memory_is_refused_with_the_figures() {
        let host = HostFacts { cpus: 4, memory_mib: 10_240, memory_available_mib: 0 };
        let taken = Taken { vms: 9, active: 2, memory_mib: 8192 };
        assert_eq!(admit_memory(&size(1024, 0), &taken, &host), Ok(()));
        let error = admit_memory(&size(1025, 0), &taken, &host).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no room for a VM of 1.00 GiB: the host has 10 GiB, 2 running VMs have 8 GiB, and 1 GiB are kept for the host"
        );
    }

    #[test]
    fn sparse_disks_may_be_promised_but_not_beyond_the_file_system() {
        let disk = DiskFacts { free: 1 << 30, total: 100 << 30 };
        assert_eq!(admit_disk(&size(512, 50 << 30), &disk), Ok(()));
        assert!(admit_disk(&size(512, 101 << 30), &disk).unwrap_err().to_string().contains("100 GiB"));
        let full = DiskFacts { free: 3 << 20, total: 100 << 30 };
        assert!(admit_disk(&size(512, 1 << 30), &full).unwrap_err().to_string().contains("3 MiB"));
    }

    #[test]
    fn the_count_is_bounded() {
        assert!(admit_count(&Taken { vms: VMS_MAX, ..Taken::default() }).is_err());
    }
}
