//! The bytes of SFTP packets. Every length of a client's is checked against what is there.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// The longest packet that is taken, and a little more than the longest data that is given: what OpenSSH's is.
pub(super) const PACKET_MAX: usize = 256 << 10;
/// The longest answer to one read.
pub(super) const DATA_MAX: usize = PACKET_MAX - 1024;

/// Packet types: requests, then answers.
pub(super) const INIT: u8 = 1;
pub(super) const VERSION: u8 = 2;
pub(super) const OPEN: u8 = 3;
pub(super) const CLOSE: u8 = 4;
pub(super) const READ: u8 = 5;
pub(super) const WRITE: u8 = 6;
pub(super) const LSTAT: u8 = 7;
pub(super) const FSTAT: u8 = 8;
pub(super) const SETSTAT: u8 = 9;
pub(super) const FSETSTAT: u8 = 10;
pub(super) const OPENDIR: u8 = 11;
pub(super) const READDIR: u8 = 12;
pub(super) const REMOVE: u8 = 13;
pub(super) const MKDIR: u8 = 14;
pub(super) const RMDIR: u8 = 15;
pub(super) const REALPATH: u8 = 16;
pub(super) const STAT: u8 = 17;
pub(super) const RENAME: u8 = 18;
pub(super) const READLINK: u8 = 19;
pub(super) const SYMLINK: u8 = 20;
pub(super) const EXTENDED: u8 = 200;
pub(super) const STATUS: u8 = 101;
pub(super) const HANDLE: u8 = 102;
pub(super) const DATA: u8 = 103;
pub(super) const NAME: u8 = 104;
pub(super) const ATTRS: u8 = 105;

/// Which attributes follow.
const SIZE: u32 = 1;
const OWNER: u32 = 2;
const PERMISSIONS: u32 = 4;
const TIMES: u32 = 8;
const EXTENSIONS: u32 = 1 << 31;

/// A packet from the client, read from its front.
pub(super) struct Packet<'a>(&'a [u8]);

impl<'a> Packet<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.take(length)
    }

    /// An empty path is the directory that the session began in.
    pub(super) fn path(&mut self) -> Option<PathBuf> {
        let bytes = self.string()?;
        Some(PathBuf::from(OsStr::from_bytes(if bytes.is_empty() { b"." } else { bytes })))
    }

    pub(super) fn attributes(&mut self) -> Option<Attributes> {
        let flags = self.u32()?;
        let mut attributes = Attributes::default();
        if flags & SIZE != 0 {
            attributes.size = Some(self.u64()?);
        }
        if flags & OWNER != 0 {
            attributes.owner = Some((self.u32()?, self.u32()?));
        }
        if flags & PERMISSIONS != 0 {
            attributes.permissions = Some(self.u32()? & 0o7777);
        }
        if flags & TIMES != 0 {
            attributes.times = Some((self.u32()?, self.u32()?));
        }
        if flags & EXTENSIONS != 0 {
            for _ in 0..self.u32()? {
                self.string()?;
                self.string()?;
            }
        }
        Some(attributes)
    }
}

/// What a client wants a file to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    /// User and group.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) permissions: Option<u32>,
    /// Of the last access and change, in seconds since the Unix epoch.
    pub(super) times: Option<(u32, u32)>,
}

/// A packet to the client.
pub(super) struct Answer(Vec<u8>);

/// Why something was not done (section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Status {
    Ok = 0,
    Eof = 1,
    NoSuchFile = 2,
    PermissionDenied = 3,
    Failure = 4,
    Unsupported = 8,
}

impl Answer {
    pub(super) fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(super) fn string(mut self, bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).expect("nothing here is longer than a packet");
        self.0.extend(length.to_be_bytes());
        self.0.extend(bytes);
        self
    }

    pub(super) fn metadata(self, metadata: &Metadata) -> Self {
        let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
        let mut answer = self.u32(SIZE | OWNER | PERMISSIONS | TIMES);
        answer.0.extend(metadata.size().to_be_bytes());
        answer
            .u32(metadata.uid())
            .u32(metadata.gid())
            .u32(metadata.mode())
            .u32(seconds(metadata.atime()))
            .u32(seconds(metadata.mtime()))
    }

    pub(super) fn no_attributes(self) -> Self {
        self.u32(0)
    }

    pub(super) fn status(id: u32, status: Status, message: &str) -> Self {
        Self::new(STATUS).u32(id).u32(status as u32).string(message.as_bytes()).string(b"")
    }

    pub(super) fn error(id: u32, error: &io::Error) -> Self {
        let status = match error.kind() {
            io::ErrorKind::NotFound => Status::NoSuchFile,
            io::ErrorKind::PermissionDenied => Status::PermissionDenied,
            io::ErrorKind::Unsupported => Status::Unsupported,
            io::ErrorKind::UnexpectedEof => Status::Eof,
            _ => Status::Failure,
        };
        Self::status(id, status, &error.to_string())
    }

    /// What another answer holds, behind what is here.
    pub(super) fn append(mut self, other: &Self) -> Self {
        self.0.extend(&other.0[5..]);
        self
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The whole packet.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).expect("nothing here is longer than a packet");
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}
