//! Packs what COPY names, or a script, into a tar archive. Nothing outside of the context directory is read, and nothing of what is to be left out.

use super::ignored::Ignored;
use super::pattern::PathPattern;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

/// Why something cannot be copied.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContextError {
    #[error("`{0}` leads out of the context directory")]
    Outside(String),
    #[error("`{0}` matches nothing in the context directory")]
    Missing(String),
    #[error("`{0}` matches nothing but what the context's `.dockerignore` leaves out")]
    LeftOut(String),
    #[error("`{0}` is no pattern")]
    Pattern(String),
    #[error("`{}` is neither file, directory nor symbolic link", .0.display())]
    Kind(PathBuf),
    #[error("failed to read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("failed to pack the files")]
    Pack(#[source] io::Error),
}

/// How files are to be in the image.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    /// User and group; root when absent.
    pub(super) owner: Option<(u64, u64)>,
    /// Of files and directories; their own when absent.
    pub(super) mode: Option<u32>,
}

/// What was packed.
#[derive(Debug)]
pub(super) struct Packed {
    /// At its beginning.
    pub(super) archive: File,
    /// One file, and nothing else.
    pub(super) one_file: bool,
}

/// Packs `sources`, paths or patterns below `directory`: files by their names, directories' contents without theirs.
pub(super) fn pack(
    directory: &Path,
    ignored: &Ignored,
    sources: &[String],
    marks: Marks,
) -> Result<Packed, ContextError> {
    let archive = tempfile::tempfile().map_err(ContextError::Pack)?;
    let root = real(directory)?;
    let mut packer = Packer { builder: tar::Builder::new(archive), marks, directory: &root, ignored };
    packer.builder.follow_symlinks(false);
    let mut files = 0;
    let mut directories = 0;
    for source in sources {
        let mut found = 0;
        for path in matches(&root, source)? {
            if packer.is_left_out(&path) {
                continue;
            }
            // One that is named itself is followed, as Docker does; links below a directory stay links. The rules are about
            // what is there as much as about the link to it.
            let target = real(&path)?;
            if !target.starts_with(&root) {
                return Err(ContextError::Outside(source.clone()));
            }
            if packer.is_left_out(&target) {
                continue;
            }
            found += 1;
            let metadata =
                fs::metadata(&target).map_err(|source| ContextError::Read { path: target.clone(), source })?;
            if metadata.is_dir() {
                directories += 1;
                packer.contents(&target)?;
            } else {
                files += 1;
                let name = path.file_name().map(PathBuf::from).unwrap_or_default();
                packer.file(&target, &name, &metadata)?;
            }
        }
        if found == 0 {
            return Err(ContextError::LeftOut(source.clone()));
        }
    }
    Ok(Packed { archive: finished(packer.builder)?, one_file: files == 1 && directories == 0 })
}

/// Packs a script that has been read. It is no part of a context: no rule leaves it out, and its name means nothing.
pub(super) fn pack_script(text: &[u8]) -> Result<File, ContextError> {
    let mut builder = tar::Builder::new(tempfile::tempfile().map_err(ContextError::Pack)?);
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(text.len() as u64);
    builder.append_data(&mut header, "script", text).map_err(ContextError::Pack)?;
    finished(builder)
}

fn finished(builder: tar::Builder<File>) -> Result<File, ContextError> {
    let mut archive = builder.into_inner().map_err(ContextError::Pack)?;
    archive.flush().and_then(|()| io::Seek::rewind(&mut archive)).map_err(ContextError::Pack)?;
    Ok(archive)
}

fn matches(directory: &Path, source: &str) -> Result<BTreeSet<PathBuf>, ContextError> {
    let relative = Path::new(source.trim_start_matches('/'));
    if relative.components().any(|component| matches!(component, Component::ParentDir)) {
        return Err(ContextError::Outside(source.to_owned()));
    }
    let literal = directory.join(relative);
    if literal.symlink_metadata().is_ok() {
        return Ok(BTreeSet::from([literal]));
    }
    let pattern = PathPattern::new(source).map_err(|_| ContextError::Pattern(source.to_owned()))?;
    let mut found = pattern.expand(directory)?;
    if source.ends_with('/') {
        found.retain(|path| path.is_dir());
    }
    if found.is_empty() { Err(ContextError::Missing(source.to_owned())) } else { Ok(found) }
}

/// The path without links in it.
fn real(path: &Path) -> Result<PathBuf, ContextError> {
    path.canonicalize().map_err(|source| ContextError::Read { path: path.to_owned(), source })
}

/// A directory that is being packed. It is not held open: there may be more of them than files may be open.
struct Level {
    path: PathBuf,
    /// In the archive.
    name: PathBuf,
    /// The names in it that are still to come.
    entries: std::vec::IntoIter<OsString>,
}

