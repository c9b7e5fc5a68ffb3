//! Our lines in the user's own ssh config: two at its very top, put in and taken out without a look at the rest, which may be
//! anything. Pure but for [`apply`].

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The line before our `Include`. `MADE` where there was no file before.
const MARK: &[u8] = b"# The next line was added by `banger ssh-config --install`; `--uninstall` removes both.\n";
const MADE: &[u8] = b"# This file was made by `banger ssh-config --install`; `--uninstall` removes these two lines.\n";
const INCLUDE: &[u8] = b"Include ";
/// Nobody has written a longer one by hand.
const SIZE_MAX: u64 = 4 << 20;

/// Says why the user's config is left as it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum UserConfigError {
    #[error("`{}` cannot be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is not a regular file of a usual size", path.display())]
    NoFile { path: PathBuf },
    #[error("`{}` is read-only (mode {mode:04o}): make it writable, or add the line yourself", path.display())]
    ReadOnly { path: PathBuf, mode: u32 },
    #[error("`{}` is a symbolic link to nowhere", path.display())]
    Dangling { path: PathBuf },
    #[error("failed to write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Where our two lines are: (start, end). A mark without an `Include` after it is not ours to touch.
fn find(config: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    for line in config.split_inclusive(|byte| *byte == b'\n') {
        let after = at + line.len();
        if line == MARK || line == MADE {
            let next = config[after..].split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
            if next.starts_with(INCLUDE) {
                return Some((at, after + next.len()));
            }
        }
        at = after;
    }
    None
}

/// The config with our lines in it, once. `None` is no file.
pub(super) fn install(config: Option<&[u8]>, include: &str) -> Vec<u8> {
    let ours = |mark: &[u8]| [mark, include.as_bytes(), b"\n"].concat();
    let Some(config) = config else { return ours(MADE) };
    match find(config) {
        Some((start, end)) => {
            let made = config[start..].starts_with(MADE);
            [&config[..start], &ours(if made { MADE } else { MARK }), &config[end..]].concat()
        }
        None => [&ours(MARK), config].concat(),
    }
}

/// The config without our lines. `None` is no file: where there was none before and nothing was added.
pub(super) fn uninstall(config: &[u8]) -> Option<Vec<u8>> {
    let Some((start, end)) = find(config) else { return Some(config.to_vec()) };
    let made = config[start..].starts_with(MADE);
    let rest = [&config[..start], &config[end..]].concat();
    (!made || !rest.is_empty()).then_some(rest)
}

/// What to do to the user's config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Edit {
    Install { include: String },
    Uninstall,
}

/// Edits the user's config; true where that changed it. A symbolic link stays one: what it leads to is replaced.
pub(super) fn apply(path: &Path, edit: &Edit) -> Result<bool, UserConfigError> {
    let target = resolve(path)?;
    let before = read(&target)?;
    let after = match (edit, &before) {
        (Edit::Install { include }, before) => Some(install(before.as_ref().map(|(text, _)| text.as_slice()), include)),
        (Edit::Uninstall, Some((text, _))) => uninstall(text),
        (Edit::Uninstall, None) => None,
    };
    let write = |source| UserConfigError::Write { path: target.clone(), source };
    match (before, after) {
        (Some((before, _)), Some(after)) if before == after => Ok(false),
        (None, None) => Ok(false),
        (Some((_, mode)), _) if mode & 0o200 == 0 => Err(UserConfigError::ReadOnly { path: target, mode }),
        (Some(_), None) => fs::remove_file(&target).map(|()| true).map_err(write),
        (before, Some(after)) => {
            let mode = before.map_or(0o600, |(_, mode)| mode);
            if let Some(dir) = target.parent().filter(|dir| !dir.exists()) {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(write)?;
            }
            replace(&target, &after, mode).map(|()| true).map_err(write)
        }
    }
}

/// What the path leads to, through every symbolic link.
fn resolve(path: &Path) -> Result<PathBuf, UserConfigError> {
    match (path.canonicalize(), path.is_symlink()) {
        (Ok(target), _) => Ok(target),
        (Err(error), true) if error.kind() == io::ErrorKind::NotFound => {
            Err(UserConfigError::Dangling { path: path.to_path_buf() })
        }
        (Err(error), false) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_path_buf()),
        (Err(source), _) => Err(UserConfigError::Read { path: path.to_path_buf(), source }),
    }
}

