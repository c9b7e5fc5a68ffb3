//! Writes blocks one after the other, from the end of the contents on, in large pieces. What is skipped stays a hole.

use crate::ext4::writer::BLOCK;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Written at a time, in bytes.
const PIECE: usize = 1 << 20;

/// A place in a file that only moves forward.
#[derive(Debug)]
pub(in crate::ext4) struct Sink<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// The block that the buffer begins at.
    start: u64,
}

impl<'a> Sink<'a> {
    pub(in crate::ext4) fn new(file: &'a File, block: u32) -> Self {
        Self { file, buffer: Vec::with_capacity(PIECE), start: block.into() }
    }

    /// The block that comes next. May be beyond what 32 bits can number: whoever keeps one asks [`Self::block`].
    fn next(&self) -> u64 {
        self.start + self.buffer.len() as u64 / BLOCK
    }

    /// The number of the block that comes next.
    pub(in crate::ext4) fn block(&self) -> io::Result<u32> {
        u32::try_from(self.next()).map_err(|_| io::ErrorKind::FileTooLarge.into())
    }

    /// Appends whole blocks.
    pub(in crate::ext4) fn push(&mut self, blocks: &[u8]) -> io::Result<()> {
        debug_assert!((blocks.len() as u64).is_multiple_of(BLOCK), "only whole blocks");
        if self.buffer.len() + blocks.len() > PIECE {
            self.flush()?;
        }
        self.buffer.extend_from_slice(blocks);
        Ok(())
    }

    /// Leaves blocks of zeros out.
    pub(in crate::ext4) fn skip(&mut self, blocks: u32) -> io::Result<()> {
        self.flush()?;
        self.start += u64::from(blocks);
        Ok(())
    }

    /// Writes what is buffered.
    pub(in crate::ext4) fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.start * BLOCK)?;
        self.start = self.next();
        self.buffer.clear();
        Ok(())
    }
}
