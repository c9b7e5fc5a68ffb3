//! Paths inside of a file system, as far as debugfs can be told them without a doubt. Pure.

use super::FilesError;
use crate::ext4::path::shown;

/// The longest path (`PATH_MAX`, linux/limits.h, with the NUL). debugfs reads lines of up to 8191 bytes.
const LENGTH_MAX: usize = 4095;
/// The longest name (`EXT4_NAME_LEN`, fs/ext4/ext4.h).
const NAME_MAX: usize = 255;

/// An absolute path without `.` and `..`, of names that debugfs's command line takes as they are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ext4Path(String);

impl Ext4Path {
    /// Checks a path. Nothing is changed in it: what cannot be said as it is, is refused.
    ///
    /// # Errors
    /// [`FilesError::Path`], with the reason.
    pub fn parse(path: &[u8]) -> Result<Self, FilesError> {
        let refused = |why| FilesError::Path { path: shown(&path[..path.len().min(LENGTH_MAX)]), why };
        let text = std::str::from_utf8(path).map_err(|_| refused("it is not UTF-8"))?;
        let Some(names) = text.strip_prefix('/') else { return Err(refused("it is not absolute")) };
        if text.len() > LENGTH_MAX {
            return Err(refused("it is longer than 4095 bytes"));
        }
        if names.is_empty() {
            return Ok(Self::root());
        }
        match names.split('/').find_map(problem) {
            Some(why) => Err(refused(why)),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// `/`.
    #[must_use]
    pub fn root() -> Self {
        Self("/".to_owned())
    }

    /// The path as text; always begins with a slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its directory, and its name there; none for the root.
    pub(super) fn split(&self) -> Option<(Self, &str)> {
        let (parent, name) = self.0.rsplit_once('/').filter(|(_, name)| !name.is_empty())?;
        Some((if parent.is_empty() { Self::root() } else { Self(parent.to_owned()) }, name))
    }

    /// The directories that lead to it, from the root on.
    pub(super) fn ancestors(&self) -> impl Iterator<Item = Self> + '_ {
        let below_root = self.0.match_indices('/').skip(1).map(|(at, _)| Self(self.0[..at].to_owned()));
        std::iter::once(Self::root()).filter(|_| self.0.len() > 1).chain(below_root)
    }
}

impl std::fmt::Display for Ext4Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with a name. Blanks at its ends and control characters are what shells, listings and people lose.
fn problem(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("a name in it is empty"),
        "." | ".." => Some("`.` and `..` are not followed"),
        name if name.len() > NAME_MAX => Some("a name in it is longer than 255 bytes"),
        name if name.contains('"') => Some("a name in it has a quote"),
        name if name.contains(char::is_control) => Some("a name in it has a control character"),
        name if name.trim() != name => Some("a name in it begins or ends with a blank"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_as_it_is_or_not_at_all() {
        for path in ["/", "/a", "/a b/<2>", "/-x/#y", "/!z/\u{fc}\u{2603}\\n", "/...", "/.x/x."] {
            assert_eq!(Ext4Path::parse(path.as_bytes()).unwrap().as_str(), path);
        }
        let deep = format!("/{}", "d/".repeat(2100));
        let long = format!("/{}", "n".repeat(256));
        for (path, why) in [
            (b"".as_slice(), "absolute"),
            (b"etc/passwd", "absolute"),
            (b"/etc/../passwd", "followed"),
            (b"/./etc", "followed"),
            (b"/etc/", "empty"),
            (b"//etc", "empty"),
            (b"/a\nb", "control"),
            (b"/a\tb", "control"),
            (b"/a\0b", "control"),
            (b"/a\x7fb", "control"),
            ("/a\u{85}b".as_bytes(), "control"),
            (b"/a\"b", "quote"),
            (b"/ a", "blank"),
            (b"/a /b", "blank"),
            ("/a\u{3000}".as_bytes(), "blank"),
            (b"/caf\xe9", "UTF-8"),
            (long.as_bytes(), "255"),
            (deep.as_bytes(), "4095"),
        ] {
            let error = Ext4Path::parse(path).unwrap_err();
            assert!(matches!(&error, FilesError::Path { why: said, .. } if said.contains(why)), "{error}");
        }
    }

    #[test]
    fn a_path_knows_what_leads_to_it() {
        let path = |text: &str| Ext4Path::parse(text.as_bytes()).unwrap();
        assert_eq!(path("/a/b c/d").ancestors().collect::<Vec<_>>(), [path("/"), path("/a"), path("/a/b c")]);
        assert_eq!(path("/a/b").split(), Some((path("/a"), "b")));
        assert_eq!(path("/a").split(), Some((path("/"), "a")));
        assert_eq!((path("/").split(), path("/").ancestors().count()), (None, 0));
    }
}
