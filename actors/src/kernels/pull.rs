//! Fetches a kernel package of Debian's and makes a kernel directory of it.

use super::assemble::{Parts, Wanted, assemble, limits};
use super::requirements::{CONFIG_MAX, GuestLink};
use super::{KernelError, KernelRecord, KernelStore, vmlinux};
use crate::artifacts::debian::{Recipe, Variant};
use crate::artifacts::{Cancel, Reporter, Staging};
use crate::catalog::{DebianKernel, KernelEntry};
use crate::ext4::Tree;
use crate::ext4::tarball::{Verdict, read_tar};
use std::io::Read;
use std::path::Path;

/// Where the package's kernel and its configuration wait in the tree until they are read; no module file has such a name.
const VMLINUZ: &[u8] = b".vmlinuz";
const CONFIG: &[u8] = b".config";

/// Pulls `entry`, unless a kernel of its name is here already. Blocks; `cancel` ends it.
///
/// # Errors
/// When the package cannot be fetched or no kernel can be made of it; nothing is left behind then.
pub fn pull(
    store: &KernelStore,
    entry: &KernelEntry,
    debian: &DebianKernel,
    link: GuestLink,
    mirror: Option<&str>,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<KernelRecord, KernelError> {
    if let Some(record) = store.present(entry.name.as_str(), reporter)? {
        return Ok(record);
    }
    let recipe = Recipe {
        suite: debian.suite.clone(),
        variant: Variant::Extract,
        packages: vec![debian.package.clone()],
        scripts: Vec::new(),
        mirror: mirror.map(str::to_owned),
    };
    let staging = Staging::create(store.directory(), entry.name.as_str())?;
    let parts = recipe.run(staging.path(), cancel, reporter, |tar| read_package(tar, staging.path(), cancel))?;
    let wanted = Wanted {
        name: entry.name.clone(),
        source: format!("debian:{}/{}", debian.suite, debian.package),
        command_line: entry.command_line.clone(),
        link,
    };
    let record = assemble(parts, wanted, staging.path(), cancel, reporter)?;
    store.publish(staging, &record)?;
    reporter.finished(format!("{} {}", record.name, record.version));
    Ok(record)
}

/// Takes the parts that matter out of the package.
fn read_package(tar: &mut dyn Read, directory: &Path, cancel: &Cancel) -> Result<Parts, KernelError> {
    let mut tree = Tree::limited(directory, limits(cancel))?;
    let mut version = None;
    read_tar(&mut tree, tar, |path| {
        if path.starts_with(b"boot/vmlinuz-") {
            return Verdict::Rename(VMLINUZ.to_vec());
        }
        if path.starts_with(b"boot/config-") {
            return Verdict::Rename(CONFIG.to_vec());
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
    let kernel = tree.contents(VMLINUZ, vmlinux::UNPACKED_MAX)?.ok_or(KernelError::Incomplete("boot/vmlinuz"))?;
    let config = tree.contents(CONFIG, CONFIG_MAX)?;
    tree.remove(VMLINUZ)?;
    tree.remove(CONFIG)?;
    let config = config.map(|text| (String::from_utf8_lossy(&text).into_owned(), "the package's configuration"));
    Ok(Parts { kernel, tree, version: Some(version), config })
}

/// The version and the path below it, for `usr/lib/modules/VERSION/…` (`lib/modules` up to Debian 12).
fn below_modules(path: &[u8]) -> Option<(&str, &[u8])> {
    let rest = path.strip_prefix(b"usr/").unwrap_or(path).strip_prefix(b"lib/modules/")?;
    let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let version = std::str::from_utf8(&rest[..end]).ok().filter(|version| !version.is_empty())?;
    Some((version, rest.get(end + 1..).unwrap_or_default()))
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
