//! Whether the host was restarted since an earlier daemon ran: then what that one had written without waiting for the disk may be
//! missing. A daemon that was merely killed loses nothing of that.

use crate::paths::Paths;
use std::fs;
use std::io;
use std::path::Path;

/// Names the boot of the host that a daemon last ran in, in the state directory.
const FILE: &str = "host-boot";
/// The kernel's name for this boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Says so, and remembers this boot.
pub(super) fn host_restarted(paths: &Paths) -> bool {
    match fs::read_to_string(BOOT_ID) {
        Ok(now) => compare(&paths.state_dir.join(FILE), &now).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot remember the host's boot");
            false
        }),
        Err(error) => {
            tracing::warn!(%error, "the kernel does not name its boot");
            false
        }
    }
}

fn compare(file: &Path, now: &str) -> io::Result<bool> {
    let before = match fs::read_to_string(file) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if before.as_deref() != Some(now) {
        // Lost with the next power cut it only says "not known" again.
        let new = file.with_extension("new");
        fs::write(&new, now)?;
        fs::rename(&new, file)?;
    }
    Ok(before.is_some_and(|before| before != now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_boot_is_noticed_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        assert!(!compare(&file, "one").unwrap(), "the first daemon of all");
        assert!(!compare(&file, "one").unwrap());
        assert!(compare(&file, "two").unwrap());
        assert!(!compare(&file, "two").unwrap());
    }
}
