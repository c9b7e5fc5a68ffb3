//! What debugfs says of files and directories. Pure, strict: what it does not understand is an error, never a guess.
//!
//! Formats: `dump_inode` and `list_dir_proc` of e2fsprogs' debugfs/debugfs.c and debugfs/ls.c, alike from 1.45 to 1.47.

use super::{Ext4Path, FilesError};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Fifo,
    Socket,
}

impl std::fmt::Display for FileKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Regular => "regular file",
            Self::Directory => "directory",
            Self::Symlink => "symbolic link",
            Self::CharacterDevice => "character device",
            Self::BlockDevice => "block device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        })
    }
}

impl FileKind {
    /// The upper bits of `i_mode` (linux/stat.h).
    pub(super) const fn bits(self) -> u32 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Symlink => 0o120_000,
            Self::CharacterDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
        }
    }

    const ALL: [Self; 7] = [
        Self::Regular,
        Self::Directory,
        Self::Symlink,
        Self::CharacterDevice,
        Self::BlockDevice,
        Self::Fifo,
        Self::Socket,
    ];

    /// By the name that debugfs has for it.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "regular" => Self::Regular,
            "directory" => Self::Directory,
            "symlink" => Self::Symlink,
            "character special" => Self::CharacterDevice,
            "block special" => Self::BlockDevice,
            "FIFO" => Self::Fifo,
            "socket" => Self::Socket,
            _ => return None,
        })
    }
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStat {
    pub path: Ext4Path,
    pub inode: u32,
    pub kind: FileKind,
    /// The twelve permission bits, setuid, setgid and sticky among them.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of contents; of a symbolic link, of its target.
    pub size: u64,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// As it is in the disk: any bytes but line ends, `/` and NUL.
    pub name: OsString,
    pub inode: u32,
    pub kind: FileKind,
    /// The twelve permission bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of contents; 0 for a directory.
    pub size: u64,
}

/// The answer to `stat`; nothing where nothing is there, which debugfs says elsewhere.
pub(super) fn stat(path: &Ext4Path, answer: &[u8]) -> Result<Option<FileStat>, FilesError> {
    if answer.is_empty() {
        return Ok(None);
    }
    // The fourth line and those after it may show what a guest wrote: attributes, a link's target.
    let head: Vec<u8> = answer.split_inclusive(|byte| *byte == b'\n').take(3).flatten().copied().collect();
    let understood = std::str::from_utf8(&head).ok().and_then(|head| stat_head(path, head));
    understood.map(Some).ok_or_else(|| FilesError::Output { line: excerpt(answer) })
}

fn stat_head(path: &Ext4Path, head: &str) -> Option<FileStat> {
    let mut lines = head.lines();
    let first = lines.next()?.strip_prefix("Inode: ")?;
    let (inode, rest) = first.split_once("Type: ")?;
    let (kind, rest) = rest.split_once("Mode:")?;
    let (mode, _) = rest.split_once("Flags:")?;
    lines.next()?.strip_prefix("Generation: ")?;
    let third: Vec<&str> = lines.next()?.split_whitespace().collect();
    let after = |word: &str| third.iter().position(|token| *token == word).and_then(|at| third.get(at + 1)).copied();
    Some(FileStat {
        path: path.clone(),
        inode: inode.trim().parse().ok()?,
        kind: FileKind::named(kind.trim())?,
        mode: u16::from_str_radix(mode.trim(), 8).ok().filter(|mode| *mode <= 0o7777)?,
        uid: id(after("User:")?)?,
        gid: id(after("Group:")?)?,
        size: after("Size:")?.parse().ok()?,
    })
}

/// debugfs prints owners as signed numbers.
fn id(text: &str) -> Option<u32> {
    text.parse::<u32>().ok().or_else(|| text.parse::<i32>().ok().map(i32::cast_unsigned))
}

