//! QEMU's arguments for a microvm. Pure: the descriptors are numbers here.
//!
//! Nothing is named in the file system: monitor, console and the guest's port are sockets that QEMU inherits, so there is
//! nothing to clean up and nobody else can connect. Values that a caller chose go in as JSON, or with their commas doubled.

use super::accelerator::Accelerator;
use super::qemu::Manner;
use crate::emu::api::bodies::{Drive, HugePages, NetworkInterface};
use crate::emu::resources::Resources;
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The sockets that QEMU inherits.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors {
    pub qmp: RawFd,
    /// The guest's port.
    pub link: Option<RawFd>,
    /// The console, where its output passes through this process.
    pub console: Option<RawFd>,
}

/// What a machine starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin<'a> {
    /// The kernel, with this command line.
    Kernel(&'a str),
    /// A snapshot's memory, sent later over the monitor. The kernel is in it.
    Snapshot,
}

/// All of QEMU's arguments.
#[must_use]
pub fn arguments(resources: &Resources, fds: Descriptors, origin: Origin<'_>, manner: Manner) -> Vec<OsString> {
    let mut line = Line(Vec::new());
    line.add("-nodefaults");
    line.add("-no-user-config");
    line.option("-display", "none");
    line.add("-no-reboot");
    if manner.sandbox {
        line.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    }
    machine(&mut line, resources, manner.accelerator);
    match (origin, &resources.boot_source) {
        (Origin::Kernel(command_line), Some(source)) => {
            line.option("-kernel", &source.kernel_image_path);
            if let Some(initrd) = &source.initrd_path {
                line.option("-initrd", initrd);
            }
            line.option("-append", command_line);
        }
        (Origin::Kernel(_), None) => {}
        (Origin::Snapshot, _) => {
            line.option("-incoming", "defer");
            line.add("-S");
        }
    }
    line.option("-chardev", format!("socket,id=qmp,fd={}", fds.qmp));
    line.option("-mon", "chardev=qmp,mode=control");
    console(&mut line, resources, fds.console);
    if let Some(link) = fds.link {
        // First, so that the port is always /dev/vport0p1. Port 0 is for consoles alone, so the first usable port is the second.
        line.option("-device", "virtio-serial-device,id=serial0,max_ports=2");
        line.option("-chardev", format!("socket,id=link,fd={link}"));
        line.option("-device", format!("virtserialport,chardev=link,name={}", messages::guest::SERIAL_PORT_NAME));
    }
    for (index, drive) in resources.drives.iter().enumerate() {
        block(&mut line, index, drive);
    }
    for (index, interface) in resources.network_interfaces.iter().enumerate() {
        network(&mut line, index, interface);
    }
    if let Some(entropy) = &resources.entropy {
        let limit = entropy.rate_limiter.and_then(|limiter| limiter.bandwidth);
        let limit = limit.map(|bucket| format!(",max-bytes={},period={}", bucket.size, bucket.refill_time.max(1)));
        line.option("-device", format!("virtio-rng-device{}", limit.unwrap_or_default()));
    }
    line.0
}

fn machine(line: &mut Line, resources: &Resources, accelerator: Accelerator) {
    let config = &resources.machine_config;
    let pages = match config.huge_pages {
        HugePages::None => "",
        HugePages::TwoMiB => ",hugetlb=on,hugetlbsize=2M",
    };
    line.option("-M", "microvm,acpi=on,memory-backend=mem0");
    line.option("-object", format!("memory-backend-memfd,id=mem0,size={}M,share=on{pages}", config.mem_size_mib));
    line.option("-m", format!("{}M", config.mem_size_mib));
    let (accelerator, processor) = match accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        // TCG runs `rep movsb` a byte at a time. Programs and the kernel copy with it where these two are announced: without
        // them the same bytes go through a port three times as fast.
        Accelerator::Tcg => ("tcg,thread=multi", "max,-erms,-fsrm"),
    };
    line.option("-accel", accelerator);
    line.option("-cpu", processor);
    let cpus = config.vcpu_count;
    if config.smt && cpus > 1 {
        line.option("-smp", format!("cpus={cpus},sockets=1,cores={},threads=2", cpus / 2));
    } else {
        line.option("-smp", format!("{cpus}"));
    }
}

fn console(line: &mut Line, resources: &Resources, descriptor: Option<RawFd>) {
    match (descriptor, &resources.serial.serial_out_path) {
        (Some(descriptor), _) => line.option("-chardev", format!("socket,id=console,fd={descriptor}")),
        (None, Some(path)) => {
            let mut value = OsString::from("file,id=console,append=on,path=");
            value.push(escaped(path.as_os_str()));
            line.option("-chardev", value);
        }
        // A terminal's Ctrl-C must reach the guest as a byte, as it does with Firecracker.
        (None, None) => line.option("-chardev", "stdio,id=console,signal=off"),
    }
    line.option("-serial", "chardev:console");
}