impl Level {
    fn read(path: PathBuf, name: PathBuf) -> Result<Self, ContextError> {
        let names = |directory: fs::ReadDir| directory.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>();
        match fs::read_dir(&path).and_then(names) {
            Ok(names) => {
                let mut names: Vec<OsString> = names;
                names.sort();
                Ok(Self { path, name, entries: names.into_iter() })
            }
            Err(source) => Err(ContextError::Read { path, source }),
        }
    }
}

struct Packer<'a> {
    builder: tar::Builder<File>,
    marks: Marks,
    /// The context, without links in its path.
    directory: &'a Path,
    ignored: &'a Ignored,
}

impl Packer<'_> {
    /// True where nothing at this path, or below it, is to be packed.
    fn is_left_out(&self, path: &Path) -> bool {
        let mut todo = vec![path.to_owned()];
        while let Some(path) = todo.pop() {
            if !self.is_named(&path) {
                return false;
            }
            let is_directory = || path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
            if self.ignored.has_exceptions() && is_directory() {
                todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            }
        }
        true
    }

    /// True where the rules leave out this path, whatever they say of what is below it.
    fn is_named(&self, path: &Path) -> bool {
        // Collected anew: patterns are matched against the text, which may have dots in it.
        let relative: PathBuf = path.strip_prefix(self.directory).unwrap_or(path).components().collect();
        // The context itself is what rules are about, not what they can leave out.
        !relative.as_os_str().is_empty() && self.ignored.leaves_out(&relative)
    }

    /// Everything below the directory `path`, by its name there. Without recursion: how deep it goes is for whoever made the
    /// context to say, and a stack that overflows ends the program.
    fn contents(&mut self, path: &Path) -> Result<(), ContextError> {
        let mut levels = vec![Level::read(path.to_owned(), PathBuf::new())?];
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.entries.next() else {
                levels.pop();
                continue;
            };
            let (path, name) = (level.path.join(&entry), level.name.join(&entry));
            if !self.is_left_out(&path) && self.entry(&path, &name)? {
                levels.push(Level::read(path, name)?);
            }
        }
        Ok(())
    }

    /// One thing in a directory; true where it is one itself, whose contents come next.
    fn entry(&mut self, path: &Path, name: &Path) -> Result<bool, ContextError> {
        let read = |source| ContextError::Read { path: path.to_owned(), source };
        let metadata = path.symlink_metadata().map_err(read)?;
        if metadata.is_dir() {
            let mut header = self.header(&metadata, tar::EntryType::Directory);
            self.builder.append_data(&mut header, name, io::empty()).map_err(ContextError::Pack)?;
        } else if metadata.is_symlink() {
            let target = fs::read_link(path).map_err(read)?;
            let mut header = self.header(&metadata, tar::EntryType::Symlink);
            self.builder.append_link(&mut header, name, &target).map_err(ContextError::Pack)?;
        } else {
            self.file(path, name, &metadata)?;
        }
        Ok(metadata.is_dir())
    }

    fn file(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> Result<(), ContextError> {
        if !metadata.is_file() {
            return Err(ContextError::Kind(path.to_owned()));
        }
        let file = File::open(path).map_err(|source| ContextError::Read { path: path.to_owned(), source })?;
        let mut header = self.header(metadata, tar::EntryType::Regular);
        header.set_size(metadata.len());
        // One that shrinks meanwhile would shift everything behind it.
        let padded = io::Read::take(io::Read::chain(file, io::repeat(0)), metadata.len());
        self.builder.append_data(&mut header, name, padded).map_err(ContextError::Pack)
    }

    fn header(&self, metadata: &Metadata, kind: tar::EntryType) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(self.marks.mode.unwrap_or_else(|| metadata.permissions().mode() & 0o7777));
        let (user, group) = self.marks.owner.unwrap_or((0, 0));
        header.set_uid(user);
        header.set_gid(group);
        header.set_size(0);
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(packed: Packed) -> Vec<String> {
        let mut archive = tar::Archive::new(packed.archive);
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
    }

    fn context() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("src/deep")).unwrap();
        for (name, text) in [("one.txt", "1"), ("two.txt", "2"), ("src/main.c", "m"), ("src/deep/x", "x")] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        std::os::unix::fs::symlink("main.c", directory.path().join("src/link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("escape")).unwrap();
        directory
    }

    fn packed(directory: &Path, sources: &[&str]) -> Result<Packed, ContextError> {
        let sources: Vec<String> = sources.iter().map(|source| (*source).to_owned()).collect();
        pack(directory, &Ignored::read(directory, None).unwrap(), &sources, Marks::default())
    }

    #[test]
    fn what_is_ignored_is_not_there() {
        let context = context();
        fs::write(context.path().join(".dockerignore"), "two.*\nsrc\n!src/deep\n.dockerignore\n").unwrap();
        assert_eq!(names(packed(context.path(), &["*.txt", "src"]).unwrap()), ["one.txt", "deep", "deep/x"]);
        assert!(matches!(packed(context.path(), &["two.txt"]), Err(ContextError::LeftOut(_))));
        fs::write(context.path().join(".dockerignore"), "*\n!one.txt\n").unwrap();
        assert_eq!(names(packed(context.path(), &["."]).unwrap()), ["one.txt"]);
    }

    #[test]
    fn no_link_leads_to_what_is_ignored() {
        let context = context();
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, context.path().join(name)).unwrap();
        link("two.txt", "link.txt");
        link("src", "sources");
        fs::write(context.path().join(".dockerignore"), "two.txt\nsrc/deep\n").unwrap();
        assert!(matches!(packed(context.path(), &["link.txt"]), Err(ContextError::LeftOut(_))));
        assert_eq!(names(packed(context.path(), &["*.txt"]).unwrap()), ["one.txt"]);
        assert_eq!(names(packed(context.path(), &["sources"]).unwrap()), ["link", "main.c"]);
        assert!(matches!(packed(context.path(), &["sources/deep/x"]), Err(ContextError::LeftOut(_))));
        // The context itself may be a link.
        let other = tempfile::tempdir().unwrap();
        let other = other.path().join("context");
        std::os::unix::fs::symlink(context.path(), &other).unwrap();
        assert!(matches!(packed(&other, &["link.txt"]), Err(ContextError::LeftOut(_))));
        fs::write(context.path().join(".dockerignore"), "link.txt\n").unwrap();
        assert!(matches!(packed(&other, &["link.txt"]), Err(ContextError::LeftOut(_))));
        assert_eq!(names(packed(&other, &["two.txt"]).unwrap()), ["two.txt"]);
    }

    #[test]
    fn a_context_may_be_deeper_than_a_stack() {
        const DEPTH: usize = 1500;
        let context = tempfile::tempdir().unwrap();
        let mut path = context.path().to_owned();
        for _ in 0..DEPTH {
            path.push("d");
            fs::create_dir(&path).unwrap();
        }
        let (root, rules) = (context.path().to_owned(), context.path().join(".dockerignore"));
        // A thread of tokio's for what blocks has no more than this.
        let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
            let all = names(packed(&root, &["."]).unwrap());
            fs::write(&rules, ".dockerignore\nd\n!none\n").unwrap();
            let none = names(packed(&root, &["."]).unwrap());
            fs::remove_file(&rules).unwrap();
            (all, none)
        });
        let packed = thread.unwrap().join();
        // From below: what removes a tree at once holds all of it open.
        path.ancestors().take(DEPTH).for_each(|path| fs::remove_dir(path).unwrap());
        let (all, none) = packed.unwrap();
        assert_eq!((all.len(), all[DEPTH - 1].len(), none.len()), (DEPTH, 2 * DEPTH - 1, 0));
    }

    #[test]
    fn a_pattern_with_a_slash_at_its_end_means_directories() {
        let context = context();
        fs::write(context.path().join("sort"), "").unwrap();
        assert_eq!(names(packed(context.path(), &["s*/"]).unwrap()), ["deep", "deep/x", "link", "main.c"]);
        assert_eq!(names(packed(context.path(), &["**/*.c", "s?rt"]).unwrap()), ["main.c", "sort"]);
    }

    #[test]
    fn files_keep_their_names_and_directories_give_their_contents() {
        let context = context();
        let one = packed(context.path(), &["one.txt"]).unwrap();
        assert!(one.one_file);
        assert_eq!(names(one), ["one.txt"]);
        let many = packed(context.path(), &["*.txt", "src"]).unwrap();
        assert!(!many.one_file);
        assert_eq!(names(many), ["one.txt", "two.txt", "deep", "deep/x", "link", "main.c"]);
        assert_eq!(names(packed(context.path(), &["/src/./main.c"]).unwrap()), ["main.c"]);
    }

    #[test]
    fn owner_and_mode_are_what_was_asked_for() {
        let context = context();
        let marks = Marks { owner: Some((7, 8)), mode: Some(0o711) };
        let packed = pack(context.path(), &Ignored::default(), &["one.txt".to_owned()], marks).unwrap();
        let mut archive = tar::Archive::new(packed.archive);
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mode().unwrap()), (7, 8, 0o711));
    }

    #[test]
    fn nothing_outside_is_read() {
        let context = context();
        assert!(matches!(packed(context.path(), &["../x"]), Err(ContextError::Outside(_))));
        assert!(matches!(packed(context.path(), &["escape"]), Err(ContextError::Outside(_))));
        assert!(matches!(packed(context.path(), &["none*"]), Err(ContextError::Missing(_))));
        assert!(matches!(packed(context.path(), &["a[b"]), Err(ContextError::Pattern(_))));
    }
}
