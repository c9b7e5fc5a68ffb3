//! The file that becomes a file system, while contents are put into it: where each spool's contents lie in it.
//!
//! Spools are filled side by side, and the file must not tell which was faster: the second's contents lie behind the first's,
//! and so on. So where a spool's contents go is known once all before it are complete. What comes earlier takes a detour through
//! a nameless file; [`ImageFile::settle`] brings it home.
//!
//! It also keeps count of what all that is read for it takes in memory: layers are read side by side, and their bound is one.

use super::Ext4Error;
use super::spool::has_room;
use super::tree::{CONTENT_MAX, NODES_MAX};
use super::writer::{BLOCK, DATA_START};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::{NamedTempFile, TempPath};
use tokio_util::sync::CancellationToken;

/// How much is copied at once where the kernel cannot do it by itself, in bytes.
const CHUNK: usize = 1 << 20;
/// The most that names, targets of links and attributes of all archives of one image may take, in bytes: they stay in memory until
/// it is written. An image of half a million files has some 50 MiB of them.
pub(super) const NAMES_MAX: u64 = 512 << 20;

/// What may be read for one image, and until when.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The most contents that one archive may have, in bytes.
    pub contents: u64,
    /// Ends the reading: a few kilobytes of an archive can be hours of work.
    pub cancel: CancellationToken,
}

impl Default for Limits {
    fn default() -> Self {
        Self { contents: CONTENT_MAX, cancel: CancellationToken::new() }
    }
}

/// The file, which vanishes unless it is kept.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    path: Mutex<Option<TempPath>>,
    directory: PathBuf,
    segments: Mutex<Vec<Segment>>,
    limits: Limits,
    entries: AtomicU64,
    names: AtomicU64,
}

/// One spool's part of the file.
#[derive(Debug, Default)]
struct Segment {
    /// Its length in bytes, whole blocks, once it is complete.
    length: Option<u64>,
    /// What still has to be brought home: everything before this offset.
    detour: Option<(File, u64)>,
}

