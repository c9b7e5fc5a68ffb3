//! Kernels made of files made here.

#![cfg(test)]

use super::*;
use crate::kernels::fixtures::{kernel, module};
use crate::kernels::requirements::all_built_in;
use crate::kernels::{COMMAND_LINE, initramfs};
use messages::reply::Stage;
use messages::{ErrorKind, WireError};
use std::io::Write as _;
use std::process::Command;

const VERSION: &str = "6.9.1-mine";

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, path: &str, bytes: &[u8]) -> String {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    }

    fn store(&self) -> KernelStore {
        KernelStore::new(self.0.path().join("kernels"))
    }

    fn import(&self, wanted: &KernelImport) -> Result<KernelRecord, KernelError> {
        import(&self.store(), wanted, GuestLink::SerialPort, &Cancel::new(), &Reporter::silent(Stage::KernelPull))
    }

    fn left(&self) -> usize {
        fs::read_dir(self.store().directory()).map_or(0, Iterator::count)
    }

    /// virtio_blk and overlay as modules, in a tree as `make modules_install` leaves it.
    fn modules(&self) -> String {
        let magic = format!("vermagic={VERSION} SMP mod_unload");
        let below = format!("lib/modules/{VERSION}");
        self.write(&format!("{below}/kernel/drivers/block/virtio_blk.ko"), &module(&["depends=", &magic]));
        let packed = zstd::encode_all(module(&["depends=", &magic]).as_slice(), 1).unwrap();
        self.write(&format!("{below}/kernel/fs/overlay.ko.zst"), &packed);
        self.write(&format!("{below}/modules.builtin"), b"kernel/fs/ext4/ext4.ko\n");
        self.write(&format!("{below}/notes.txt"), b"not ours");
        std::os::unix::fs::symlink("/etc", self.0.path().join(&below).join("build")).unwrap();
        self.0.path().join("lib/modules").display().to_string()
    }
}

fn wanted(vmlinux: &str) -> KernelImport {
    KernelImport {
        name: "mine".parse().unwrap(),
        vmlinux: vmlinux.parse().unwrap(),
        modules: None,
        config: None,
        command_line: None,
    }
}

fn with_modules() -> String {
    all_built_in().replace("VIRTIO_BLK=y", "VIRTIO_BLK=m").replace("OVERLAY_FS=y", "OVERLAY_FS=m")
}

#[test]
fn a_kernel_with_modules_is_made_whole() {
    let place = Place::new();
    let vmlinux = place.write("vmlinux", &kernel(VERSION, Some(&with_modules())));
    let import = KernelImport {
        modules: Some(place.modules().parse().unwrap()),
        command_line: Some("console=ttyS0 mine".parse().unwrap()),
        ..wanted(&vmlinux)
    };
    let record = place.import(&import).unwrap();
    assert_eq!((record.version.as_str(), record.command_line.as_str()), (VERSION, "console=ttyS0 mine"));
    assert_eq!(record.checked_by.as_deref(), Some("the configuration that it carries"));
    assert_eq!(record.source, format!("file:{vmlinux}"));
    let directory = place.store().path("mine");
    let drive = directory.join("modules.ext4").display().to_string();
    assert!(Command::new("e2fsck").args(["-fn", &drive]).output().unwrap().status.success());
    let listed = Command::new("debugfs").args(["-R", "ls -p /", &drive]).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("/modules.dep.bin/") && listed.contains("/kernel/"), "{listed}");
    assert!(!listed.contains("notes") && !listed.contains("build"), "{listed}");
    let early = fs::read(directory.join("modules.cpio")).unwrap();
    let order = b"virtio_blk.ko\noverlay.ko\n";
    assert!(early.windows(order.len()).any(|window| window == order), "{}", initramfs::ORDER);

    // Again, of another directory that means the same one: the same drive.
    let whole = format!("{}/{VERSION}", place.modules_again());
    let again = KernelImport { name: "again".parse().unwrap(), modules: Some(whole.parse().unwrap()), ..import };
    assert_eq!(place.import(&again).unwrap().modules_uuid, record.modules_uuid);
}

