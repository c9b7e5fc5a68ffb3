//! Paths in archives: bytes between slashes, bounded as a kernel bounds them. Pure.

use super::Ext4Error;

/// The longest path or target of a link (`PATH_MAX`, linux/limits.h).
pub(super) const PATH_LENGTH_MAX: usize = 4096;
/// The longest name (`EXT4_NAME_LEN`, fs/ext4/ext4.h).
pub(super) const NAME_LENGTH_MAX: usize = 255;

/// Those before the last, and the last.
pub(super) type Components<'a> = (Vec<&'a [u8]>, Option<&'a [u8]>);

/// Components of a path; `.` and empty ones count for nothing.
pub(super) fn split(path: &[u8]) -> Result<Components<'_>, Ext4Error> {
    let mut components = Vec::new();
    if path.len() >= PATH_LENGTH_MAX {
        return Err(Ext4Error::BadPath { path: beginning(path) });
    }
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(Ext4Error::BadPath { path: shown(path) }),
            name if name.len() > NAME_LENGTH_MAX || name.contains(&0) => {
                return Err(Ext4Error::BadPath { path: shown(path) });
            }
            name => components.push(name),
        }
    }
    let last = components.pop();
    Ok((components, last))
}

/// A path that may be of any length, as an error shows it.
pub(super) fn beginning(path: &[u8]) -> String {
    path.get(..64).map_or_else(|| shown(path), |beginning| format!("{}…", shown(beginning)))
}

/// A path as an error shows it.
pub(super) fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}