impl ImageFile {
    /// Makes one in `directory`.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(directory: &Path) -> Result<Self, Ext4Error> {
        Self::limited(directory, Limits::default())
    }

    /// The same, with limits of the caller's.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn limited(directory: &Path, limits: Limits) -> Result<Self, Ext4Error> {
        let made = NamedTempFile::with_prefix_in(".contents-", directory);
        let (file, path) = made.map_err(|source| Ext4Error::spool(directory, source))?.into_parts();
        let (path, segments) = (Mutex::new(Some(path)), Mutex::default());
        let (entries, names) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { file, path, directory: directory.to_owned(), segments, limits, entries, names })
    }

    /// Where it lies.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn failed(&self, source: io::Error) -> Ext4Error {
        Ext4Error::spool(&self.directory, source)
    }

    /// # Errors
    /// When it was cancelled.
    pub(super) fn check_cancelled(&self) -> Result<(), Ext4Error> {
        if self.limits.cancel.is_cancelled() { Err(Ext4Error::Cancelled) } else { Ok(()) }
    }

    /// # Errors
    /// When an archive has more contents than it may.
    pub(super) fn check_contents(&self, bytes: u64) -> Result<(), Ext4Error> {
        let limit = self.limits.contents;
        if bytes > limit { Err(Ext4Error::TooMuch { what: "bytes", limit }) } else { Ok(()) }
    }

    /// Takes note of an entry that stays in memory, with so many bytes of names and attributes.
    ///
    /// # Errors
    /// When there are too many, or it was cancelled.
    pub(super) fn remember(&self, names: u64) -> Result<(), Ext4Error> {
        self.check_cancelled()?;
        let limit = NODES_MAX as u64;
        if self.entries.fetch_add(1, Ordering::Relaxed) >= limit {
            return Err(Ext4Error::TooMuch { what: "entries", limit });
        }
        if self.names.fetch_add(names, Ordering::Relaxed).saturating_add(names) > NAMES_MAX {
            return Err(Ext4Error::TooMuch { what: "bytes of names and attributes", limit: NAMES_MAX });
        }
        Ok(())
    }

    fn segments(&self) -> MutexGuard<'_, Vec<Segment>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that there is a spool of this number; spools lie in the order of their numbers.
    pub(super) fn announce(&self, number: usize) {
        let mut segments = self.segments();
        if segments.len() <= number {
            segments.resize_with(number + 1, Segment::default);
        }
    }

    /// Where a spool's contents begin in the file, in bytes; `None` as long as one before it grows.
    #[must_use]
    pub fn base(&self, number: usize) -> Option<u64> {
        base(&self.segments(), number)
    }

    /// A spool is complete; all before `detoured` is in `detour`.
    pub(super) fn complete(&self, number: usize, length: u64, detour: Option<(File, u64)>) {
        self.segments()[number] = Segment { length: Some(length), detour };
    }

    /// Brings home whatever can be, and what nobody else is at. Blocks.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn settle(&self) -> Result<(), Ext4Error> {
        while let Some((detour, length, base)) = self.next_detour() {
            if !has_room(&self.file) {
                return Err(Ext4Error::NoSpace { path: self.directory.clone() });
            }
            bring_home(&detour, length, &self.file, base).map_err(|source| self.failed(source))?;
        }
        Ok(())
    }

    fn next_detour(&self) -> Option<(File, u64, u64)> {
        let mut segments = self.segments();
        for number in 0..segments.len() {
            let Some(base) = base(&segments, number) else { break };
            if let Some((detour, length)) = segments[number].detour.take() {
                return Some((detour, length, base));
            }
        }
        None
    }

    /// Where the contents end, in bytes. All spools must be complete.
    pub(super) fn end(&self) -> u64 {
        let segments = self.segments();
        let all: u64 = segments.iter().map(|segment| segment.length.expect("every spool is complete")).sum();
        u64::from(DATA_START) * BLOCK + all
    }

    /// Gives the disk back what lies between `from` and `to`. Only a wish: some file systems cannot.
    pub(super) fn punch(&self, from: u64, to: u64) {
        let range = i64::try_from(from).and_then(|from| Ok((from, i64::try_from(to)? - from)));
        if let Ok((from, length)) = range {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            if let Err(error) = fallocate(&self.file, flags, from, length) {
                tracing::debug!(%error, "what was replaced keeps its room in the image");
            }
        }
    }

    /// Gives it its name, on the same file system.
    pub(super) fn keep(&self, path: &Path) -> io::Result<()> {
        let held = self.path.lock().unwrap_or_else(PoisonError::into_inner).take();
        held.expect("a file is kept once").persist(path).map_err(|refused| refused.error)
    }
}

fn base(segments: &[Segment], number: usize) -> Option<u64> {
    segments[..number].iter().try_fold(u64::from(DATA_START) * BLOCK, |at, before| Some(at + before.length?))
}

/// Copies what a file holds before `length`, holes left out, to `base` of another.
fn bring_home(from: &File, length: u64, to: &File, base: u64) -> io::Result<()> {
    let offset = |at: u64| i64::try_from(at).map_err(io::Error::other);
    let mut at = 0;
    while at < length {
        let data = match lseek(from, offset(at)?, Whence::SeekData) {
            Ok(data) => u64::try_from(data).map_err(io::Error::other)?,
            // Nothing but a hole.
            Err(Errno::ENXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = u64::try_from(lseek(from, offset(data)?, Whence::SeekHole)?).map_err(io::Error::other)?;
        at = hole.min(length);
        copy(from, data, to, base + data, at.saturating_sub(data))?;
    }
    Ok(())
}

fn copy(from: &File, mut at: u64, to: &File, mut place: u64, mut left: u64) -> io::Result<()> {
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(1 << 30);
        let (mut source, mut target) =
            (i64::try_from(at).map_err(io::Error::other)?, i64::try_from(place).map_err(io::Error::other)?);
        let copied = match copy_file_range(from, Some(&mut source), to, Some(&mut target), wanted) {
            Ok(0) | Err(Errno::EXDEV | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EPERM) => {
                let mut bytes = vec![0; CHUNK.min(wanted)];
                from.read_exact_at(&mut bytes, at)?;
                to.write_all_at(&bytes, place)?;
                bytes.len()
            }
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let copied = copied as u64;
        (at, place, left) = (at + copied, place + copied, left - copied);
    }
    Ok(())
}