/// Content and mode; `None` where there is no file.
fn read(path: &Path) -> Result<Option<(Vec<u8>, u32)>, UserConfigError> {
    let failed = |source| UserConfigError::Read { path: path.to_path_buf(), source };
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    if !metadata.is_file() || metadata.len() > SIZE_MAX {
        return Err(UserConfigError::NoFile { path: path.to_path_buf() });
    }
    let mut text = Vec::new();
    fs::File::open(path).and_then(|file| file.take(SIZE_MAX).read_to_end(&mut text)).map_err(failed)?;
    Ok(Some((text, metadata.permissions().mode() & 0o7777)))
}

/// The whole file or the old one, whenever the power fails.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut draft = path.to_path_buf().into_os_string();
    draft.push(format!(".banger-{}", std::process::id()));
    let draft = PathBuf::from(draft);
    let put = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    put().inspect_err(|_| drop(fs::remove_file(&draft)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    const LINE: &str = "Include \"/s/ssh/config\"";

    fn config() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(b"Host *\n".to_vec()),
            Just(b"  Compression yes".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"\n\n".to_vec()),
            Just(b"Include ~/other\n".to_vec()),
            Just(MARK[..MARK.len() - 1].to_vec()),
            Just(b"\xff\xfe\0".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..12),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn uninstall_undoes_install_to_the_byte(text in config()) {
            let installed = install(Some(&text), LINE);
            prop_assert_eq!(install(Some(&installed), LINE), installed.clone(), "twice is once");
            if find(&text).is_none() {
                prop_assert_eq!(uninstall(&installed), Some(text));
            }
        }

        #[test]
        fn no_file_becomes_no_file_again_unless_the_user_wrote_into_it(text in config()) {
            let installed = install(None, LINE);
            prop_assert_eq!(uninstall(&installed), None);
            let added = [installed, text.clone()].concat();
            prop_assert_eq!(uninstall(&added), Some(text.clone()).filter(|text| !text.is_empty()));
        }

        #[test]
        fn another_path_replaces_the_first(text in config()) {
            let moved = install(Some(&install(Some(&text), LINE)), "Include \"/elsewhere\"");
            prop_assert!(!moved.windows(LINE.len()).any(|part| part == LINE.as_bytes()));
            prop_assert_eq!(install(Some(&moved), LINE), install(Some(&text), LINE));
        }
    }

    fn edit() -> Edit {
        Edit::Install { include: LINE.to_owned() }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_missing_config_is_made_and_goes_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".ssh/config");
        assert!(apply(&path, &edit()).unwrap() && !apply(&path, &edit()).unwrap());
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(apply(&path, &Edit::Uninstall).unwrap() && !path.exists());
        assert!(!apply(&path, &Edit::Uninstall).unwrap());
    }

    #[test]
    fn modes_and_links_stay_and_malformed_text_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (real, path) = (dir.path().join("dotfiles"), dir.path().join("config"));
        let broken = b"Host\nNoSuchKeyword \"unclosed\n\xff\0";
        fs::write(&real, broken).unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&real, &path).unwrap();
        assert!(apply(&path, &edit()).unwrap());
        assert!(path.is_symlink() && mode(&real) == 0o640);
        assert!(fs::read(&real).unwrap().ends_with(broken));
        assert!(apply(&path, &Edit::Uninstall).unwrap());
        assert_eq!(fs::read(&real).unwrap(), broken);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no draft is left");
    }

    #[test]
    fn what_cannot_be_edited_is_refused_and_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, "Host *\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        let error = apply(&path, &edit()).unwrap_err().to_string();
        assert!(error.contains("is read-only (mode 0400)"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"Host *\n");
        let link = dir.path().join("link");
        symlink(dir.path().join("nowhere"), &link).unwrap();
        assert!(matches!(apply(&link, &edit()), Err(UserConfigError::Dangling { .. })));
        assert!(matches!(apply(dir.path(), &edit()), Err(UserConfigError::NoFile { .. })));
    }
}
