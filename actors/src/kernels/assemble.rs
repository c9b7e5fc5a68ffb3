//! Makes a kernel directory of a kernel and its modules, wherever they come from: a package, a bundle, a user's files.

use super::embedded;
use super::initramfs::{self, EarlyModule};
use super::modules::{self, MODULE_MAX, MODULES_MAX, Modules};
use super::requirements::{self, Checked, GuestLink, KernelConfig};
use super::store::{MODULES_CPIO, MODULES_EXT4, VMLINUX};
use super::{KernelError, KernelRecord, depmod, vmlinux};
use crate::artifacts::{Cancel, Reporter, now_ms};
use crate::ext4::{Label, Limits, Meta, Tree, build};
use messages::ids::{KernelCommandLine, KernelName};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

/// None of the lists beside the modules is longer, in bytes: Debian's longest has a quarter of a megabyte.
const LIST_MAX: u64 = 8 << 20;
/// The most that the modules in an initramfs may have, unpacked: Debian's have 4 MiB.
const EARLY_MAX: usize = 256 << 20;

/// What a guest is booted with where neither catalog nor import says otherwise. `banger-emu` alone adds what its clock and reset
/// need.
///
/// * `reboot=k panic=1`: a guest that ends or panics resets through the keyboard controller, which ends the VMM.
/// * `i8042.*`: no probing for a mouse that is not there, which costs a second.
/// * `apparmor=0`: the border is the VM; docker refuses to start containers where AppArmor is on and its tools are missing.
/// * `net.ifnames=0`: the agent sets `eth0` up before udev runs; udev must not rename it then.
pub const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=1 quiet loglevel=4 8250.nr_uarts=1 \
     i8042.noaux i8042.nomux i8042.dumbkbd apparmor=0 net.ifnames=0";

/// The most that a kernel and its modules may have, in bytes: a distribution's have a gigabyte at most, a build of one's own with all
/// that debuggers read several.
const CONTENTS_MAX: u64 = 16 << 30;

/// Of what a kernel is made of.
pub(super) fn limits(cancel: &Cancel) -> Limits {
    Limits { contents: CONTENTS_MAX, cancel: cancel.token() }
}

/// What a kernel is made of.
#[derive(Debug)]
pub(super) struct Parts {
    /// A bzImage or an ELF kernel.
    pub(super) kernel: Vec<u8>,
    /// The directory of the kernel's modules; maybe empty.
    pub(super) tree: Tree,
    /// What the directory was called; none where nothing said.
    pub(super) version: Option<String>,
    /// The text of its configuration, and where that is from.
    pub(super) config: Option<(String, &'static str)>,
}

/// What it is to be.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) name: KernelName,
    pub(super) source: String,
    pub(super) command_line: Option<KernelCommandLine>,
    pub(super) link: GuestLink,
}

/// Checks it, and writes everything but the record into `directory`.
///
/// # Errors
/// When no guest would boot on it, its parts do not fit one another or cannot be written.
pub(super) fn assemble(
    parts: Parts,
    wanted: Wanted,
    directory: &Path,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<KernelRecord, KernelError> {
    let Parts { kernel, mut tree, version: called, config } = parts;
    let Wanted { name, source, command_line, link } = wanted;
    reporter.step("unpacking the kernel");
    let vmlinux = vmlinux::unpack(kernel, cancel)?;
    let version = embedded::version(&vmlinux).ok_or(KernelError::NoVersion)?;
    if let Some(called) = called.filter(|called| *called != version) {
        return Err(KernelError::OtherKernel { what: "the directory of modules".to_owned(), of: called, version });
    }

    reporter.step("reading the modules");
    let modules = index(&mut tree, cancel)?;
    let built_for = |info: &modules::ModuleInfo| info.built_for.clone().filter(|of| *of != version);
    if let Some((module, of)) = modules.iter().find_map(|(module, info)| Some((module, built_for(info)?))) {
        return Err(KernelError::OtherKernel { what: format!("module `{module}`"), of, version });
    }
    let checked_by = check(link, config, &vmlinux, &tree, &modules)?;

    let path = directory.join(VMLINUX);
    fs::write(&path, &vmlinux).map_err(|source| KernelError::io("write", &path, source))?;
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&vmlinux)));
    drop(vmlinux);
    reporter.step("writing the initramfs");
    write_initramfs(&tree, &modules, &directory.join(MODULES_CPIO))?;
    reporter.step("writing the module drive");
    let built = build(tree, &directory.join(MODULES_EXT4), Label("banger-modules"))?;

    Ok(KernelRecord {
        name,
        version,
        digest,
        source,
        created_at_ms: now_ms(),
        modules_uuid: built.uuid,
        command_line: command_line.map_or_else(|| COMMAND_LINE.to_owned(), String::from),
        checked_by,
    })
}

