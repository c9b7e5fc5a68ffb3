//! Unpacks a tar archive from stdin: owners, modes and times as the archive has them. Paths lead where the guest's own links
//! lead; none leads out of the directory that it is unpacked into.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

/// What the archive's files become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpacked {
    /// Files in the directory.
    Into,
    /// The one file is to have this very path, unless a directory is there.
    AsFile,
}

/// Unpacks stdin to `at`.
///
/// # Errors
/// It is no archive, or the file system refuses.
pub fn run(at: &Path, how: Unpacked) -> io::Result<()> {
    unpack(io::stdin().lock(), at, how)
}

/// Unpacks an archive to `at`.
///
/// # Errors
/// As [`run`].
pub fn unpack(archive: impl Read, at: &Path, how: Unpacked) -> io::Result<()> {
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(nix::unistd::geteuid().is_root());
    archive.set_overwrite(true);
    let named = |path: &Path, error: &io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if how == Unpacked::AsFile && !at.is_dir() {
        let parent = at.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(|error| named(parent, &error))?;
        let mut entries = archive.entries()?;
        let mut entry = entries.next().ok_or_else(|| io::Error::other("an empty archive"))??;
        entry.unpack(at)?;
        return match entries.next() {
            None => Ok(()),
            Some(_) => Err(io::Error::other(format!("{} is to be one file, and several came", at.display()))),
        };
    }
    fs::create_dir_all(at).map_err(|error| named(at, &error))?;
    archive.unpack(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o640);
            header.set_uid(nix::unistd::geteuid().as_raw().into());
            header.set_gid(nix::unistd::getegid().as_raw().into());
            header.set_mtime(1);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn one_file_becomes_the_path_or_goes_into_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        unpack(archive(&[("a", "1")]).as_slice(), &at("new/b"), Unpacked::AsFile).unwrap();
        assert_eq!(fs::read_to_string(at("new/b")).unwrap(), "1");
        unpack(archive(&[("a", "2")]).as_slice(), &at("new"), Unpacked::AsFile).unwrap();
        assert_eq!(fs::read_to_string(at("new/a")).unwrap(), "2");
        unpack(archive(&[("c/d", "3"), ("e", "4")]).as_slice(), &at("x/y"), Unpacked::Into).unwrap();
        assert_eq!(fs::read_to_string(at("x/y/c/d")).unwrap(), "3");
        assert!(unpack(archive(&[("a", "1"), ("b", "2")]).as_slice(), &at("one"), Unpacked::AsFile).is_err());
    }

    #[test]
    fn what_is_there_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a"), "a longer old content").unwrap();
        unpack(archive(&[("a", "new")]).as_slice(), root.path(), Unpacked::Into).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("a")).unwrap(), "new");
    }
}
