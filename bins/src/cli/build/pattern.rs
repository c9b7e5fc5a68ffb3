//! Patterns of paths below a directory, as `.dockerignore` and COPY have them: `*`, `?` and `[…]` within a name, and `**` for any
//! number of directories.
//!
//! Whoever wrote the pattern and named the files may be anybody, so nothing here is tried twice: a name is matched by itself, where a
//! star's first match is as good as any other (over a whole path each star is tried again for each other one), and all the ways
//! that `**` leaves open are gone at once.

use super::context::ContextError;
use glob::{MatchOptions, Pattern, PatternError};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

/// A pattern, part by part.
#[derive(Clone, Debug)]
pub(super) struct PathPattern(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    /// `**`: any number of directories, none as well.
    Directories,
    Name(Pattern),
}

impl PathPattern {
    /// Reads one; slashes too many and `.` mean nothing.
    pub(super) fn new(text: &str) -> Result<Self, PatternError> {
        let parts = text.split('/').filter(|part| !matches!(*part, "" | "."));
        let part = |part| if part == "**" { Ok(Part::Directories) } else { Pattern::new(part).map(Part::Name) };
        parts.map(part).collect::<Result<_, _>>().map(Self)
    }

    /// True where there is nothing in it but slashes and dots.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it matches the path of these names, or a directory that this is in.
    pub(super) fn covers(&self, names: &[impl AsRef<str>]) -> bool {
        let last = self.0.len();
        // Which parts the next name may be for.
        let mut now = vec![false; last + 1];
        now[0] = true;
        for name in names {
            let mut then = vec![false; last + 1];
            for (index, part) in self.0.iter().enumerate() {
                match part {
                    _ if !now[index] => {}
                    Part::Directories => {
                        then[index] = true;
                        // At the end it is what lies in a directory, and not that itself.
                        let beyond = if index + 1 == last { &mut then } else { &mut now };
                        beyond[index + 1] = true;
                    }
                    Part::Name(pattern) => then[index + 1] |= pattern.matches_with(name.as_ref(), OPTIONS),
                }
            }
            if then[last] {
                return true;
            }
            if !then.contains(&true) {
                return false;
            }
            now = then;
        }
        false
    }

    /// What there is of it below a directory, in order. `**` goes through no links, which may lead in circles.
    pub(super) fn expand(&self, directory: &Path) -> Result<BTreeSet<PathBuf>, ContextError> {
        let mut found = BTreeSet::from([directory.to_owned()]);
        for part in &self.0 {
            let mut next = BTreeSet::new();
            for path in found.into_iter().filter(|path| path.is_dir()) {
                match part {
                    Part::Directories => directories(path, &mut next)?,
                    Part::Name(pattern) => {
                        let fits =
                            |entry: &fs::DirEntry| pattern.matches_with(&entry.file_name().to_string_lossy(), OPTIONS);
                        next.extend(entries(&path)?.iter().filter(|entry| fits(entry)).map(fs::DirEntry::path));
                    }
                }
            }
            found = next;
        }
        Ok(found)
    }
}

/// Adds a directory and all below it, but for what was added before.
fn directories(top: PathBuf, found: &mut BTreeSet<PathBuf>) -> Result<(), ContextError> {
    let mut todo = vec![top];
    while let Some(path) = todo.pop() {
        if found.contains(&path) {
            continue;
        }
        let below = entries(&path)?;
        let below = below.iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        todo.extend(below.map(fs::DirEntry::path));
        found.insert(path);
    }
    Ok(())
}

fn entries(path: &Path) -> Result<Vec<fs::DirEntry>, ContextError> {
    let read = fs::read_dir(path).and_then(Iterator::collect);
    read.map_err(|source| ContextError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn covers(pattern: &str, path: &str) -> bool {
        PathPattern::new(pattern).unwrap().covers(&path.split('/').collect::<Vec<_>>())
    }

    fn expand(directory: &Path, pattern: &str) -> Vec<String> {
        let found = PathPattern::new(pattern).unwrap().expand(directory).unwrap();
        found.iter().map(|path| path.strip_prefix(directory).unwrap().display().to_string()).collect()
    }

    #[test]
    fn names_and_directories() {
        for (pattern, path, covered) in [
            ("a", "a", true),
            ("a", "a/b/c", true),
            ("a", "b/a", false),
            ("a/b", "a", false),
            ("*", "anything/at/all", true),
            ("*/b", "a/b", true),
            ("*/b", "a/c/b", false),
            ("a?[0-9].*", "ab7.txt", true),
            ("a?[0-9].*", "ab7", false),
            ("**", "a", true),
            ("**/b", "b", true),
            ("**/b", "a/a/b/c", true),
            ("**/b", "a/ab", false),
            ("a/**", "a", false),
            ("a/**", "a/b", true),
            ("a/**/c", "a/c", true),
            ("a/**/c", "a/b/b/c", true),
            ("a/**/c", "b/c", false),
            ("a/**/**/b/**", "a/b", false),
            ("a/**/**/b/**", "a/x/b/y", true),
            ("./a//b/", "a/b", true),
        ] {
            assert_eq!(covers(pattern, path), covered, "{pattern} {path}");
        }
        assert!(PathPattern::new("a/b[c").is_err() && PathPattern::new("/./").unwrap().is_empty());
    }

    #[test]
    fn many_stars_take_no_time() {
        let long = "a".repeat(200);
        assert!(!covers("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*ab/x", &format!("{long}/x")));
        assert!(!covers(&format!("{}b", "**/*a*a*a/".repeat(100)), &format!("{long}/").repeat(100)));
    }

    #[test]
    fn what_is_there_comes_once_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["a/a/a", "b", ".hidden"] {
            fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        for path in ["x", "a/x", "a/a/x", "b/y"] {
            fs::write(directory.path().join(path), "").unwrap();
        }
        symlink("a", directory.path().join("link")).unwrap();
        let expand = |pattern| expand(directory.path(), pattern);
        assert_eq!(expand("**/x"), ["a/a/x", "a/x", "x"]);
        assert_eq!(expand("**/a/**/x"), ["a/a/x", "a/x"]);
        assert_eq!(expand("a/**"), ["a", "a/a", "a/a/a"]);
        assert_eq!(expand("*/x"), ["a/x", "link/x"]);
        assert_eq!(expand(".*"), [".hidden"]);
        assert_eq!(expand("x/*"), [""; 0]);
    }

    #[test]
    fn neither_circles_nor_many_ways_to_one_place_take_time() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["one", "two", "three"] {
            symlink(".", directory.path().join(name)).unwrap();
        }
        fs::create_dir_all(directory.path().join("a/".repeat(40))).unwrap();
        assert_eq!(expand(directory.path(), "**/x"), [""; 0]);
        assert_eq!(expand(directory.path(), &format!("{}x", "**/a/".repeat(20))), [""; 0]);
    }
}
