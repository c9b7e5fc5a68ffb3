//! Reads the members of a tar archive: ustar, GNU and PAX, sparse files too.
//!
//! The `tar` crate has the headers, but not the archives: it splits PAX records at newlines, which binary attributes contain, keeps
//! headers of any length in memory, and takes an archive that ends in the middle of its last file. Formats: POSIX.1-2024
//! (pax), "ustar Interchange Format" and "pax Extended Header"; the GNU tar manual, "Basic Tar Format" and "Storing Sparse
//! Files".

use super::is_zero;
use std::collections::VecDeque;
use std::io::{self, Read};
use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// The most that long names and records of one member may take, in bytes.
const HEADERS_MAX: u64 = 1 << 20;
/// More pieces of data than this in a sparse file are an attack.
const SEGMENTS_MAX: usize = 100_000;
/// tar's names for attributes, in PAX records (star(1); GNU tar and libarchive write the same).
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const BAD_MAP: &str = "the map of a sparse file makes no sense";

/// A member, before its contents are read.
pub(crate) struct Member {
    pub(crate) header: Header,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds since the epoch, and nanoseconds.
    pub(crate) mtime: (i64, u32),
    pub(crate) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of its contents, holes among them.
    pub(crate) size: u64,
}

/// What PAX records say of the next member.
#[derive(Default)]
struct Records {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

/// Where data lies in a sparse file: offsets and lengths, in bytes.
type Map = Vec<(u64, u64)>;

/// What the records say of a sparse file of GNU tar's.
#[derive(Default)]
struct Sparse {
    /// Format 1.0, where the map comes before the data.
    major: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Format 0.1.
    map: Option<Map>,
    /// The pieces of format 0.0, one record each.
    pieces: Vec<u64>,
}

/// An archive being read from front to back.
pub(crate) struct Archive<R> {
    inner: R,
    /// Bytes of the present member that have not been read, and what fills up its last block.
    left: u64,
    padding: u64,
    /// Where the present member's data lies in its file; none where it is all of it.
    segments: Option<VecDeque<(u64, u64)>>,
    size: u64,
    at: u64,
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl<R: Read> Archive<R> {
    pub(crate) const fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0, segments: None, size: 0, at: 0 }
    }

