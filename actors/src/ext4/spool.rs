//! File contents on their way from an archive into a file system: appended in their order, to the file that becomes that file
//! system, at the place where they stay. Each begins at a block of its own.

use super::Ext4Error;
use super::build::is_zero;
use super::image_file::ImageFile;
use super::writer::BLOCK;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// How much is gathered before it is written, in bytes: small files go out many at a time.
const BUFFER: usize = 1 << 20;
const BLOCK_BYTES: usize = 4096;
/// How often, in bytes, the free space is looked at.
const CHECK_EVERY: u64 = 64 << 20;
/// Free space that is left alone, in bytes; of a small disk a twentieth.
const ROOM_LEFT: u64 = 1 << 30;

/// One archive's contents.
#[derive(Debug)]
pub struct Spool {
    image: Arc<ImageFile>,
    number: usize,
    /// Where its contents begin in the image, once that is known.
    base: Option<u64>,
    /// Until then they go here; all before `detoured` did.
    detour: Option<File>,
    detoured: u64,
    /// Whole blocks.
    length: u64,
    /// What has been appended last and is not written yet: ends at `length`, or in the middle of a file.
    buffer: Vec<u8>,
    filled: usize,
    /// Where the buffer's contents begin.
    start: u64,
    hashes: Hashes,
    /// When the file system is looked at again.
    checked: u64,
    complete: bool,
}

/// Whether contents are hashed on their way: not where a digest of the whole archive says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hashes {
    Kept,
    Left,
}

/// False once a file's file system is so full that what comes from elsewhere must not fill it further.
#[must_use]
pub fn has_room(file: &File) -> bool {
    has_room_for(file, 0)
}

/// The same, once so many bytes more are on it.
#[must_use]
pub fn has_room_for(file: &File, bytes: u64) -> bool {
    let Ok(stat) = nix::sys::statvfs::fstatvfs(file) else { return true };
    let (free, whole) = (stat.blocks_available() * stat.fragment_size(), stat.blocks() * stat.fragment_size());
    free >= ROOM_LEFT.min(whole / 20).saturating_add(bytes)
}

/// Where a file's contents are.
#[derive(Debug, Clone, Copy)]
pub struct Spooled {
    /// Which of a tree's spools: its own place among them.
    pub spool: u16,
    /// From that spool's beginning, in bytes; a multiple of the block.
    pub offset: u64,
    pub length: u64,
    /// Zeros where hashes were left.
    pub sha256: [u8; 32],
}

impl Spool {
    /// The spool of this number of an image. Those before it may still be growing.
    #[must_use]
    pub fn new(image: &Arc<ImageFile>, number: usize, hashes: Hashes) -> Self {
        image.announce(number);
        Self {
            image: Arc::clone(image),
            number,
            base: None,
            detour: None,
            detoured: 0,
            length: 0,
            buffer: vec![0; BUFFER],
            filled: 0,
            start: 0,
            hashes,
            checked: 0,
            complete: false,
        }
    }

