//! Fetches a kernel package and makes a kernel directory of it.

use super::initramfs::{self, EarlyModule};
use super::modules::{self, Modules};
use super::store::{MODULES_CPIO, MODULES_EXT4, VMLINUX};
use super::{KernelError, KernelRecord, KernelStore, depmod, vmlinux};
use crate::artifacts::debian::{Recipe, Variant};
use crate::artifacts::{Cancel, Reporter, Staging, now_ms};
use crate::catalog::{KernelEntry, KernelSource};
use crate::ext4::tarball::{Verdict, read_tar};
use crate::ext4::{Label, Meta, Tree, build};
use messages::ids::KernelName;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

/// What every guest is booted with. `banger-emu` alone adds what its clock and reset need.
///
/// * `reboot=k panic=1`: a guest that ends or panics resets through the keyboard controller, which ends the VMM.
/// * `i8042.*`: no probing for a mouse that is not there, which costs a second.
/// * `apparmor=0`: the border is the VM; docker refuses to start containers where AppArmor is on and its tools are missing.
/// * `net.ifnames=0`: the agent sets `eth0` up before udev runs; udev must not rename it then.
const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=1 quiet loglevel=4 8250.nr_uarts=1 \
     i8042.noaux i8042.nomux i8042.dumbkbd apparmor=0 net.ifnames=0";

/// Where the package's kernel waits in the tree until it is unpacked; no module file has that name.
const VMLINUZ: &[u8] = b".vmlinuz";

/// Pulls `entry`, unless a kernel of its name is here already. Blocks; `cancel` ends it.
///
/// # Errors
/// When the package cannot be fetched or no kernel can be made of it; nothing is left behind then.
pub fn pull(
    store: &KernelStore,
    entry: &KernelEntry,
    mirror: Option<&str>,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<KernelRecord, KernelError> {
    if let Some(record) = store.find(entry.name.as_str())? {
        reporter.finished(format!("{} is here already", record.name));
        return Ok(record);
    }
    let KernelSource::Debian(debian) = &entry.source;
    let recipe = Recipe {
        suite: debian.suite.clone(),
        variant: Variant::Extract,
        packages: vec![debian.package.clone()],
        scripts: Vec::new(),
        mirror: mirror.map(str::to_owned),
    };
    let staging = Staging::create(store.directory(), entry.name.as_str())?;
    let package = recipe.run(staging.path(), cancel, reporter, |tar| Package::read(tar, staging.path()))?;
    let record = assemble(
        package,
        staging.path(),
        entry.name.clone(),
        format!("debian:{}/{}", debian.suite, debian.package),
        reporter,
    )?;
    store.publish(staging, &record)?;
    reporter.finished(format!("{} {}", record.name, record.version));
    Ok(record)
}

/// The parts of the package that matter.
struct Package {
    version: String,
    /// The modules' directory, and the kernel under [`VMLINUZ`].
    tree: Tree,
}

impl Package {
    fn read(tar: &mut dyn Read, directory: &Path) -> Result<Self, KernelError> {
        let mut tree = Tree::create(directory)?;
        let mut version = None;
        read_tar(&mut tree, tar, |path| {
            if path.starts_with(b"boot/vmlinuz-") {
                return Verdict::Rename(VMLINUZ.to_vec());
            }
            match below_modules(path) {
                Some((found, rest)) => {
                    let known = version.get_or_insert_with(|| found.to_owned());
                    // A second kernel in one package would be a surprise; its modules fit no kernel of ours.
                    if known == found { Verdict::Rename(rest.to_vec()) } else { Verdict::Drop }
                }
                None => Verdict::Drop,
            }
        })?;
        let version = version.ok_or(KernelError::Incomplete("usr/lib/modules"))?;
        Ok(Self { version, tree })
    }
}

/// The version and the path below it, for `usr/lib/modules/VERSION/…` (`lib/modules` up to Debian 12).
fn below_modules(path: &[u8]) -> Option<(&str, &[u8])> {
    let rest = path.strip_prefix(b"usr/").unwrap_or(path).strip_prefix(b"lib/modules/")?;
    let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let version = std::str::from_utf8(&rest[..end]).ok().filter(|version| !version.is_empty())?;
    Some((version, rest.get(end + 1..).unwrap_or_default()))
}

fn assemble(
    package: Package,
    directory: &Path,
    name: KernelName,
    source: String,
    reporter: &Reporter,
) -> Result<KernelRecord, KernelError> {
    let Package { version, mut tree } = package;
    reporter.step("unpacking the kernel");
    let vmlinuz = tree.contents(VMLINUZ)?.ok_or(KernelError::Incomplete("boot/vmlinuz"))?;
    let kernel = vmlinux::unpack(&vmlinuz)?;
    tree.remove(VMLINUZ)?;
    let path = directory.join(VMLINUX);
    fs::write(&path, &kernel).map_err(|source| KernelError::io("write", &path, source))?;
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&kernel)));
    drop(kernel);

    reporter.step("reading the modules");
    let modules = index(&mut tree)?;
    reporter.step("writing the initramfs");
    write_initramfs(&tree, &modules, &directory.join(MODULES_CPIO))?;
    reporter.step("writing the module drive");
    let built = build(&tree, &directory.join(MODULES_EXT4), Label("banger-modules"))?;

    Ok(KernelRecord {
        name,
        version,
        digest,
        source,
        created_at_ms: now_ms(),
        modules_uuid: built.uuid,
        command_line: COMMAND_LINE.to_owned(),
    })
}

/// Reads every module and adds what depmod would have written.
fn index(tree: &mut Tree) -> Result<Modules, KernelError> {
    let mut found = Modules::default();
    for path in tree.files() {
        if modules::is_module(&path) {
            let packed = tree.contents(path.as_bytes())?.unwrap_or_default();
            found.add(&path, &packed)?;
        }
    }
    let text = |tree: &Tree, name: &str| -> Result<Vec<u8>, KernelError> {
        Ok(tree.contents(name.as_bytes())?.unwrap_or_default())
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
    for module in modules.initramfs_order()? {
        let packed = tree.contents(module.path.as_bytes())?.unwrap_or_default();
        early.push(EarlyModule {
            file_name: modules::file_name(&module.path).to_owned(),
            bytes: modules::unpack(&module.path, &packed)?,
        });
    }
    let failed = |source| KernelError::io("write", path, source);
    let mut out = BufWriter::new(File::create(path).map_err(failed)?);
    initramfs::write_modules(&mut out, &early).map_err(failed)?;
    out.flush().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_paths_are_split_at_the_version() {
        let split = |path: &'static str| below_modules(path.as_bytes());
        assert_eq!(split("usr/lib/modules/6.12/kernel/a.ko"), Some(("6.12", &b"kernel/a.ko"[..])));
        assert_eq!(split("lib/modules/6.1/modules.order"), Some(("6.1", &b"modules.order"[..])));
        assert_eq!(split("usr/lib/modules/6.12"), Some(("6.12", &b""[..])));
        assert_eq!(split("usr/lib/modules"), None);
        assert_eq!(split("usr/lib/modules-load.d/x"), None);
    }
}
