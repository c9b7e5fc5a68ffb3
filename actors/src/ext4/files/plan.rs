//! From changes, and what is at their paths now, to what debugfs is told and what has to be there afterwards. Pure.

use super::parse::{FileKind, FileStat};
use super::script::Script;
use super::{Ext4Path, FilesError};
use std::collections::{BTreeMap, BTreeSet};

/// The most changes of one message.
const CHANGES_MAX: usize = 10_000;
/// The most contents of one message, in bytes: they are in memory.
pub(super) const CONTENTS_MAX: u64 = 256 << 20;

/// Whose a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// One change. Its directory has to be there, or be made before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Makes a directory, or gives the one that is there this owner and mode.
    MakeDirectory { path: Ext4Path, owner: Owner, mode: u16 },
    /// Makes a regular file, in place of one that is there; other names of that one keep it.
    WriteFile { path: Ext4Path, owner: Owner, mode: u16, contents: Vec<u8> },
    /// Gives what is there an owner and, where said, a mode. It takes no bits away by itself, as chown(2) does.
    SetOwner { path: Ext4Path, owner: Owner, mode: Option<u16> },
}

impl Change {
    /// What it is about.
    #[must_use]
    pub const fn path(&self) -> &Ext4Path {
        match self {
            Self::MakeDirectory { path, .. } | Self::WriteFile { path, .. } | Self::SetOwner { path, .. } => path,
        }
    }

    fn mode(&self) -> Option<u16> {
        match self {
            Self::MakeDirectory { mode, .. } | Self::WriteFile { mode, .. } => Some(*mode),
            Self::SetOwner { mode, .. } => *mode,
        }
    }
}

/// What is known of a path: nothing is there, or this.
pub(super) type Known = BTreeMap<Ext4Path, Option<Expected>>;

/// What has to be at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) kind: FileKind,
    pub(super) mode: u16,
    pub(super) owner: Owner,
    /// Of regular files that were written.
    pub(super) size: Option<u64>,
}

impl From<&FileStat> for Expected {
    fn from(stat: &FileStat) -> Self {
        let owner = Owner { uid: stat.uid, gid: stat.gid };
        Self { kind: stat.kind, mode: stat.mode, owner, size: None }
    }
}

impl Expected {
    pub(super) fn holds(&self, stat: &FileStat) -> bool {
        Self::from(stat) == Self { size: None, ..*self } && self.size.is_none_or(|size| size == stat.size)
    }
}

/// What is to be done.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) script: Script,
    /// Contents, and the names that the script has for them.
    pub(super) sources: Vec<(String, &'a [u8])>,
    /// How it has to look at the changes' paths in the end.
    pub(super) expected: BTreeMap<Ext4Path, Expected>,
}

/// Every path that has to be known before changes can be planned: the changes' own, and all that lead to them.
///
/// # Errors
/// When there are too many of them, too much contents, or a mode is none.
pub(super) fn paths(changes: &[Change]) -> Result<BTreeSet<Ext4Path>, FilesError> {
    let too_much = |what, asked, limit| Err(FilesError::TooMuch { what, asked, limit });
    if changes.len() > CHANGES_MAX {
        return too_much("changes", changes.len() as u64, CHANGES_MAX as u64);
    }
    let contents = |change: &Change| match change {
        Change::WriteFile { contents, .. } => contents.len() as u64,
        Change::MakeDirectory { .. } | Change::SetOwner { .. } => 0,
    };
    let bytes = changes.iter().map(contents).sum();
    if bytes > CONTENTS_MAX {
        return too_much("bytes", bytes, CONTENTS_MAX);
    }
    for change in changes {
        if let Some(mode) = change.mode().filter(|mode| *mode > 0o7777) {
            return Err(FilesError::Mode { path: change.path().to_string(), mode });
        }
    }
    let with_ancestors = |change: &Change| change.path().ancestors().chain([change.path().clone()]).collect::<Vec<_>>();
    Ok(changes.iter().flat_map(with_ancestors).collect())
}

/// Refuses a path that leads through anything but directories.
///
/// # Errors
/// What is in the way, by its own path.
pub(super) fn reachable(path: &Ext4Path, known: &Known) -> Result<(), FilesError> {
    for ancestor in path.ancestors() {
        match present(&ancestor, known)?.kind {
            FileKind::Directory => {}
            FileKind::Symlink => return Err(FilesError::Symlink { path: ancestor.to_string() }),
            kind => return Err(FilesError::Kind { path: ancestor.to_string(), kind, wanted: "directory" }),
        }
    }
    Ok(())
}

/// What is at a path, which must be reachable.
pub(super) fn present(path: &Ext4Path, known: &Known) -> Result<Expected, FilesError> {
    known.get(path).copied().flatten().ok_or_else(|| FilesError::NotFound { path: path.to_string() })
}

