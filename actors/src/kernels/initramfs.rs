//! The archive that the kernel unpacks before it runs `/init`: newc cpio (Documentation/driver-api/early-userspace/
//! buffer-format.rst). Two archives in one file: a kernel's modules, made once, and the agent, put after them.

use cpio::newc::{Builder, ModeFileType, trailer};
use std::io::{self, Write};

/// What the agent needs before it has mounted anything.
const DIRECTORIES: [&str; 7] = ["dev", "proc", "sys", "run", "newroot", "lib", "lib/modules"];
/// Where the agent finds the names of the modules, one a line, in the order in which they are to be loaded.
pub const ORDER: &str = "lib/modules/order";

/// A module to load early, unpacked.
#[derive(Debug)]
pub struct EarlyModule {
    /// `virtio_blk.ko`
    pub file_name: String,
    pub bytes: Vec<u8>,
}

/// Writes directories, the console's node and the modules, which are in loading order.
///
/// # Errors
/// When `out` refuses.
pub fn write_modules(mut out: impl Write, modules: &[EarlyModule]) -> io::Result<()> {
    let mut inode = 1..;
    let mut entry = |name: &str| Builder::new(name).ino(inode.next().expect("the range has no end"));
    for directory in DIRECTORIES {
        out = entry(directory).mode(0o755).set_mode_file_type(ModeFileType::Directory).write(out, 0).finish()?;
    }
    // The kernel opens it for /init's stdin, stdout and stderr before there is a devtmpfs.
    let console = entry("dev/console").mode(0o600).set_mode_file_type(ModeFileType::Char).rdev_major(5).rdev_minor(1);
    out = console.write(out, 0).finish()?;
    let mut order = String::new();
    for module in modules {
        let name = format!("lib/modules/{}", module.file_name);
        out = file(out, entry(&name).mode(0o644), &module.bytes)?;
        order.push_str(&module.file_name);
        order.push('\n');
    }
    out = file(out, entry(ORDER).mode(0o644), order.as_bytes())?;
    trailer(out).map(drop)
}

/// Writes the agent as `/init`.
///
/// # Errors
/// When `out` refuses.
pub fn write_init(mut out: impl Write, agent: &[u8]) -> io::Result<()> {
    out = file(out, Builder::new("init").ino(1).mode(0o755), agent)?;
    trailer(out).map(drop)
}

fn file<W: Write>(out: W, builder: Builder, bytes: &[u8]) -> io::Result<W> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut writer = builder.set_mode_file_type(ModeFileType::Regular).write(out, length);
    writer.write_all(bytes)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn entries(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let mut reader = cpio::NewcReader::new(bytes).unwrap();
            if reader.entry().is_trailer() {
                return found;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut contents = Vec::new();
            reader.read_to_end(&mut contents).unwrap();
            found.push((name, mode, contents));
            bytes = reader.finish().unwrap();
        }
    }

    #[test]
    fn modules_directories_and_console_are_read_back() {
        let modules = [
            EarlyModule { file_name: "failover.ko".to_owned(), bytes: b"one".to_vec() },
            EarlyModule { file_name: "virtio_net.ko".to_owned(), bytes: vec![7; 5000] },
        ];
        let mut bytes = Vec::new();
        write_modules(&mut bytes, &modules).unwrap();
        let found = entries(&bytes);
        let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
        let expected = ["dev", "proc", "sys", "run", "newroot", "lib", "lib/modules", "dev/console"];
        assert_eq!(names[..8], expected);
        assert_eq!(names[8..], ["lib/modules/failover.ko", "lib/modules/virtio_net.ko", ORDER]);
        assert_eq!(found[0].1, 0o040_755);
        assert_eq!(found[7].1, 0o020_600);
        assert_eq!(found[9], ("lib/modules/virtio_net.ko".to_owned(), 0o100_644, vec![7; 5000]));
        assert_eq!(found[10].2, b"failover.ko\nvirtio_net.ko\n");
        // The kernel wants the next archive at a multiple of four.
        assert!(bytes.len().is_multiple_of(4));
    }

    #[test]
    fn the_agent_is_an_executable_init() {
        let mut bytes = Vec::new();
        write_init(&mut bytes, b"\x7fELF agent").unwrap();
        assert_eq!(entries(&bytes), [("init".to_owned(), 0o100_755, b"\x7fELF agent".to_vec())]);
    }
}
