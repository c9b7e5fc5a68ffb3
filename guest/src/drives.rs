//! Finds block devices by the UUID of their ext4 file system, never by their order. Mounts nothing.

use std::fs::{self, File};
use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the superblock begins, and what it holds (Documentation/filesystems/ext4/super.rst).
const SUPERBLOCK_OFFSET: u64 = 1024;
const MAGIC_OFFSET: usize = 0x38;
const MAGIC: [u8; 2] = [0x53, 0xef];
const UUID_OFFSET: usize = 0x68;
const UUID_END: usize = UUID_OFFSET + 16;

/// Says why a drive of the boot spec cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    #[error("no block device has the file system {uuid} of the {role} drive (there are: {present})")]
    Absent { role: &'static str, uuid: String, present: String },
}

/// The UUID of the ext4 file system that begins at the start of `device`, or `None` where there is none.
///
/// # Errors
/// The device cannot be read.
pub fn ext4_uuid(device: &mut (impl io::Read + io::Seek)) -> io::Result<Option<String>> {
    let mut superblock = [0; UUID_END];
    device.seek(SeekFrom::Start(SUPERBLOCK_OFFSET))?;
    match device.read_exact(&mut superblock) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    if superblock[MAGIC_OFFSET..MAGIC_OFFSET + 2] != MAGIC {
        return Ok(None);
    }
    Ok(Some(hyphenated(&superblock[UUID_OFFSET..UUID_END])))
}

fn hyphenated(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Every block device with an ext4 file system, as (UUID, path). Unreadable devices are left out.
fn scan(class: &Path, devices: &Path) -> Vec<(String, PathBuf)> {
    let names = fs::read_dir(class).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut found: Vec<_> = names
        .filter_map(|name| {
            let path = devices.join(name);
            let uuid = ext4_uuid(&mut File::open(&path).ok()?).ok()??;
            Some((uuid, path))
        })
        .collect();
    found.sort();
    found
}

/// Waits for the block device with this file system.
///
/// # Errors
/// [`DriveError::Absent`] when it has not come up before the deadline.
pub fn find(role: &'static str, uuid: &str, deadline: Instant) -> Result<PathBuf, DriveError> {
    find_in(Path::new("/sys/class/block"), Path::new("/dev"), role, uuid, deadline)
}

fn find_in(
    class: &Path,
    devices: &Path,
    role: &'static str,
    uuid: &str,
    deadline: Instant,
) -> Result<PathBuf, DriveError> {
    loop {
        let found = scan(class, devices);
        if let Some((_, path)) = found.iter().find(|(other, _)| other.eq_ignore_ascii_case(uuid)) {
            return Ok(path.clone());
        }
        if Instant::now() >= deadline {
            let present = found.iter().map(|(uuid, path)| format!("{uuid} on {}", path.display()));
            let present = present.collect::<Vec<_>>().join(", ");
            return Err(DriveError::Absent { role, uuid: uuid.to_owned(), present });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn superblock(uuid: [u8; 16]) -> Vec<u8> {
        let mut bytes = vec![0; 2048];
        bytes[1024 + MAGIC_OFFSET..1024 + MAGIC_OFFSET + 2].copy_from_slice(&MAGIC);
        bytes[1024 + UUID_OFFSET..1024 + UUID_END].copy_from_slice(&uuid);
        bytes
    }

    #[test]
    fn a_uuid_is_read_and_written_with_hyphens() {
        let uuid = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 2, 3, 4, 5, 6, 7, 8];
        let text = ext4_uuid(&mut Cursor::new(superblock(uuid))).unwrap().unwrap();
        assert_eq!(text, "01234567-89ab-cdef-0102-030405060708");
    }

    #[test]
    fn other_and_short_devices_have_none() {
        assert_eq!(ext4_uuid(&mut Cursor::new(vec![0; 4096])).unwrap(), None);
        assert_eq!(ext4_uuid(&mut Cursor::new(vec![0; 1030])).unwrap(), None);
        assert_eq!(ext4_uuid(&mut Cursor::new(Vec::new())).unwrap(), None);
    }

    #[test]
    fn drives_are_found_by_content_and_named_when_absent() {
        let (class, devices) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (name, uuid) in [("vdb", [1; 16]), ("vda", [2; 16])] {
            fs::write(class.path().join(name), "").unwrap();
            fs::write(devices.path().join(name), superblock(uuid)).unwrap();
        }
        let find = |uuid: &str| find_in(class.path(), devices.path(), "disk", uuid, Instant::now());
        assert!(find("01010101-0101-0101-0101-010101010101").unwrap().ends_with("vdb"));
        assert!(find("02020202-0202-0202-0202-020202020202").unwrap().ends_with("vda"));
        let error = find("03030303-0303-0303-0303-030303030303").unwrap_err().to_string();
        assert!(error.contains("02020202-0202-0202-0202-020202020202"), "{error}");
    }
}