/// Plans changes in their order. `known` holds every one of their [`paths`].
///
/// # Errors
/// When one of them cannot be.
pub(super) fn plan<'a>(changes: &'a [Change], mut known: Known) -> Result<Plan<'a>, FilesError> {
    let mut plan = Plan { script: Script::new(), sources: Vec::new(), expected: BTreeMap::new() };
    for change in changes {
        let path = change.path();
        reachable(path, &known)?;
        let there = known.get(path).copied().flatten();
        let wanted = match change {
            Change::MakeDirectory { owner, mode, .. } => {
                match there {
                    None => plan.script.path("mkdir", path),
                    Some(there) => allow(path, there.kind, &[FileKind::Directory], "directory")?,
                }
                Expected { kind: FileKind::Directory, mode: *mode, owner: *owner, size: None }
            }
            Change::WriteFile { owner, mode, contents, .. } => {
                if let Some(there) = there {
                    allow(path, there.kind, &[FileKind::Regular], "regular file")?;
                    plan.script.path("rm", path);
                }
                // The root is a directory, and was refused.
                let Some((directory, name)) = path.split() else { continue };
                let source = format!("contents-{}", plan.sources.len());
                plan.script.write(&source, &directory, name);
                plan.sources.push((source, contents));
                Expected { kind: FileKind::Regular, mode: *mode, owner: *owner, size: Some(contents.len() as u64) }
            }
            Change::SetOwner { owner, mode, .. } => {
                let there = there.ok_or_else(|| FilesError::NotFound { path: path.to_string() })?;
                if there.kind == FileKind::Symlink {
                    return Err(FilesError::Symlink { path: path.to_string() });
                }
                Expected { owner: *owner, mode: mode.unwrap_or(there.mode), ..there }
            }
        };
        let mode = wanted.kind.bits() | u32::from(wanted.mode);
        plan.script.field("sif", path, format_args!("mode 0{mode:o}"));
        plan.script.field("sif", path, format_args!("uid {}", wanted.owner.uid));
        plan.script.field("sif", path, format_args!("gid {}", wanted.owner.gid));
        known.insert(path.clone(), Some(wanted));
        plan.expected.insert(path.clone(), wanted);
    }
    Ok(plan)
}

fn allow(path: &Ext4Path, kind: FileKind, allowed: &[FileKind], wanted: &'static str) -> Result<(), FilesError> {
    match kind {
        kind if allowed.contains(&kind) => Ok(()),
        FileKind::Symlink => Err(FilesError::Symlink { path: path.to_string() }),
        kind => Err(FilesError::Kind { path: path.to_string(), kind, wanted }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Owner = Owner { uid: 0, gid: 0 };

    fn path(text: &str) -> Ext4Path {
        Ext4Path::parse(text.as_bytes()).unwrap()
    }

    fn known(entries: &[(&str, FileKind)]) -> Known {
        let expected = |kind| Expected { kind, mode: 0o755, owner: ROOT, size: None };
        entries.iter().map(|(text, kind)| (path(text), Some(expected(*kind)))).collect()
    }

    fn write(text: &str) -> Change {
        Change::WriteFile { path: path(text), owner: Owner { uid: 1, gid: 2 }, mode: 0o4640, contents: b"abc".to_vec() }
    }

    fn directory(text: &str) -> Change {
        Change::MakeDirectory { path: path(text), owner: ROOT, mode: 0o700 }
    }

    fn commands(plan: &Plan<'_>) -> Vec<String> {
        plan.script.text().lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn a_file_in_a_directory_of_the_same_message() {
        let changes = [directory("/d"), write("/d/f")];
        let asked: Vec<_> = paths(&changes).unwrap().into_iter().collect();
        assert_eq!(asked, [path("/"), path("/d"), path("/d/f")]);
        let plan = plan(&changes, known(&[("/", FileKind::Directory)])).unwrap();
        assert_eq!(
            commands(&plan),
            [
                "mkdir \"/d\"",
                "sif \"/d\" mode 040700",
                "sif \"/d\" uid 0",
                "sif \"/d\" gid 0",
                "cd \"/d\"",
                "write contents-0 \"f\"",
                "sif \"/d/f\" mode 0104640",
                "sif \"/d/f\" uid 1",
                "sif \"/d/f\" gid 2",
            ]
        );
        assert_eq!(plan.sources, [("contents-0".to_owned(), b"abc".as_slice())]);
        assert_eq!(plan.expected[&path("/d/f")].size, Some(3));
    }

    #[test]
    fn only_what_is_there_decides() {
        use FileKind::{Directory, Regular, Symlink};
        let there = || known(&[("/", Directory), ("/f", Regular), ("/l", Symlink), ("/d", Directory)]);
        assert!(commands(&plan(&[write("/f")], there()).unwrap()).contains(&"rm \"/f\"".to_owned()));
        let again = [directory("/d")];
        assert!(!commands(&plan(&again, there()).unwrap()).iter().any(|command| command.starts_with("mkdir")));
        let refused = |change: Change| plan(&[change], there()).unwrap_err();
        assert!(matches!(refused(write("/d")), FilesError::Kind { kind: Directory, .. }));
        assert!(matches!(refused(write("/")), FilesError::Kind { kind: Directory, .. }));
        assert!(matches!(refused(directory("/f")), FilesError::Kind { kind: Regular, .. }));
        assert!(matches!(refused(write("/l")), FilesError::Symlink { path } if path == "/l"));
        assert!(matches!(refused(write("/l/x")), FilesError::Symlink { path } if path == "/l"));
        assert!(matches!(refused(write("/f/x")), FilesError::Kind { kind: Regular, wanted: "directory", .. }));
        assert!(matches!(refused(write("/n/x")), FilesError::NotFound { path } if path == "/n"));
        let owner = |text| Change::SetOwner { path: path(text), owner: ROOT, mode: None };
        assert!(matches!(refused(owner("/n")), FilesError::NotFound { .. }));
        assert!(matches!(refused(owner("/l")), FilesError::Symlink { .. }));
        assert_eq!(plan(&[owner("/f")], there()).unwrap().expected[&path("/f")].mode, 0o755);
    }

    #[test]
    fn what_is_too_much_is_refused_before_anything_is_asked() {
        let many = vec![directory("/d"); CHANGES_MAX + 1];
        assert!(matches!(paths(&many), Err(FilesError::TooMuch { what: "changes", .. })));
        let odd = Change::SetOwner { path: path("/d"), owner: ROOT, mode: Some(0o10_000) };
        assert!(matches!(paths(&[odd]), Err(FilesError::Mode { mode: 0o10_000, .. })));
    }
}