/// Compares what is known of its options with what a guest needs; gives what they were known by.
fn check(
    link: GuestLink,
    given: Option<(String, &'static str)>,
    vmlinux: &[u8],
    tree: &Tree,
    modules: &Modules,
) -> Result<Option<String>, KernelError> {
    let config = match given {
        Some((text, from)) => Some((KernelConfig::parse(&text).ok_or(KernelError::NoConfig { from })?, from)),
        None => carried(vmlinux, tree, modules)?,
    };
    let checked = requirements::check(link, config.as_ref().map(|(config, _)| config), modules)?;
    Ok(match (checked, config) {
        (Checked::ByConfig, Some((_, from))) => Some(from.to_owned()),
        (Checked::ByModules, _) => Some("its lists of modules, which leave out what can only be built in".to_owned()),
        (Checked::ByConfig | Checked::Unknown, _) => {
            tracing::warn!("a kernel's options could not be checked: it does not carry its configuration");
            None
        }
    })
}

/// The configuration that the kernel itself carries, or its module `configs`.
fn carried(
    vmlinux: &[u8],
    tree: &Tree,
    modules: &Modules,
) -> Result<Option<(KernelConfig, &'static str)>, KernelError> {
    let mut text = embedded::config(vmlinux);
    if let (None, Some((_, info))) = (&text, modules.iter().find(|(name, _)| *name == "configs")) {
        let packed = tree.contents(info.path.as_bytes(), MODULE_MAX)?.unwrap_or_default();
        text = embedded::config(&modules::unpack(&info.path, &packed)?);
    }
    Ok(text.and_then(|text| KernelConfig::parse(&text)).map(|config| (config, "the configuration that it carries")))
}

/// Reads every module and adds what depmod would have written.
fn index(tree: &mut Tree, cancel: &Cancel) -> Result<Modules, KernelError> {
    let mut found = Modules::default();
    let mut count = 0;
    // Kernels have no modules of names that are no text.
    let paths = tree.files(|path| {
        let wanted = std::str::from_utf8(path).is_ok_and(modules::is_module);
        count += usize::from(wanted);
        wanted && count <= MODULES_MAX
    });
    if count > MODULES_MAX {
        return Err(KernelError::TooMuch { what: "files", limit: MODULES_MAX as u64 });
    }
    for path in paths {
        if cancel.is_cancelled() {
            return Err(KernelError::Cancelled);
        }
        let packed = tree.contents(&path, MODULE_MAX)?.unwrap_or_default();
        found.add(&String::from_utf8_lossy(&path), &packed)?;
    }
    let text = |tree: &Tree, name: &str| -> Result<Vec<u8>, KernelError> {
        Ok(tree.contents(name.as_bytes(), LIST_MAX)?.unwrap_or_default())
    };
    found.add_built_in(&String::from_utf8_lossy(&text(tree, "modules.builtin")?));
    let order = text(tree, "modules.order")?;
    let info = text(tree, "modules.builtin.modinfo")?;
    for (name, bytes) in depmod::generate(&found, &String::from_utf8_lossy(&order), &info)? {
        tree.file(name.as_bytes(), Meta::root(0o644), &mut bytes.as_slice())?;
    }
    Ok(found)
}

fn write_initramfs(tree: &Tree, modules: &Modules, path: &Path) -> Result<(), KernelError> {
    let mut early = Vec::new();
    let mut left = EARLY_MAX;
    for module in modules.initramfs_order()? {
        let packed = tree.contents(module.path.as_bytes(), MODULE_MAX)?.unwrap_or_default();
        let bytes = modules::unpack(&module.path, &packed)?;
        left = left
            .checked_sub(bytes.len())
            .ok_or(KernelError::TooMuch { what: "bytes for the initramfs", limit: EARLY_MAX as u64 })?;
        early.push(EarlyModule { file_name: modules::file_name(&module.path).to_owned(), bytes });
    }
    let failed = |source| KernelError::io("write", path, source);
    let mut out = BufWriter::new(File::create(path).map_err(failed)?);
    initramfs::write_modules(&mut out, &early).map_err(failed)?;
    out.flush().map_err(failed)
}
