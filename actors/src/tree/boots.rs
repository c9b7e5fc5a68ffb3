//! Whether the host was restarted since an earlier daemon ran: then what that one had written without waiting for the disk may be
//! missing. A daemon that was merely killed loses nothing of that.

use crate::host::boot_id;
use crate::paths::Paths;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

/// Names the boot of the host that a daemon last ran in, in the state directory.
const FILE: &str = "host-boot";

/// Says so, and remembers this boot.
pub(super) fn host_restarted(paths: &Paths) -> bool {
    boot_id().and_then(|now| compare(&paths.state_dir, &now)).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot tell whether the host was restarted");
        false
    })
}

fn compare(directory: &Path, now: &str) -> io::Result<bool> {
    let file = directory.join(FILE);
    let before = match fs::read_to_string(&file) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if before.as_deref() != Some(now) {
        // Lost with the next power cut it only says "not known" again.
        let mut fresh = tempfile::NamedTempFile::new_in(directory)?;
        fresh.write_all(now.as_bytes())?;
        fresh.persist(&file)?;
    }
    Ok(before.is_some_and(|before| before != now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_boot_is_noticed_once() {
        let directory = tempfile::tempdir().unwrap();
        let compare = |now| compare(directory.path(), now).unwrap();
        assert!(!compare("one"), "the first daemon of all");
        assert!(!compare("one"));
        assert!(compare("two"));
        assert!(!compare("two"));
    }
}