fn block(line: &mut Line, index: usize, drive: &Drive) {
    let path = drive.path_on_host.as_deref().unwrap_or_else(|| std::path::Path::new(""));
    let node = json!({
        "driver": "raw",
        "node-name": format!("disk{index}"),
        "read-only": drive.is_read_only(),
        "discard": "unmap",
        "cache": {"direct": false, "no-flush": drive.drops_flushes()},
        "file": {
            "driver": "file",
            "filename": path.to_string_lossy(),
            "aio": drive.aio(),
        },
    });
    line.option("-blockdev", node.to_string());
    line.option("-device", format!("virtio-blk-device,drive=disk{index},id=drive{index},write-cache=on"));
}

fn network(line: &mut Line, index: usize, interface: &NetworkInterface) {
    let mut netdev = OsString::from(format!("tap,id=net{index},script=no,downscript=no,vnet_hdr=on,ifname="));
    netdev.push(escaped(OsStr::new(&interface.host_dev_name)));
    line.option("-netdev", netdev);
    let mut device = format!("virtio-net-device,netdev=net{index},id=nic{index}");
    if let Some(mac) = interface.guest_mac {
        device.push_str(&format!(",mac={mac}"));
    }
    if let Some(mtu) = interface.mtu {
        device.push_str(&format!(",host_mtu={mtu}"));
    }
    line.option("-device", device);
}

/// A value in QEMU's `key=value,…` syntax.
fn escaped(value: &OsStr) -> OsString {
    let mut bytes = Vec::with_capacity(value.len());
    for byte in value.as_bytes() {
        bytes.push(*byte);
        if *byte == b',' {
            bytes.push(b',');
        }
    }
    OsString::from_vec(bytes)
}

struct Line(Vec<OsString>);

impl Line {
    fn add(&mut self, word: &str) {
        self.0.push(word.into());
    }

    fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emu::api::bodies::{BootSource, MachineConfigUpdate, Vsock};

    fn words(resources: &Resources, fds: Descriptors, origin: Origin<'_>) -> String {
        let words = arguments(resources, fds, origin, Manner { sandbox: false, accelerator: Accelerator::Tcg });
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    fn resources() -> Resources {
        let mut resources = Resources {
            boot_source: Some(BootSource {
                kernel_image_path: "/k/vmlinux".into(),
                initrd_path: Some("/k/initrd".into()),
                boot_args: None,
            }),
            vsock: Some(Vsock { guest_cid: 3, uds_path: "v".into(), vsock_id: None }),
            ..Resources::default()
        };
        let update = MachineConfigUpdate { vcpu_count: Some(4), mem_size_mib: Some(512), ..Default::default() };
        resources.update_machine(&update).unwrap();
        resources
    }

    #[test]
    fn a_boot_has_a_kernel_and_few_devices() {
        let fds = Descriptors { qmp: 5, link: Some(6), console: Some(7) };
        let line = words(&resources(), fds, Origin::Kernel("console=ttyS0"));
        insta::assert_snapshot!(line.replace(" -", "\n-"), @r"
        -nodefaults
        -no-user-config
        -display none
        -no-reboot
        -M microvm,acpi=on,memory-backend=mem0
        -object memory-backend-memfd,id=mem0,size=512M,share=on
        -m 512M
        -accel tcg,thread=multi
        -cpu max,-erms,-fsrm
        -smp 4
        -kernel /k/vmlinux
        -initrd /k/initrd
        -append console=ttyS0
        -chardev socket,id=qmp,fd=5
        -mon chardev=qmp,mode=control
        -chardev socket,id=console,fd=7
        -serial chardev:console
        -device virtio-serial-device,id=serial0,max_ports=2
        -chardev socket,id=link,fd=6
        -device virtserialport,chardev=link,name=banger.0
        ");
    }

    #[test]
    fn a_restored_machine_waits_for_its_memory() {
        let line = words(&resources(), Descriptors { qmp: 5, link: None, console: None }, Origin::Snapshot);
        assert!(line.contains("-incoming defer -S"), "{line}");
        assert!(!line.contains("-kernel"), "{line}");
    }

    #[test]
    fn what_callers_name_cannot_add_options() {
        let mut resources = resources();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a,read-only=off");
        std::fs::write(&path, "").unwrap();
        let drive = serde_json::json!(
            {"drive_id": "d", "is_root_device": false, "is_read_only": true, "path_on_host": path, "cache_type": "Writeback"}
        );
        resources.set_drive(serde_json::from_value(drive).unwrap()).unwrap();
        resources.serial.serial_out_path = Some("/c,append=off".into());
        let interface =
            serde_json::json!({"iface_id": "e", "host_dev_name": "t,fd=3", "guest_mac": "06:00:00:00:00:01"});
        resources.set_network(serde_json::from_value(interface).unwrap()).unwrap();
        let line = words(&resources, Descriptors { qmp: 5, link: None, console: None }, Origin::Kernel(""));
        assert!(line.contains("ifname=t,,fd=3 "), "{line}");
        assert!(line.contains("path=/c,,append=off "), "{line}");
        assert!(line.contains(r#"a,read-only=off"},"node-name""#), "{line}");
        assert!(line.contains(r#""no-flush":false"#), "{line}");
    }
}
