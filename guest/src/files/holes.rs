//! Where a file has data and where it has holes (lseek(2), `SEEK_DATA`), and its data alone. Decides when that is worth while.

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

/// Smaller holes are read as the zeros that they are, in bytes.
const HOLES_MIN: u64 = 256 << 10;
/// A file in more pieces than this is read whole: the list of them would be longer than what it saves.
const PIECES_MAX: usize = 4096;

/// A file's data: offset and length of each piece, in bytes, in order.
pub(super) type Pieces = Vec<(u64, u64)>;

/// The pieces of a file of this length that has holes worth leaving out; `None` for any other.
pub(super) fn find(file: &File, length: u64) -> io::Result<Option<Pieces>> {
    let found = look(file, length);
    // Looking moved the place that is read next.
    lseek(file, 0, Whence::SeekSet)?;
    found
}

fn look(file: &File, length: u64) -> io::Result<Option<Pieces>> {
    let mut pieces = Pieces::new();
    let (mut at, mut data) = (0, 0);
    while at < length {
        let Some(begin) = seek(file, at, Whence::SeekData)?.filter(|begin| *begin < length) else { break };
        // A hole is at the end of every file.
        let end = seek(file, begin, Whence::SeekHole)?.unwrap_or(length).min(length);
        if end <= begin || pieces.len() == PIECES_MAX {
            return Ok(None);
        }
        pieces.push((begin, end - begin));
        data += end - begin;
        at = end;
    }
    Ok((length - data >= HOLES_MIN).then_some(pieces))
}

/// `None`: there is no more of it.
fn seek(file: &File, from: u64, to: Whence) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).map_err(io::Error::other)?;
    match lseek(file, from, to) {
        Ok(offset) => Ok(u64::try_from(offset).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Reads the pieces of a file, one behind the other. A file that shrinks meanwhile ends in zeros.
pub(super) struct Data<'a> {
    pub(super) file: &'a File,
    /// Those still to be read; the first may have been begun.
    pub(super) pieces: std::collections::VecDeque<(u64, u64)>,
}

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((offset, left)) = self.pieces.front_mut() else { return Ok(0) };
        let most = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
        let count = match self.file.read_at(&mut buffer[..most], *offset)? {
            0 => {
                buffer[..most].fill(0);
                most
            }
            count => count,
        };
        *offset += count as u64;
        *left -= count as u64;
        if *left == 0 {
            self.pieces.pop_front();
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn file(length: u64, data: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (offset, bytes) in data {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    #[test]
    fn holes_are_found_and_what_is_between_them_is_read() {
        let sparse = file(8 * MIB, &[(0, b"begin"), (3 * MIB, b"middle"), (8 * MIB - 3, b"end")]);
        let pieces = find(&sparse, 8 * MIB).unwrap().unwrap();
        assert!(pieces.len() == 3 && pieces.iter().map(|(_, length)| length).sum::<u64>() < MIB, "{pieces:?}");
        let mut read = Vec::new();
        Data { file: &sparse, pieces: pieces.clone().into() }.read_to_end(&mut read).unwrap();
        let mut whole = vec![0; 8 << 20];
        let mut at = 0;
        for (offset, length) in pieces {
            let (offset, length) = (usize::try_from(offset).unwrap(), usize::try_from(length).unwrap());
            whole[offset..offset + length].copy_from_slice(&read[at..at + length]);
            at += length;
        }
        let mut expected = vec![0; 8 << 20];
        sparse.read_exact_at(&mut expected, 0).unwrap();
        assert!(at == read.len() && whole == expected);
    }

    #[test]
    fn what_has_no_holes_or_nothing_but_them() {
        assert_eq!(find(&file(5, &[(0, b"whole")]), 5).unwrap(), None);
        assert_eq!(find(&file(0, &[]), 0).unwrap(), None);
        assert_eq!(find(&file(4 * MIB, &[]), 4 * MIB).unwrap(), Some(vec![]));
        // Since cut: the pieces are as long as they were.
        let cut = file(MIB, &[(0, &[7; 8192])]);
        cut.set_len(4096).unwrap();
        let mut read = Vec::new();
        Data { file: &cut, pieces: [(0, 8192)].into() }.read_to_end(&mut read).unwrap();
        assert_eq!((read.len(), read[4095], read[4096]), (8192, 7, 0));
    }
}
