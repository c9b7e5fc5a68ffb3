//! What a `.dockerignore` leaves out of the context: Docker's rules, read once for a build. Pure but for that, and the file may be
//! anybody's.
//!
//! A line is a pattern below the context directory, `**` any number of directories, `!` an exception, the last line that says something
//! of a path counts, and what is said of a directory is said of all below it (Docker's documentation, "Dockerignore files").

use super::pattern::PathPattern;
use super::source;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// Why it cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum IgnoreError {
    #[error("failed to read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("line {line} of `{}` is no pattern: `{pattern}`", path.display())]
    Pattern { path: PathBuf, line: usize, pattern: String },
}

/// The rules, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Ignored(Vec<Rule>);

#[derive(Clone, Debug)]
struct Rule {
    pattern: PathPattern,
    exception: bool,
}

impl Ignored {
    /// Those for this Containerfile: `NAME.dockerignore` beside it, or else `.dockerignore` (or `.containerignore`) in the context.
    ///
    /// # Errors
    /// A file that is there and cannot be read, or a line in it that is no pattern.
    pub(super) fn read(context: &Path, containerfile: Option<&Path>) -> Result<Self, IgnoreError> {
        let beside = containerfile.map(|file| {
            let mut name = file.as_os_str().to_owned();
            name.push(".dockerignore");
            PathBuf::from(name)
        });
        let inside = [".dockerignore", ".containerignore"].map(|name| context.join(name));
        for path in beside.into_iter().chain(inside) {
            match read(&path) {
                Ok(text) => return Self::parse(&text, &path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(IgnoreError::Read { path, source }),
            }
        }
        Ok(Self::default())
    }

    fn parse(text: &str, path: &Path) -> Result<Self, IgnoreError> {
        let mut rules = Vec::new();
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            // A `#` begins a comment only at the very beginning of a line.
            let line = if line.starts_with('#') { "" } else { line.trim() };
            let (exception, pattern) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            let pattern = PathPattern::new(pattern).map_err(|_| IgnoreError::Pattern {
                path: path.to_owned(),
                line: number + 1,
                pattern: pattern.to_owned(),
            })?;
            if !pattern.is_empty() {
                rules.push(Rule { pattern, exception });
            }
        }
        Ok(Self(rules))
    }

    /// Whether a path below the context is left out.
    pub(super) fn leaves_out(&self, path: &Path) -> bool {
        // A name that is no UTF-8 is matched all the same: by `*`, as any other.
        let names: Vec<_> = path.iter().map(OsStr::to_string_lossy).collect();
        self.0.iter().rev().find(|rule| rule.pattern.covers(&names)).is_some_and(|rule| !rule.exception)
    }

    /// Whether something below what is left out may be an exception.
    pub(super) fn has_exceptions(&self) -> bool {
        self.0.iter().any(|rule| rule.exception)
    }
}

fn read(path: &Path) -> io::Result<String> {
    String::from_utf8(source::found(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;

    fn rules(text: &str) -> Ignored {
        Ignored::parse(text, Path::new(".dockerignore")).unwrap()
    }

    #[test]
    fn the_last_line_that_says_something_counts() {
        let ignored = rules(
            "# comment\n\n*.md\n!README*.md\nREADME-secret.md\n/target/\n**/*.o\nnode_modules\ndocs\n!docs/kept\n",
        );
        for (path, out) in [
            ("a.md", true),
            ("README.md", false),
            ("README-secret.md", true),
            ("sub/a.md", false),
            ("target", true),
            ("target/release/x", true),
            ("sub/target/x", false),
            ("x.o", true),
            ("a/b/x.o", true),
            ("node_modules/a/index.js", true),
            ("docs/left", true),
            ("docs/kept/x", false),
            ("# comment", false),
        ] {
            assert_eq!(ignored.leaves_out(Path::new(path)), out, "{path}");
        }
        assert!(ignored.has_exceptions() && !rules("a\n").has_exceptions());
        assert!(!Ignored::default().leaves_out(Path::new("x")));
    }

    #[test]
    fn a_line_that_is_no_pattern_is_named() {
        let error = Ignored::parse("fine\na[b\n", Path::new("x/.dockerignore")).unwrap_err();
        assert_eq!(error.to_string(), "line 2 of `x/.dockerignore` is no pattern: `a[b`");
    }

    #[test]
    fn a_name_may_be_long_or_no_text() {
        let long = "a".repeat(200);
        assert!(!rules("*a*a*a*a*a*a*a*a*a*a*ab/x\n").leaves_out(&Path::new(&long).join("x")));
        assert!(rules("*\n").leaves_out(Path::new(OsStr::from_bytes(b"\xff"))));
    }

    #[test]
    fn what_never_ends_is_not_read() {
        let context = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", context.path().join(".dockerignore")).unwrap();
        let error = Ignored::read(context.path(), None).unwrap_err();
        assert!(matches!(&error, IgnoreError::Read { source, .. } if source.to_string() == "it is no regular file"));
    }

    #[test]
    fn the_containerfiles_own_comes_first() {
        let context = tempfile::tempdir().unwrap();
        let file = context.path().join("web.Containerfile");
        assert!(!Ignored::read(context.path(), Some(&file)).unwrap().leaves_out(Path::new("a")));
        fs::write(context.path().join(".dockerignore"), "a").unwrap();
        assert!(Ignored::read(context.path(), Some(&file)).unwrap().leaves_out(Path::new("a")));
        fs::write(context.path().join("web.Containerfile.dockerignore"), "b").unwrap();
        assert!(!Ignored::read(context.path(), Some(&file)).unwrap().leaves_out(Path::new("a")));
    }
}