impl Place {
    fn modules_again(&self) -> String {
        self.0.path().join("lib/modules").display().to_string()
    }
}

fn newc(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, contents) in files {
        let mode = if contents.is_empty() { 0o040_755 } else { 0o100_644 };
        let length = u32::try_from(contents.len()).unwrap();
        let mut writer = cpio::newc::Builder::new(name).mode(mode).write(bytes, length);
        writer.write_all(contents).unwrap();
        bytes = writer.finish().unwrap();
    }
    cpio::newc::trailer(bytes).unwrap()
}

/// As distributions make them: microcode first, plain, filled up with zeros, and then everything else.
#[test]
fn modules_are_found_in_an_initramfs_too() {
    let place = Place::new();
    let vmlinux = place.write("vmlinux", &kernel(VERSION, Some(&with_modules())));
    place.modules();
    let below = place.0.path().join("lib/modules").join(VERSION);
    let file = |path: &str| fs::read(below.join(path)).unwrap();
    let names = ["kernel/drivers/block/virtio_blk.ko", "kernel/fs/overlay.ko.zst", "modules.builtin"];
    let files: Vec<(String, Vec<u8>)> =
        names.iter().map(|name| (format!("usr/lib/modules/{VERSION}/{name}"), file(name))).collect();
    let mut members: Vec<(&str, &[u8])> = vec![("init", b"#!/bin/sh"), ("usr", b"")];
    members.extend(files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    let main = newc(&members);
    let mut early = newc(&[("kernel/x86/microcode/GenuineIntel.bin", &[7; 3000])]);
    early.resize(early.len().next_multiple_of(512) + 1024, 0);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&main).unwrap();
    let mut xz = Vec::new();
    liblzma::read::XzEncoder::new(main.as_slice(), 1).read_to_end(&mut xz).unwrap();
    let packed = [main.clone(), zstd::encode_all(main.as_slice(), 1).unwrap(), gzip.finish().unwrap(), xz];
    let mut uuids = Vec::new();
    for (number, packed) in packed.iter().enumerate() {
        let initrd = place.write("initrd.img", &[early.as_slice(), packed].concat());
        let name = format!("from-{number}").parse().unwrap();
        let import = KernelImport { name, modules: Some(initrd.parse().unwrap()), ..wanted(&vmlinux) };
        uuids.push(place.import(&import).unwrap().modules_uuid);
    }
    assert!(uuids.iter().all(|uuid| *uuid == uuids[0]), "{uuids:?}");
    let drive = place.store().path("from-0").join("modules.ext4").display().to_string();
    let listed = Command::new("debugfs").args(["-R", "ls -p /kernel/fs", &drive]).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("/overlay.ko.zst/"), "{listed:?}");
    let left = place.left();
    for (bytes, said) in [
        (early.clone(), "holds no modules of kernel"),
        (b"hello, this is no initramfs".to_vec(), "neither cpio nor packed"),
        (main[..main.len() / 2].to_vec(), "failed to read"),
        (packed[1][..packed[1].len() / 2].to_vec(), "failed to read"),
    ] {
        let initrd = place.write("initrd.img", &bytes);
        let import =
            KernelImport { name: "bad".parse().unwrap(), modules: Some(initrd.parse().unwrap()), ..wanted(&vmlinux) };
        let error = WireError::from(&place.import(&import).unwrap_err());
        assert!(error.kind != ErrorKind::Internal && error.to_string().contains(said), "{error}");
    }
    assert_eq!(place.left(), left);
}

