//! The two files of a snapshot: the state file holds the VM's configuration, as JSON; the memory file QEMU's own stream.

use crate::emu::resources::Resources;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The layout of the state file.
pub const VERSION: u32 = 1;
const MAGIC: &str = "banger-emu snapshot";
/// Larger state files are not ours, in bytes.
const STATE_MAX: u64 = 1 << 20;

/// Says why a snapshot cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot open `{path}`: {source}")]
    Open { path: String, source: io::Error },
    #[error("cannot write `{path}`: {source}")]
    Write { path: String, source: io::Error },
    #[error("`{0}` is not a snapshot of banger-emu")]
    Foreign(String),
    #[error("`{path}` has version {version}, this banger-emu reads version {VERSION}")]
    Version { path: String, version: u32 },
    #[error("`{path}` has {found} bytes of memory, the snapshot was taken with {expected}")]
    Memory { path: String, found: u64, expected: u64 },
}

/// What the state file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    magic: String,
    pub version: u32,
    /// The memory file's size, so that a cut-off one is noticed.
    memory_bytes: u64,
    pub resources: Resources,
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

/// Opens a snapshot's file for writing, empty.
///
/// # Errors
/// [`SnapshotError::Open`].
pub fn create(path: &Path) -> Result<File, SnapshotError> {
    let mut options = File::options();
    // The guest's memory is nobody else's business.
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).map_err(|source| SnapshotError::Open { path: name(path), source })
}

/// Writes the state file, once the memory file is complete.
///
/// # Errors
/// [`SnapshotError::Write`].
pub fn write_state(mut file: File, path: &Path, memory: &File, resources: &Resources) -> Result<(), SnapshotError> {
    let written = memory.metadata().and_then(|memory| {
        let state = State {
            magic: MAGIC.to_owned(),
            version: VERSION,
            memory_bytes: memory.len(),
            resources: resources.clone(),
        };
        file.write_all(&serde_json::to_vec_pretty(&state)?)
    });
    written.map_err(|source| SnapshotError::Write { path: name(path), source })
}

/// Reads a state file.
///
/// # Errors
/// [`SnapshotError`].
pub fn read_state(path: &Path) -> Result<State, SnapshotError> {
    #[derive(Deserialize)]
    struct Head {
        magic: String,
        version: u32,
    }
    let open = |source| SnapshotError::Open { path: name(path), source };
    let foreign = || SnapshotError::Foreign(name(path));
    if std::fs::metadata(path).map_err(open)?.len() > STATE_MAX {
        return Err(foreign());
    }
    let text = std::fs::read(path).map_err(open)?;
    let head: Head = serde_json::from_slice(&text).map_err(|_| foreign())?;
    if head.magic != MAGIC {
        return Err(foreign());
    }
    if head.version != VERSION {
        return Err(SnapshotError::Version { path: name(path), version: head.version });
    }
    serde_json::from_slice(&text).map_err(|_| foreign())
}

/// Opens the memory file that belongs to `state`.
///
/// # Errors
/// [`SnapshotError`].
pub fn open_memory(path: &Path, state: &State) -> Result<File, SnapshotError> {
    let open = |source| SnapshotError::Open { path: name(path), source };
    let file = File::open(path).map_err(open)?;
    let found = file.metadata().map_err(open)?.len();
    if found != state.memory_bytes {
        return Err(SnapshotError::Memory { path: name(path), found, expected: state.memory_bytes });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_read_back_and_a_cut_one_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (state_path, memory_path) = (dir.path().join("state"), dir.path().join("memory"));
        let mut memory = create(&memory_path).unwrap();
        memory.write_all(b"memory").unwrap();
        let resources = Resources::default();
        write_state(create(&state_path).unwrap(), &state_path, &memory, &resources).unwrap();
        let state = read_state(&state_path).unwrap();
        assert_eq!(state.resources, resources);
        open_memory(&memory_path, &state).unwrap();
        memory.set_len(3).unwrap();
        let error = open_memory(&memory_path, &state).unwrap_err().to_string();
        assert!(error.ends_with("has 3 bytes of memory, the snapshot was taken with 6"), "{error}");
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        for text in ["", "{}", r#"{"magic":"x","version":1}"#] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(read_state(&path), Err(SnapshotError::Foreign(_))), "{text}");
        }
        std::fs::write(&path, r#"{"magic":"banger-emu snapshot","version":9}"#).unwrap();
        assert!(matches!(read_state(&path), Err(SnapshotError::Version { version: 9, .. })));
    }
}