/// The answer to `ls -p`: a line `/INODE/MODE/UID/GID/NAME/SIZE/` for each entry, the size left out for directories.
pub(super) fn list(answer: &[u8]) -> Result<Vec<DirectoryEntry>, FilesError> {
    let lines = answer.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let entries = lines.map(|line| entry(line).ok_or_else(|| FilesError::Output { line: excerpt(line) }));
    let own = |entry: &DirectoryEntry| entry.name == "." || entry.name == "..";
    entries.filter(|entry| !entry.as_ref().is_ok_and(own)).collect()
}

fn entry(line: &[u8]) -> Option<DirectoryEntry> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b'/').collect();
    let [b"", inode, mode, uid, gid, name, size, b""] = fields.as_slice() else { return None };
    let text = |field: &'_ [u8]| std::str::from_utf8(field).map(str::to_owned).ok();
    let mode = u32::from_str_radix(&text(mode)?, 8).ok()?;
    let kind = FileKind::ALL.into_iter().find(|kind| kind.bits() == mode & !0o7777)?;
    let size = match (text(size)?.as_str(), kind) {
        ("", FileKind::Directory) => 0,
        (size, _) => size.parse().ok()?,
    };
    Some(DirectoryEntry {
        name: OsString::from_vec(name.to_vec()),
        inode: text(inode)?.parse().ok()?,
        kind,
        mode: u16::try_from(mode & 0o7777).ok()?,
        uid: id(&text(uid)?)?,
        gid: id(&text(gid)?)?,
        size,
    })
}

/// What a guest may have written, as an error shows it.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(120)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANSWER: &str = "Inode: 13   Type: character special    Mode:  04755   Flags: 0x80000\n\
        Generation: 0    Version: 0x00000000:00000000\n\
        User:    -2   Group: 70000   Project:     0   Size: 17592186044416\n\
        File ACL: 0\nFast link dest: \"\nUser: 0\"\n";

    #[test]
    fn a_stat_is_what_its_first_lines_say() {
        let path = Ext4Path::parse(b"/x").unwrap();
        let said = stat(&path, ANSWER.as_bytes()).unwrap().unwrap();
        let expected = FileStat {
            path: path.clone(),
            inode: 13,
            kind: FileKind::CharacterDevice,
            mode: 0o4755,
            uid: 4_294_967_294,
            gid: 70_000,
            size: 16 << 40,
        };
        assert_eq!(said, expected);
        assert_eq!(stat(&path, b"").unwrap(), None);
        for (from, to) in
            [("13 ", "x "), ("character", "odd"), ("4755", "14755"), ("-2", "5000000000"), ("Size", "Sise")]
        {
            stat(&path, ANSWER.replace(from, to).as_bytes()).unwrap_err();
        }
    }

    #[test]
    fn a_list_keeps_names_as_they_are_and_understands_every_line_or_none() {
        let lines = b"/12/040755/0/0/.//\n/2/040755/0/0/..//\n/13/104755/-2/7/caf\xe9 <2>/3/\n/14/120777/0/0/l/7/\n\n";
        let entries = list(lines).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[0].name.as_encoded_bytes(), entries[0].uid), (b"caf\xe9 <2>".as_slice(), 4_294_967_294));
        assert_eq!((entries[1].kind, entries[1].size, entries[1].mode), (FileKind::Symlink, 7, 0o777));
        // A name with a line end in it, with a slash in it, and a mode that is none.
        for bad in
            ["/15/100644/0/0/a\nb/3/\n", "/15/100644/0/0/a/b/3/\n", "/15/700644/0/0/a/3/\n", "/15/100644/0/0/a//\n"]
        {
            list(bad.as_bytes()).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn nothing_that_it_may_say_is_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0..ANSWER.len()) {
            let path = Ext4Path::root();
            let mixed = [&ANSWER.as_bytes()[..cut], &bytes].concat();
            // Either is fine: that it returns is what counts.
            drop((stat(&path, &mixed), stat(&path, &bytes), list(&bytes)));
        }
    }
}