    /// Appends all of `reader`.
    ///
    /// # Errors
    /// When it cannot be read or kept.
    pub fn append(&mut self, reader: &mut dyn Read) -> Result<Spooled, Ext4Error> {
        let offset = self.length;
        let (mut hash, mut length) = (Sha256::new(), 0);
        loop {
            if self.filled == self.buffer.len() {
                self.flush()?;
            }
            let count = match reader.read(&mut self.buffer[self.filled..]) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Ext4Error::Archive(error)),
            };
            if self.hashes == Hashes::Kept {
                hash.update(&self.buffer[self.filled..self.filled + count]);
            }
            self.filled += count;
            length += count as u64;
        }
        // The next file begins at a block of its own. The buffer is a whole number of blocks long, so there is room.
        let end = self.filled.next_multiple_of(BLOCK_BYTES);
        self.buffer[self.filled..end].fill(0);
        self.filled = end;
        self.length = offset + length.next_multiple_of(BLOCK);
        let sha256 = match self.hashes {
            Hashes::Kept => hash.finalize().into(),
            Hashes::Left => [0; 32],
        };
        Ok(Spooled { spool: 0, offset, length, sha256 })
    }

    /// Writes what is gathered. Zeros are a hole: what only claims to be large takes no space.
    fn flush(&mut self) -> Result<(), Ext4Error> {
        // A hole is read without its archive being read, where it would be seen.
        self.image.check_cancelled()?;
        if self.base.is_none() {
            self.base = self.image.base(self.number);
        }
        let failed = |source| Ext4Error::spool(self.image.directory(), source);
        let (file, base) = match (self.base, &mut self.detour) {
            (Some(base), _) => (self.image.file(), base),
            (None, Some(detour)) => (&*detour, 0),
            (None, empty @ None) => {
                let made = tempfile::tempfile_in(self.image.directory()).map_err(failed)?;
                (&*empty.insert(made), 0)
            }
        };
        let gathered = &self.buffer[..self.filled];
        let mut at = 0;
        while at < gathered.len() {
            let blocks = gathered[at..].chunks(BLOCK_BYTES);
            let zeros = blocks.clone().take_while(|block| is_zero(block)).count() * BLOCK_BYTES;
            let begin = (at + zeros).min(gathered.len());
            let data = gathered[begin..].chunks(BLOCK_BYTES).take_while(|block| !is_zero(block)).count() * BLOCK_BYTES;
            let end = (begin + data).min(gathered.len());
            if end > begin {
                file.write_all_at(&gathered[begin..end], base + self.start + begin as u64).map_err(failed)?;
            }
            at = end;
        }
        self.start += self.filled as u64;
        self.filled = 0;
        if self.base.is_none() {
            self.detoured = self.start;
        }
        if self.start - self.checked >= CHECK_EVERY {
            self.checked = self.start;
            // A few kilobytes can unpack to anything: the disk that the VMs write to is never filled by it.
            if !has_room(self.image.file()) {
                return Err(Ext4Error::NoSpace { path: self.image.directory().to_owned() });
            }
        }
        Ok(())
    }

    /// Nothing more is appended: those behind it may learn where they begin.
    ///
    /// # Errors
    /// When what is left cannot be written.
    pub fn complete(&mut self) -> Result<(), Ext4Error> {
        if !self.complete {
            self.flush()?;
            self.complete = true;
            self.buffer = Vec::new();
            self.image.complete(self.number, self.length, self.detour.take().map(|detour| (detour, self.detoured)));
        }
        Ok(())
    }

    /// Bytes kept so far, in whole blocks.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The image that it is a part of.
    #[must_use]
    pub fn image(&self) -> &Arc<ImageFile> {
        &self.image
    }

    /// Reads one file's contents back: of an image's first spool at any time, of the others when they have been settled.
    #[must_use]
    pub fn reader(&self, spooled: &Spooled) -> SpoolReader<'_> {
        SpoolReader { spool: self, offset: spooled.offset, remaining: spooled.length }
    }
}

/// Reads one file's contents.
#[derive(Debug)]
pub struct SpoolReader<'a> {
    spool: &'a Spool,
    offset: u64,
    remaining: u64,
}

impl Read for SpoolReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let spool = self.spool;
        let most = |left: u64| usize::try_from(left).unwrap_or(usize::MAX);
        let buffer = match most(self.remaining) {
            least if least < buffer.len() => &mut buffer[..least],
            _ => buffer,
        };
        let count = if self.offset >= spool.start && spool.filled > 0 {
            let at = most(self.offset - spool.start);
            let count = buffer.len().min(spool.filled - at);
            buffer[..count].copy_from_slice(&spool.buffer[at..at + count]);
            count
        } else {
            let base = spool.image.base(spool.number).ok_or_else(|| io::Error::other("it has no place yet"))?;
            let count = buffer.len().min(most(spool.start - self.offset));
            match spool.image.file().read_at(&mut buffer[..count], base + self.offset)? {
                // The file ends where its last hole begins.
                0 => {
                    buffer[..count].fill(0);
                    count
                }
                count => count,
            }
        };
        self.offset += count as u64;
        self.remaining -= count as u64;
        Ok(count)
    }
}
