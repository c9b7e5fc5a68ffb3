//! What has been configured so far, checked as it comes in. Opens files to see that they can be, and keeps none.

use crate::emu::api::bodies::{
    BootSource, CacheType, CpuTemplate, Drive, Entropy, HugePages, IoEngine, Logger, MachineConfig,
    MachineConfigUpdate, Metrics, NetworkInterface, NetworkOverride, Serial, Vsock,
};
use crate::emu::fault::{BootSourceFault, DriveFault, Fault, MachineConfigFault, NetworkFault, VsockFault};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::path::Path;

/// Firecracker's arguments where none are given.
pub const DEFAULT_BOOT_ARGS: &str =
    "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";
/// The longest kernel command line that x86 takes (`COMMAND_LINE_SIZE`), in bytes.
const BOOT_ARGS_MAX: usize = 2048;
/// The longest interface name, without its NUL (`IFNAMSIZ`).
const INTERFACE_NAME_MAX: usize = 15;
const VCPUS_MAX: u8 = 32;

/// The configuration of a VM. Serialised, it is the answer to `GET /vm/config`; read back, it is what a snapshot holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Resources {
    /// The root device first, then in the order in which they came.
    pub drives: Vec<Drive>,
    pub boot_source: Option<BootSource>,
    pub machine_config: MachineConfig,
    pub network_interfaces: Vec<NetworkInterface>,
    pub vsock: Option<Vsock>,
    pub entropy: Option<Entropy>,
    pub logger: Option<Logger>,
    pub metrics: Option<Metrics>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub serial: Serial,
}

fn is_default(serial: &Serial) -> bool {
    *serial == Serial::default()
}

impl Resources {
    /// Changes the machine as far as `update` says.
    ///
    /// # Errors
    /// Sizes that cannot be; nothing has changed then.
    pub fn update_machine(&mut self, update: &MachineConfigUpdate) -> Result<(), Fault> {
        let old = &self.machine_config;
        let new = MachineConfig {
            vcpu_count: update.vcpu_count.unwrap_or(old.vcpu_count),
            mem_size_mib: update.mem_size_mib.unwrap_or(old.mem_size_mib),
            smt: update.smt.unwrap_or(old.smt),
            cpu_template: None,
            track_dirty_pages: update.track_dirty_pages.unwrap_or(old.track_dirty_pages),
            huge_pages: update.huge_pages.unwrap_or(old.huge_pages),
        };
        let vcpus = new.vcpu_count;
        if vcpus == 0 || vcpus > VCPUS_MAX || (new.smt && vcpus > 1 && vcpus % 2 == 1) {
            return Err(Fault::MachineConfig(MachineConfigFault::InvalidVcpuCount));
        }
        if new.mem_size_mib == 0 || (new.huge_pages == HugePages::TwoMiB && new.mem_size_mib % 2 == 1) {
            return Err(Fault::MachineConfig(MachineConfigFault::InvalidMemorySize));
        }
        if !matches!(update.cpu_template, None | Some(CpuTemplate::None)) {
            return Err(Fault::NotSupported("a CPU template"));
        }
        self.machine_config = new;
        Ok(())
    }

