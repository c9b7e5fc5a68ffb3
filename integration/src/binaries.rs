//! Finds the programs under test.

use std::path::{Path, PathBuf};

/// Says where the programs are, for `make test`.
pub const BIN_DIR_ENV: &str = "BANGER_BIN_DIR";

/// The directory of `name`.
///
/// # Panics
/// Where it has not been built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let candidates = candidates();
    let found = candidates.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("`{name}` is in none of {candidates:?}: run `make build` first"))
}

fn candidates() -> Vec<PathBuf> {
    if let Some(dir) = std::env::var_os(BIN_DIR_ENV) {
        return vec![PathBuf::from(dir)];
    }
    // target/release/deps/<test> → target/release; the agent is built for an explicit target, and so lies elsewhere.
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let target = profile.parent().unwrap_or(Path::new("/"));
    let name = profile.file_name().unwrap();
    vec![profile.to_path_buf(), target.join("x86_64-unknown-linux-gnu").join(name)]
}