    /// What it is read from, at the end of the archive.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next member, past what is left of the present one; `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Member>> {
        self.skip()?;
        let mut records = Records::default();
        let (mut long_path, mut long_link) = (None, None);
        let mut budget = HEADERS_MAX;
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.entry_size()?;
            match header.entry_type() {
                EntryType::XHeader => parse(&self.whole(size, &mut budget)?, &mut records)?,
                EntryType::GNULongName => long_path = Some(text(self.whole(size, &mut budget)?)),
                EntryType::GNULongLink => long_link = Some(text(self.whole(size, &mut budget)?)),
                // Of the archive as a whole: git writes a comment there.
                EntryType::XGlobalHeader => drop(self.whole(size, &mut budget)?),
                _ => return self.member(header, size, records, long_path, long_link).map(Some),
            }
        }
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle of a header")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if is_zero(block) {
            return Ok(None);
        }
        // The checksum's own eight bytes count as spaces.
        let sum =
            block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) });
        let sum: u32 = sum.sum();
        if header.cksum()? != sum {
            return Err(bad("a header's checksum is wrong: it is no tar archive, or damaged"));
        }
        Ok(Some(header))
    }

    /// The contents of a header that is a member of its own.
    fn whole(&mut self, size: u64, budget: &mut u64) -> io::Result<Vec<u8>> {
        *budget = budget.checked_sub(size).ok_or_else(|| bad("an entry's headers are longer than 1 MiB"))?;
        self.begin(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        self.skip()?;
        Ok(bytes)
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        self.segments = None;
        (self.size, self.at) = (size, 0);
    }

    fn member(
        &mut self,
        header: Header,
        size: u64,
        records: Records,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> io::Result<Member> {
        self.begin(match header.entry_type() {
            // They have no contents, whatever they say: hard links of some archivers repeat the file's size.
            EntryType::Link | EntryType::Symlink | EntryType::Char | EntryType::Block => 0,
            EntryType::Directory | EntryType::Fifo => 0,
            _ => records.size.unwrap_or(size),
        });
        if let Some((segments, real)) = self.sparse(&header, &records.sparse)? {
            (self.segments, self.size) = (Some(segments.into()), real);
        }
        let named = records.sparse.name.or(records.path).or(long_path);
        let mtime = i64::try_from(header.mtime()?).unwrap_or(0);
        Ok(Member {
            path: named.unwrap_or_else(|| header.path_bytes().into_owned()),
            link: records.link.or(long_link).or_else(|| header.link_name_bytes().map(Into::into)).unwrap_or_default(),
            uid: records.uid.map_or_else(|| header.uid(), Ok)?,
            gid: records.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: records.mtime.unwrap_or((mtime, 0)),
            attributes: records.attributes,
            size: self.size,
            header,
        })
    }

    /// Where the data of a sparse file lies, and how long the file is.
    fn sparse(&mut self, header: &Header, sparse: &Sparse) -> io::Result<Option<(Map, u64)>> {
        let (map, size) = if header.entry_type() == EntryType::GNUSparse {
            let gnu = header.as_gnu().ok_or_else(|| bad("a sparse file without a GNU header"))?;
            (self.gnu_map(gnu)?, gnu.real_size()?)
        } else if let Some(size) = sparse.size {
            let map = match (&sparse.map, sparse.major) {
                (Some(map), _) => map.clone(),
                (None, Some(1)) => self.leading_map()?,
                (None, Some(_)) => return Err(bad("a sparse file in a format of the future")),
                (None, None) => sparse.pieces.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect(),
            };
            (map, size)
        } else {
            return Ok(None);
        };
        let mut end = 0;
        let mut data = 0_u64;
        for (offset, length) in &map {
            let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
            end = next.ok_or_else(|| bad(BAD_MAP))?;
            data += length;
        }
        if map.len() > SEGMENTS_MAX || data != self.left {
            return Err(bad(BAD_MAP));
        }
        Ok(Some((map, size)))
    }

    /// The map in an old GNU header, and in the blocks that may follow it.
    fn gnu_map(&mut self, gnu: &tar::GnuHeader) -> io::Result<Map> {
        let mut map = Vec::new();
        let mut add = |piece: &tar::GnuSparseHeader| -> io::Result<()> {
            if !piece.is_empty() {
                map.push((piece.offset()?, piece.length()?));
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut more = gnu.is_extended();
        let mut blocks = 0;
        while more {
            blocks += 1;
            if blocks > SEGMENTS_MAX / 21 {
                return Err(bad(BAD_MAP));
            }
            let mut next = tar::GnuExtSparseHeader::new();
            self.inner.read_exact(next.as_mut_bytes())?;
            next.sparse().iter().try_for_each(&mut add)?;
            more = next.is_extended();
        }
        Ok(map)
    }

    /// Format 1.0: decimal numbers, one in a line, filled up to a whole block, before the data.
    fn leading_map(&mut self) -> io::Result<Map> {
        let mut text = Vec::new();
        let mut numbers: Vec<u64> = Vec::new();
        loop {
            let mut block = [0; BLOCK];
            self.read_exact(&mut block)?;
            text.extend_from_slice(&block);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                numbers.push(number(&text[..end])?);
                text.drain(..=end);
                let count = numbers[0].checked_mul(2).filter(|count| *count <= 2 * SEGMENTS_MAX as u64);
                let count = count.ok_or_else(|| bad(BAD_MAP))?;
                if numbers.len() as u64 == count + 1 {
                    return Ok(numbers[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect());
                }
            }
            if text.len() > BLOCK {
                return Err(bad(BAD_MAP));
            }
        }
    }

    /// Past what is left of the present member.
    fn skip(&mut self) -> io::Result<()> {
        // Saturating: a record may claim any size, and what is missing is noticed below.
        let rest = self.left.saturating_add(self.padding);
        (self.left, self.padding, self.segments) = (0, 0, None);
        let skipped = io::copy(&mut (&mut self.inner).take(rest), &mut io::sink())?;
        if skipped < rest {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle of an entry"));
        }
        Ok(())
    }

    /// Reads stored bytes.
    fn stored(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle of an entry"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// The present member's contents, holes as zeros.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(segments) = &mut self.segments else { return self.stored(buffer) };
        let until = |end: u64, at: u64| usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        while segments.front().is_some_and(|(offset, length)| offset + length <= self.at) {
            segments.pop_front();
        }
        let (most, data) = match segments.front() {
            Some((offset, length)) if *offset <= self.at => (until(offset + length, self.at), true),
            Some((offset, _)) => (until(*offset, self.at), false),
            None => (until(self.size, self.at), false),
        };
        let count = if data {
            self.stored(&mut buffer[..most])?
        } else {
            buffer[..most].fill(0);
            most
        };
        self.at += count as u64;
        Ok(count)
    }
}

/// A long name ends in a NUL.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn number(digits: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(digits).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| bad(format!("`{}` is no number", digits.escape_ascii())))
}

/// Records are `LENGTH KEY=VALUE\n`, the length counting itself; a value may contain anything.
fn parse(mut bytes: &[u8], records: &mut Records) -> io::Result<()> {
    let malformed = || bad("an extended header is malformed");
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length = usize::try_from(number(&bytes[..space])?).map_err(|_| malformed())?;
        let record =
            bytes.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(malformed)?;
        bytes = &bytes[length..];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        // An empty value takes back what a global header said.
        match key {
            _ if key.starts_with(XATTR_PREFIX) => {
                records.attributes.push((key[XATTR_PREFIX.len()..].to_vec(), value.to_vec()));
            }
            _ if value.is_empty() => {}
            b"path" => records.path = Some(value.to_vec()),
            b"linkpath" => records.link = Some(value.to_vec()),
            b"size" => records.size = Some(number(value)?),
            b"uid" => records.uid = Some(number(value)?),
            b"gid" => records.gid = Some(number(value)?),
            b"mtime" => records.mtime = timestamp(value),
            b"GNU.sparse.major" => records.sparse.major = Some(number(value)?),
            b"GNU.sparse.name" => records.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => records.sparse.size = Some(number(value)?),
            b"GNU.sparse.map" => {
                let numbers: Vec<u64> = value.split(|byte| *byte == b',').map(number).collect::<io::Result<_>>()?;
                records.sparse.map = Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect());
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => records.sparse.pieces.push(number(value)?),
            _ => {}
        }
    }
    Ok(())
}

/// PAX times are decimal fractions, negative ones too: `-1.25` is a quarter second before second -1.
fn timestamp(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos))
    } else {
        Some((seconds, nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let length = (rest..).find(|length| rest + length.to_string().len() == *length).unwrap();
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    fn member(kind: EntryType, name: &str, body: &[u8], change: impl FnOnce(&mut Header)) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path(name).unwrap();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(body.len() as u64);
        change(&mut header);
        header.set_cksum();
        let mut bytes = [header.as_bytes(), body].concat();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn file(name: &str, body: &[u8]) -> Vec<u8> {
        member(EntryType::Regular, name, body, |_| {})
    }

    fn only(bytes: &[u8]) -> io::Result<(Member, Vec<u8>)> {
        let mut archive = Archive::new(bytes);
        let member = archive.next()?.unwrap();
        let mut contents = Vec::new();
        archive.read_to_end(&mut contents)?;
        assert!(archive.next()?.is_none());
        Ok((member, contents))
    }

    #[test]
    fn times_keep_their_nanoseconds() {
        assert_eq!(timestamp(b"1700000000.123456789"), Some((1_700_000_000, 123_456_789)));
        assert_eq!(timestamp(b"1700000000.5"), Some((1_700_000_000, 500_000_000)));
        assert_eq!(timestamp(b"17"), Some((17, 0)));
        assert_eq!(timestamp(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(timestamp(b"x"), None);
    }

    #[test]
    fn a_records_value_may_contain_anything() {
        let value = b"a\n12 path=elsewhere\n=\0\xff";
        let records = [
            record("SCHILY.xattr.user.x", value),
            record("path", "n\u{e4}me".as_bytes()),
            record("uid", b"4294967294"),
        ]
        .concat();
        let (member, contents) =
            only(&[member(EntryType::XHeader, "x", &records, |_| {}), file("short", b"body")].concat()).unwrap();
        assert_eq!(member.attributes, [(b"user.x".to_vec(), value.to_vec())]);
        assert_eq!(
            (member.path.as_slice(), member.uid, contents.as_slice()),
            ("n\u{e4}me".as_bytes(), 4_294_967_294, b"body".as_slice())
        );
    }

    #[test]
    fn records_say_how_long_a_member_is() {
        // As Go's tar writes a file of more than 8 GiB: the header's own field cannot hold it.
        let header = member(EntryType::Regular, "big", &[], |_| {});
        let bytes = [member(EntryType::XHeader, "x", &record("size", b"600"), |_| {}), header, vec![7; 1024]].concat();
        let (member, contents) = only(&bytes).unwrap();
        assert_eq!((member.size, contents), (600, vec![7; 600]));
    }

    #[test]
    fn a_size_beyond_all_sense_is_an_error_also_where_it_is_skipped() {
        let records = member(EntryType::XHeader, "x", &record("size", u64::MAX.to_string().as_bytes()), |_| {});
        let bytes = [records, file("f", b"")].concat();
        let mut archive = Archive::new(bytes.as_slice());
        assert_eq!(archive.next().unwrap().unwrap().size, u64::MAX);
        assert_eq!(archive.next().err().map(|error| error.kind()), Some(io::ErrorKind::UnexpectedEof));
    }

    #[test]
    fn every_kind_of_sparse_file_is_the_same_file() {
        let mut expected = vec![0; 5000];
        expected[1000..1512].fill(1);
        expected[4000..4100].fill(2);
        let data = [vec![1; 512], vec![2; 100]].concat();
        let records = |more: &[(&str, &[u8])]| {
            let all: Vec<u8> = more.iter().flat_map(|(key, value)| record(key, value)).collect();
            member(EntryType::XHeader, "x", &all, |_| {})
        };
        let old = member(EntryType::GNUSparse, "f", &data, |header| {
            let gnu = header.as_gnu_mut().unwrap();
            gnu.set_real_size(5000);
            for (piece, (offset, length)) in gnu.sparse.iter_mut().zip([(1000, 512), (4000, 100)]) {
                piece.set_offset(offset);
                piece.set_length(length);
            }
        });
        let mut map = b"2\n1000\n512\n4000\n100\n".to_vec();
        map.resize(BLOCK, 0);
        let sparse_1_0: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"f"),
            ("GNU.sparse.realsize", b"5000"),
        ];
        let sparse_0_1: [(&str, &[u8]); 3] =
            [("GNU.sparse.size", b"5000"), ("GNU.sparse.map", b"1000,512,4000,100"), ("path", b"f")];
        for bytes in [
            old,
            [records(&sparse_1_0), file("GNUSparseFile.0/f", &[map, data.clone()].concat())].concat(),
            [records(&sparse_0_1), file("x", &data)].concat(),
        ] {
            let (member, contents) = only(&bytes).unwrap();
            assert_eq!((member.path.as_slice(), member.size), (b"f".as_slice(), 5000));
            assert!(contents == expected);
        }
        let lie: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"5000"), ("GNU.sparse.map", b"1000,512,900,100")];
        only(&[records(&lie), file("x", &data)].concat()).map(|_| ()).unwrap_err();
    }

    #[test]
    fn an_archive_that_ends_early_is_noticed_wherever_it_ends() {
        let bytes = [file("a", &[1; 700]), file("b", b"x")].concat();
        let read = |bytes: &[u8]| -> io::Result<usize> {
            let mut archive = Archive::new(bytes);
            let mut count = 0;
            while archive.next()?.is_some() {
                io::copy(&mut archive, &mut io::sink())?;
                count += 1;
            }
            Ok(count)
        };
        assert_eq!(read(&bytes).unwrap(), 2);
        for end in 1..bytes.len() {
            // Between two members it may end: not every archiver writes the two blocks of zeros.
            assert_eq!(read(&bytes[..end]).is_ok(), end == 512 + 1024, "{end}");
        }
    }
}
