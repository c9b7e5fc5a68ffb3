//! Reads the files that say what a build does: never more than there may be, and never for ever where nobody asked for a pipe.

use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// A longer one says nothing of a build, in bytes.
const SOURCE_MAX: u64 = 1 << 20;

/// The bytes of what the user has named: a pipe's as well.
pub(super) fn named(path: &Path) -> io::Result<Vec<u8>> {
    bounded(File::open(path)?)
}

/// The bytes of what lies in a context, which another may have made: a regular file's only, or those of one behind a link.
pub(super) fn found(path: &Path) -> io::Result<Vec<u8>> {
    // Without blocking: a pipe that nobody writes to would be waited for in the open.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    bounded(file)
}

fn bounded(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(SOURCE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SOURCE_MAX {
        return Err(io::Error::other(format!("it has more than {SOURCE_MAX} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_was_found_is_a_regular_file_that_is_not_too_long() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "text").unwrap();
        symlink("file", at("link")).unwrap();
        assert_eq!(found(&at("file")).unwrap(), b"text");
        assert_eq!(found(&at("link")).unwrap(), b"text");

        symlink("/dev/zero", at("zero")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        for refused in ["zero", "fifo", "."] {
            assert_eq!(found(&at(refused)).unwrap_err().to_string(), "it is no regular file", "{refused}");
        }
        File::create(at("long")).unwrap().set_len(SOURCE_MAX + 1).unwrap();
        for read in [found, named] {
            assert_eq!(read(&at("long")).unwrap_err().to_string(), "it has more than 1048576 bytes");
            assert_eq!(read(&at("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        assert!(named(&at("zero")).is_err());
    }
}
