//! Makes a kernel of a user's own files. Reads them and writes nothing there; paths are absolute, symbolic links inside the
//! directory of modules are passed over.

use super::assemble::{Parts, Wanted, assemble, limits};
use super::requirements::{CONFIG_MAX, GuestLink};
use super::{KernelError, KernelRecord, KernelStore, embedded, initrd, modules, vmlinux};
use crate::artifacts::{Cancel, Reporter, Staging, open_file};
use crate::ext4::{Meta, Tree};
use messages::image::KernelImport;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// No initramfs is longer, in bytes.
const INITRD_MAX: u64 = 2 << 30;

/// Makes the kernel that is wanted. Blocks; `cancel` ends it.
///
/// # Errors
/// When the name is taken, a file cannot be read or no kernel be made of them; nothing is left behind then.
pub fn import(
    store: &KernelStore,
    wanted: &KernelImport,
    link: GuestLink,
    cancel: &Cancel,
    reporter: &Reporter,
) -> Result<KernelRecord, KernelError> {
    if store.find(wanted.name.as_str())?.is_some() {
        return Err(KernelError::Taken { name: wanted.name.clone() });
    }
    let path = Path::new(wanted.vmlinux.as_str());
    let record = || -> Result<KernelRecord, KernelError> {
        reporter.step("reading the kernel");
        let kernel = vmlinux::unpack(read(path, vmlinux::UNPACKED_MAX)?, cancel)?;
        let config = wanted.config.as_ref().map(|path| config(Path::new(path.as_str()))).transpose()?;
        let staging = Staging::create(store.directory(), wanted.name.as_str())?;
        let mut tree = Tree::limited(staging.path(), limits(cancel))?;
        if let Some(given) = &wanted.modules {
            // The version decides which directory is meant.
            let version = embedded::version(&kernel).ok_or(KernelError::NoVersion)?;
            let given = Path::new(given.as_str());
            if given.is_file() {
                copy_from_initrd(&mut tree, given, &version, cancel)?;
            } else {
                copy(&mut tree, &directory(given, &version)?, cancel)?;
            }
        }
        let wanted = Wanted {
            name: wanted.name.clone(),
            source: format!("file:{}", wanted.vmlinux),
            command_line: wanted.command_line.clone(),
            link,
        };
        let record = assemble(Parts { kernel, tree, version: None, config }, wanted, staging.path(), cancel, reporter)?;
        if cancel.is_cancelled() {
            return Err(KernelError::Cancelled);
        }
        store.publish(staging, &record)?;
        Ok(record)
    };
    let record = record().map_err(|source| source.of_files(path))?;
    reporter.finished(format!("{} {}", record.name, record.version));
    Ok(record)
}

/// The directory that is meant: `lib/modules/VERSION`, the one that holds it, or what `INSTALL_MOD_PATH` named.
fn directory(given: &Path, version: &str) -> Result<PathBuf, KernelError> {
    let inside = ["", "lib/modules", "usr/lib/modules"].map(|between| given.join(between).join(version));
    if let Some(found) = inside.into_iter().find(|path| path.is_dir()) {
        return Ok(found);
    }
    if ["kernel", "modules.order", "modules.builtin"].iter().any(|name| given.join(name).exists()) {
        return Ok(given.to_owned());
    }
    // Says why where it is not there at all, or not to be read.
    fs::read_dir(given).map_err(|source| KernelError::io("read", given, source))?;
    Err(KernelError::NoModules { path: given.to_owned(), version: version.to_owned() })
}

/// Copies modules and their lists, as root's: whose they are here means nothing in a guest.
fn copy(tree: &mut Tree, directory: &Path, cancel: &Cancel) -> Result<(), KernelError> {
    let mut waiting = vec![(directory.to_owned(), String::new())];
    while let Some((path, below)) = waiting.pop() {
        let failed = |source| KernelError::io("read", &path, source);
        let mut entries = fs::read_dir(&path).map_err(failed)?.collect::<io::Result<Vec<_>>>().map_err(failed)?;
        // Equal directories give equal drives.
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let within = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                waiting.push((entry.path(), within));
            } else if kind.is_file() && (modules::is_module(name) || within.starts_with("modules.")) {
                if cancel.is_cancelled() {
                    return Err(KernelError::Cancelled);
                }
                let mut file = open(&entry.path(), vmlinux::UNPACKED_MAX)?;
                tree.file(within.as_bytes(), Meta::root(0o644), &mut file)?;
            }
        }
    }
    Ok(())
}

/// The same, where the modules are in an initramfs.
fn copy_from_initrd(tree: &mut Tree, path: &Path, version: &str, cancel: &Cancel) -> Result<(), KernelError> {
    let file = open(path, INITRD_MAX)?;
    match initrd::read(file, version, tree, cancel) {
        _ if cancel.is_cancelled() => Err(KernelError::Cancelled),
        Ok(0) => Err(KernelError::NoModules { path: path.to_owned(), version: version.to_owned() }),
        Ok(_) => Ok(()),
        Err(source) => Err(KernelError::io("read", path, source)),
    }
}

fn config(path: &Path) -> Result<(String, &'static str), KernelError> {
    let from = "the configuration given";
    let text = embedded::config_text(&read(path, CONFIG_MAX)?);
    text.map(|text| (text, from)).ok_or(KernelError::NoConfig { from })
}

fn read(path: &Path, most: u64) -> Result<Vec<u8>, KernelError> {
    let mut bytes = Vec::new();
    open(path, most)?.read_to_end(&mut bytes).map_err(|source| KernelError::io("read", path, source))?;
    Ok(bytes)
}

/// Opens a regular file of at most so many bytes.
fn open(path: &Path, most: u64) -> Result<io::Take<File>, KernelError> {
    let failed = |source| KernelError::io("read", path, source);
    let file = open_file(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() > most {
        return Err(failed(io::Error::other(format!("it is larger than {} MiB", most >> 20))));
    }
    Ok(file.take(most))
}

#[cfg(test)]
mod tests;
