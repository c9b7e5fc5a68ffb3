//! Finds the programs under test.

use std::path::PathBuf;

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
    // target/release/deps/<test> → target/release
    let test = std::env::current_exe().unwrap();
    vec![test.ancestors().nth(2).unwrap().to_path_buf()]
}
