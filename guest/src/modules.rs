//! Loads the kernel modules that the initramfs carries. Must not need anything but `/lib/modules` there.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// Where the initramfs keeps its modules, uncompressed, beside a file `order` that names them in the order of their
/// dependencies, one a line.
pub const DIRECTORY: &str = "/lib/modules";

/// Loads every module named in `order`. A module that is built in, loaded or absent is fine; any other failure is returned
/// for the log, as a guest without one device may still boot.
#[must_use]
pub fn load_all(directory: &Path) -> Vec<(String, io::Error)> {
    let Ok(order) = fs::read_to_string(directory.join("order")) else {
        return Vec::new();
    };
    order
        .lines()
        .map(str::trim)
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .filter_map(|name| load(directory, name).err().map(|error| (name.to_owned(), error)))
        .collect()
}

fn load(directory: &Path, name: &str) -> io::Result<()> {
    let file_name = if name.ends_with(".ko") { name.to_owned() } else { format!("{name}.ko") };
    let file = match File::open(directory.join(file_name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    match crate::sys::load_module(file.as_fd()) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_modules_at_all_is_fine() {
        let empty = tempfile::tempdir().unwrap();
        assert!(load_all(empty.path()).is_empty());
        fs::write(empty.path().join("order"), "# none here\n\nabsent\nalso-absent.ko\n").unwrap();
        assert!(load_all(empty.path()).is_empty());
    }

    #[test]
    fn a_file_that_is_no_module_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("order"), "bad\n").unwrap();
        fs::write(directory.path().join("bad.ko"), "no ELF").unwrap();
        let failed = load_all(directory.path());
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].0, "bad");
    }
}