    /// Sets the kernel.
    ///
    /// # Errors
    /// A file that cannot be opened, or a command line that cannot be.
    pub fn set_boot_source(&mut self, source: BootSource) -> Result<(), Fault> {
        let fault = Fault::BootSource;
        open_regular(&source.kernel_image_path).map_err(|error| fault(BootSourceFault::Kernel(error)))?;
        if let Some(initrd) = &source.initrd_path {
            open_regular(initrd).map_err(|error| fault(BootSourceFault::Initrd(error)))?;
        }
        let arguments = source.boot_args.as_deref().unwrap_or_default();
        if !arguments.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
            let why = "String contains a non-printable ASCII character.".to_owned();
            return Err(fault(BootSourceFault::CommandLine(why)));
        }
        if arguments.len() >= BOOT_ARGS_MAX {
            let why = "Command line string is too large.".to_owned();
            return Err(fault(BootSourceFault::CommandLine(why)));
        }
        self.boot_source = Some(source);
        Ok(())
    }

    /// Adds a drive, or changes the one with its id.
    ///
    /// # Errors
    /// A file that cannot be opened, a second root device, or a kind of drive that QEMU is not asked for.
    pub fn set_drive(&mut self, drive: Drive) -> Result<(), Fault> {
        let at = self.drives.iter().position(|known| known.drive_id == drive.drive_id);
        let has_root = self.drives.first().is_some_and(|first| first.is_root_device);
        if drive.is_root_device && has_root && at != Some(0) {
            return Err(Fault::Drive(DriveFault::SecondRoot));
        }
        if drive.socket.is_some() {
            return Err(Fault::NotSupported("a vhost-user-block drive"));
        }
        if drive.rate_limiter.is_some_and(|limiter| limiter != Default::default()) {
            return Err(Fault::NotSupported("a rate limiter of a drive"));
        }
        let (Some(path), Some(read_only)) = (&drive.path_on_host, drive.is_read_only) else {
            return Err(Fault::Drive(DriveFault::Missing));
        };
        open_drive(path, read_only)?;
        match at {
            None if drive.is_root_device => self.drives.insert(0, drive),
            None => self.drives.push(drive),
            Some(at) => {
                let root = drive.is_root_device;
                self.drives[at] = drive;
                if root {
                    self.drives.swap(0, at);
                }
            }
        }
        Ok(())
    }

    /// Adds a network interface, or changes the one with its id. The tap itself is opened at the start.
    ///
    /// # Errors
    /// A name or MTU that cannot be, a MAC in use, or a rate limiter, which QEMU has none of.
    pub fn set_network(&mut self, interface: NetworkInterface) -> Result<(), Fault> {
        let id = &interface.iface_id;
        if let Some(mac) = interface.guest_mac
            && self.network_interfaces.iter().any(|known| known.guest_mac == Some(mac) && known.iface_id != *id)
        {
            return Err(Fault::Network(NetworkFault::MacInUse(mac.to_string())));
        }
        check_interface_name(&interface.host_dev_name)?;
        if let Some(mtu) = interface.mtu
            && !(68..=65535).contains(&mtu)
        {
            return Err(Fault::Network(NetworkFault::InvalidMtu(mtu)));
        }
        for limiter in [interface.rx_rate_limiter, interface.tx_rate_limiter] {
            if limiter.is_some_and(|limiter| limiter != Default::default()) {
                return Err(Fault::NotSupported("a rate limiter of a network interface"));
            }
        }
        match self.network_interfaces.iter_mut().find(|known| known.iface_id == *id) {
            Some(known) => *known = interface,
            None => self.network_interfaces.push(interface),
        }
        Ok(())
    }

    /// Checks a vsock device; its socket is the controller's business.
    ///
    /// # Errors
    /// A CID that Linux keeps for itself.
    pub const fn check_vsock(vsock: &Vsock) -> Result<(), Fault> {
        if vsock.guest_cid < 3 {
            return Err(Fault::Vsock(VsockFault::InvalidCid(vsock.guest_cid)));
        }
        Ok(())
    }

    /// Adds the entropy device.
    ///
    /// # Errors
    /// A limit of operations, which QEMU has none of.
    pub fn set_entropy(&mut self, entropy: Entropy) -> Result<(), Fault> {
        if entropy.rate_limiter.is_some_and(|limiter| limiter.ops.is_some()) {
            return Err(Fault::NotSupported("a limit of operations of the entropy device"));
        }
        self.entropy = Some(entropy);
        Ok(())
    }

    /// Sets where the console goes.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn set_serial(&mut self, serial: Serial) -> Result<(), Fault> {
        if let Some(path) = &serial.serial_out_path {
            crate::emu::log::open_output(path).map_err(|source| Fault::Serial { path: path.clone(), source })?;
        }
        self.serial = serial;
        Ok(())
    }

    /// Gives a restored interface another tap.
    ///
    /// # Errors
    /// An interface that the snapshot does not have, or a name that cannot be.
    pub fn override_network(&mut self, new: &NetworkOverride) -> Result<(), Fault> {
        check_interface_name(&new.host_dev_name)?;
        match self.network_interfaces.iter_mut().find(|known| known.iface_id == new.iface_id) {
            Some(known) => new.host_dev_name.clone_into(&mut known.host_dev_name),
            None => return Err(Fault::Network(NetworkFault::Unknown(new.iface_id.clone()))),
        }
        Ok(())
    }

    /// The drive that the kernel mounts as its root, if one was named.
    #[must_use]
    pub fn root_drive(&self) -> Option<&Drive> {
        self.drives.first().filter(|drive| drive.is_root_device)
    }
}

impl Drive {
    /// Whether the guest may only read it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.is_read_only == Some(true)
    }

    /// Whether the guest's flushes are dropped.
    #[must_use]
    pub fn drops_flushes(&self) -> bool {
        self.cache_type == CacheType::Unsafe
    }

    /// QEMU's name for how its I/O is done.
    #[must_use]
    pub fn aio(&self) -> &'static str {
        match self.io_engine {
            Some(IoEngine::Async) => "io_uring",
            Some(IoEngine::Sync) | None => "threads",
        }
    }
}

