//! What can go wrong when a file system is written.

use crate::ext4::writer::attributes::ROOM;
use std::io;

/// Why no file system came of it. Paths are as a shell would show them, bytes that are no ASCII escaped.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    #[error("the label `{label}` has more than 16 bytes")]
    Label { label: String },
    #[error(
        "`{path}` has a name that no directory can have: it is empty, a dot or two, too long, or has a slash or zero in it"
    )]
    Name { path: String },
    #[error("`{path}` is there twice")]
    Twice { path: String },
    #[error("`{path}` is no directory")]
    NotDirectory { path: String },
    #[error("`{path}` is a directory, which has one name only")]
    DirectoryLink { path: String },
    #[error("`{path}` has more than {limit} names")]
    Links { path: String, limit: u32 },
    #[error("the target of the symbolic link `{path}` has {length} bytes, not 1 to {limit}, or a zero in it")]
    Target { path: String, length: usize, limit: usize },
    #[error("the device `{path}` has the numbers {major}:{minor}, which are more than 12 and 20 bits")]
    Device { path: String, major: u32, minor: u32 },
    #[error("the contents of `{path}` are {problem}")]
    Contents { path: String, problem: &'static str },
    #[error("the contents of `{path}` have block {block}, which something else has already")]
    Overlap { path: String, block: u32 },
    #[error("`{path}` cannot have the extended attribute `{name}`: {problem}")]
    Attribute { path: String, name: String, problem: &'static str },
    #[error(
        "the extended attribute `{name}` of `{path}` has {size} bytes, for which there is no room: all of a file's have {} bytes in its inode and {} in a block", ROOM.0, ROOM.1
    )]
    NoRoom { path: String, name: String, size: usize },
    #[error("the directory `{path}` has more entries than fit a hash tree of two levels")]
    DirectorySize { path: String },
    #[error("there are more than {limit} {what}")]
    TooMuch { what: &'static str, limit: u64 },
    #[error("the area of contents ends at block {end}, outside of what it can be: {first} to {last}")]
    DataEnd { end: u32, first: u32, last: u32 },
    #[error("failed to write the file system")]
    Write(#[source] io::Error),
}
