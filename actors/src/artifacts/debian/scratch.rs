//! Where mmdebstrap unpacks, and how that is removed when it was killed: in an ordinary user's build the files belong to
//! subordinate ids, which the user itself may not remove.

use super::DebianError;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// In a staging directory, while a build runs: names its scratch directory. Never published.
const NOTE: &str = "scratch";
/// What our scratch directories are called. Nothing else is ever removed.
const PREFIX: &str = "banger-build.";

/// A scratch directory. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    note: PathBuf,
}

impl Scratch {
    /// Makes one and notes it in the staging directory, for [`clean`] to find after a kill -9.
    pub(super) fn create(staging: &Path) -> Result<Self, DebianError> {
        // Not below the state directory: the build's user namespace must be able to reach it, and homes are closed.
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir().map_err(DebianError::Scratch)?;
        let note = staging.join(NOTE);
        // As /tmp: the subordinate root of a build makes and removes its own entries here, and nobody else can touch them.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o1777)).map_err(DebianError::Scratch)?;
        fs::write(&note, directory.path().as_os_str().as_encoded_bytes()).map_err(DebianError::Scratch)?;
        Ok(Self { path: directory.keep(), note })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
        if let Err(error) = fs::remove_file(&self.note) {
            tracing::debug!(%error, "the note of a scratch directory was gone");
        }
    }
}

/// Removes the scratch directory that an interrupted build in this staging directory left.
pub(in crate::artifacts) fn clean(staging: &Path) {
    use std::os::unix::ffi::OsStringExt;
    let Ok(noted) = fs::read(staging.join(NOTE)) else { return };
    let path = PathBuf::from(std::ffi::OsString::from_vec(noted));
    let ours = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX));
    if ours && path.is_absolute() {
        remove(&path);
    }
}

fn remove(path: &Path) {
    let plain = fs::remove_dir_all(path);
    if matches!(&plain, Err(error) if error.kind() == io::ErrorKind::PermissionDenied) {
        // As root of the build's own user namespace, to whom the files belong; what belongs to us is left to us.
        let helper = Command::new("mmdebstrap")
            .args(["--unshare-helper", "sh", "-c", "rm -rf -- \"$1\"/*", "rm"])
            .arg(path)
            .current_dir("/")
            .stdin(Stdio::null())
            .output();
        let again = fs::remove_dir_all(path);
        if let Err(error) = again {
            let said = helper.map(|output| String::from_utf8_lossy(&output.stderr).trim().to_owned());
            tracing::warn!(path = %path.display(), %error, ?said, "a scratch directory could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_build_left_is_found_by_its_note() {
        let staging = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(staging.path()).unwrap();
        let path = scratch.path().to_owned();
        fs::create_dir_all(path.join("mmdebstrap.x/usr/bin")).unwrap();
        std::mem::forget(scratch);
        clean(staging.path());
        assert!(!path.exists());
    }

    #[test]
    fn a_note_that_is_not_ours_removes_nothing() {
        let staging = tempfile::tempdir().unwrap();
        let precious = tempfile::tempdir().unwrap();
        fs::write(staging.path().join(NOTE), precious.path().as_os_str().as_encoded_bytes()).unwrap();
        clean(staging.path());
        assert!(precious.path().exists());
    }

    #[test]
    fn a_finished_build_leaves_neither_scratch_nor_note() {
        let staging = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(staging.path()).unwrap();
        let path = scratch.path().to_owned();
        drop(scratch);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(staging.path()).unwrap().count(), 0);
    }
}