/// A kernel or initramfs: something that can be read to its end.
fn open_regular(path: &Path) -> std::io::Result<()> {
    if File::open(path)?.metadata()?.is_dir() {
        return Err(std::io::Error::from_raw_os_error(nix::libc::EISDIR));
    }
    Ok(())
}

/// Sees that a drive's file can be opened as it will be.
///
/// # Errors
/// The file system's.
pub fn open_drive(path: &Path, read_only: bool) -> Result<(), Fault> {
    let fault = |source| Fault::Drive(DriveFault::Open { path: path.to_owned(), source });
    let file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(fault)?;
    if file.metadata().map_err(fault)?.is_dir() {
        return Err(fault(std::io::Error::from_raw_os_error(nix::libc::EISDIR)));
    }
    Ok(())
}

fn check_interface_name(name: &str) -> Result<(), Fault> {
    let printable = name.chars().all(|c| c.is_ascii_graphic() && c != '/' && c != ':');
    if name.is_empty() || name.len() > INTERFACE_NAME_MAX || !printable || name == "." || name == ".." {
        return Err(Fault::Network(NetworkFault::InvalidName(name.to_owned())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn drive(id: &str, root: bool, path: &Path) -> Drive {
        serde_json::from_value(
            json!({"drive_id": id, "is_root_device": root, "is_read_only": false, "path_on_host": path}),
        )
        .unwrap()
    }

    #[test]
    fn sizes_that_cannot_be_change_nothing() {
        let mut resources = Resources::default();
        let refused = |resources: &mut Resources, json| {
            let update: MachineConfigUpdate = serde_json::from_value(json).unwrap();
            resources.update_machine(&update).unwrap_err().to_string()
        };
        for vcpus in [0, 33] {
            assert!(refused(&mut resources, json!({"vcpu_count": vcpus})).contains("The number of vCPUs must be"));
        }
        assert!(refused(&mut resources, json!({"vcpu_count": 3, "smt": true})).contains("if SMT is enabled"));
        assert!(refused(&mut resources, json!({"mem_size_mib": 0})).contains("The memory size (MiB)"));
        assert!(refused(&mut resources, json!({"cpu_template": "T2"})).contains("a CPU template"));
        assert_eq!(resources, Resources::default());
    }

    #[test]
    fn the_root_drive_comes_first_and_is_the_only_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut resources = Resources::default();
        resources.set_drive(drive("a", false, file.path())).unwrap();
        resources.set_drive(drive("r", true, file.path())).unwrap();
        assert_eq!(resources.root_drive().unwrap().drive_id, "r");
        let second = resources.set_drive(drive("s", true, file.path())).unwrap_err().to_string();
        assert_eq!(second, "Drive config error: A root block device already exists!");
        resources.set_drive(drive("a", false, file.path())).unwrap();
        let ids: Vec<_> = resources.drives.iter().map(|drive| drive.drive_id.as_str()).collect();
        assert_eq!(ids, ["r", "a"]);
    }

    #[test]
    fn files_must_be_there() {
        let mut resources = Resources::default();
        let missing = Path::new("/nonexistent/x");
        let fault = resources.set_drive(drive("a", false, missing)).unwrap_err().to_string();
        assert!(fault.ends_with("No such file or directory (os error 2) /nonexistent/x"), "{fault}");
        let source = BootSource { kernel_image_path: missing.into(), initrd_path: None, boot_args: None };
        let fault = resources.set_boot_source(source).unwrap_err().to_string();
        assert_eq!(
            fault,
            "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn interfaces_are_checked() {
        let mut resources = Resources::default();
        let mut set = |id: &str, tap: &str, mac: &str| {
            let body = json!({"iface_id": id, "host_dev_name": tap, "guest_mac": mac});
            resources.set_network(serde_json::from_value(body).unwrap())
        };
        set("eth0", "tap0", "06:00:00:00:00:01").unwrap();
        set("eth0", "tap1", "06:00:00:00:00:01").unwrap();
        let fault = set("eth1", "tap2", "06:00:00:00:00:01").unwrap_err().to_string();
        assert_eq!(fault, "Network config error: The MAC address is already in use: 06:00:00:00:00:01");
        assert!(set("eth1", "a,script=/bin/x", "06:00:00:00:00:02").is_err());
        assert!(set("eth1", "0123456789abcdef", "06:00:00:00:00:02").is_err());
    }
}
