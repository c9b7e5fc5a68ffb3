//! Whether the host was restarted since an earlier daemon ran: then what that one had written without waiting for the disk may be
//! missing. A daemon that was merely killed loses nothing of that.

use crate::host::boot_id;
use crate::paths::Paths;
use crate::store::{Phase, VmRecord};
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

/// Names the boot of the host that a daemon last ran in, in the state directory.
const FILE: &str = "host-boot";

/// Says so, and remembers this boot once no VM depends on the answer any more. Where nobody can tell, it was: that keeps more.
pub(super) fn host_restarted(paths: &Paths, records: &[VmRecord]) -> bool {
    let unfinished = records.iter().any(|record| record.phase == Phase::Creating);
    boot_id().and_then(|now| compare(&paths.state_dir, &now, unfinished)).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot tell whether the host was restarted");
        true
    })
}

fn compare(directory: &Path, now: &str, unfinished: bool) -> io::Result<bool> {
    let before = match fs::read_to_string(directory.join(FILE)) {
        Ok(before) => Some(before),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let restarted = before.as_deref().is_some_and(|before| before != now);
    // This daemon may end before it has seen to what is unfinished; the next one has to hear the same.
    if before.as_deref() != Some(now)
        && !(restarted && unfinished)
        && let Err(error) = remember(directory, now)
    {
        tracing::warn!(%error, "cannot remember the host's boot");
    }
    Ok(restarted)
}

/// Lost with the next power cut it only says "not known" again.
fn remember(directory: &Path, now: &str) -> io::Result<()> {
    let mut fresh = tempfile::NamedTempFile::new_in(directory)?;
    fresh.write_all(now.as_bytes())?;
    fresh.persist(directory.join(FILE))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_boot_is_noticed_until_nothing_is_unfinished() {
        let directory = tempfile::tempdir().unwrap();
        let compare = |now, unfinished| compare(directory.path(), now, unfinished).unwrap();
        assert!(!compare("one", true), "the first daemon of all");
        assert!(!compare("one", false));
        assert!(compare("two", true));
        assert!(compare("two", true), "the daemon before may have ended at once");
        assert!(compare("two", false));
        assert!(!compare("two", true));
    }

    #[test]
    fn an_answer_is_not_lost_because_it_cannot_be_remembered() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "one").unwrap();
        // Nothing can be put in the place of a directory that is not empty.
        let elsewhere = directory.path().join("gone");
        assert!(compare(&elsewhere, "two", false).is_ok_and(|restarted| !restarted), "nothing was remembered there");
        assert!(compare(directory.path(), "two", false).unwrap());
    }
}