#[test]
fn what_a_guest_needs_is_looked_for_before_anything_is_made() {
    let place = Place::new();
    let import = |config: Option<&str>, carried: Option<&str>| {
        let vmlinux = place.write("vmlinux", &kernel(VERSION, carried));
        let config = config.map(|text| place.write("config", text.as_bytes()).parse().unwrap());
        place.import(&KernelImport { config, ..wanted(&vmlinux) })
    };
    let lacking = all_built_in().replace("CONFIG_VIRTIO_MMIO=y\n", "");
    for (given, carried) in [(Some(lacking.as_str()), None), (None, Some(lacking.as_str()))] {
        let error = WireError::from(&import(given, carried).unwrap_err());
        assert_eq!(error.kind, ErrorKind::Usage);
        let said = "no guest would boot on this kernel, it lacks CONFIG_VIRTIO_MMIO (built in or as a module) for the bus of its \
                    devices";
        assert!(error.to_string().ends_with(said), "{error}");
    }
    let error = import(Some(&with_modules()), None).unwrap_err();
    assert!(WireError::from(&error).to_string().contains("`virtio_blk.ko` is not among the modules"), "{error:?}");
    let error = import(Some("hello\n"), None).unwrap_err();
    assert!(WireError::from(&error).to_string().contains("is no kernel configuration"), "{error:?}");
    assert_eq!(place.left(), 0);

    // What is given goes before what is carried.
    let record = import(Some(&all_built_in()), Some(&lacking)).unwrap();
    assert_eq!(record.checked_by.as_deref(), Some("the configuration given"));
    assert_eq!(record.command_line, COMMAND_LINE);
    place.store().delete("mine").unwrap().remove().unwrap();
    assert_eq!(import(None, None).unwrap().checked_by, None, "nothing says anything");
}

#[test]
fn parts_of_two_kernels_are_no_kernel() {
    let place = Place::new();
    let vmlinux = place.write("vmlinux", &kernel("6.9.2-other", Some(&with_modules())));
    let modules = place.modules_again();
    place.modules();
    let import = |modules: &str| {
        let error = place.import(&KernelImport { modules: Some(modules.parse().unwrap()), ..wanted(&vmlinux) });
        WireError::from(&error.unwrap_err())
    };
    let error = import(&modules);
    assert!(error.to_string().contains("holds no modules of kernel 6.9.2-other"), "{error}");
    let error = import(&format!("{modules}/{VERSION}"));
    assert!(error.to_string().contains("is of kernel 6.9.1-mine, and the kernel is 6.9.2-other"), "{error}");
    assert_eq!((error.kind, place.left()), (ErrorKind::Usage, 0));
}

#[test]
fn what_is_no_kernel_leaves_nothing_and_a_name_is_given_once() {
    let place = Place::new();
    let fifo = place.0.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let no_banner = kernel("", None);
    for (path, said) in [
        (place.write("text", b"hello"), "no compressed kernel was found"),
        (place.write("nameless", &no_banner), "does not say its version"),
        (place.write("half", &kernel(VERSION, None)[..100]), "cut off"),
        (fifo.display().to_string(), "no regular file"),
        (place.0.path().display().to_string(), "no regular file"),
        (place.0.path().join("none").display().to_string(), "No such file"),
    ] {
        let error = WireError::from(&place.import(&wanted(&path)).unwrap_err());
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!((error.kind, place.left()), (ErrorKind::Usage, 0), "{error}");
    }
    let vmlinux = place.write("vmlinux", &kernel(VERSION, Some(&all_built_in())));
    place.import(&wanted(&vmlinux)).unwrap();
    let error = WireError::from(&place.import(&wanted(&vmlinux)).unwrap_err());
    assert_eq!((error.kind, place.left()), (ErrorKind::Conflict, 1));
}

#[test]
fn names_in_an_initramfs_are_no_longer_than_paths() {
    let place = Place::new();
    let vmlinux = place.write("vmlinux", &kernel(VERSION, Some(&with_modules())));
    let mut archive = newc(&[("a", b"1")]);
    // Of 4 GiB, and so many bytes of it as one cares to send.
    archive[94..102].copy_from_slice(b"fffffff0");
    archive.resize(1 << 20, b'a');
    let initrd = place.write("initrd.img", &archive);
    let error = place.import(&KernelImport { modules: Some(initrd.parse().unwrap()), ..wanted(&vmlinux) }).unwrap_err();
    assert!(format!("{:?}", WireError::from(&error).chain).contains("longer than any path"), "{error:?}");
}
