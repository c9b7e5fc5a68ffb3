//! Layers come compressed in one of a few ways. What they are is told by their first bytes, as docker does it: media types lie.

use flate2::bufread::MultiGzDecoder;
use std::io::{self, BufRead, BufReader, Read};

/// How much is read at once.
const BUFFER: usize = 256 << 10;
/// The longest back reference that a zstd frame may ask us to keep, as a power of two: 128 MiB is what its own programs take.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// A layer's archive, whatever it is packed in.
pub enum Decompressed<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<R>>>),
}

impl<R: Read> std::fmt::Debug for Decompressed<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Gzip(_) => "Gzip",
            Self::Zstd(_) => "Zstd",
        })
    }
}

impl<R: Read> Decompressed<R> {
    /// Looks at the first bytes.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn new(reader: R) -> io::Result<Self> {
        let mut reader = BufReader::with_capacity(BUFFER, reader);
        let start = reader.fill_buf()?;
        Ok(if start.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip(Box::new(MultiGzDecoder::new(reader)))
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            let mut decoder = zstd::Decoder::with_buffer(reader)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Self::Zstd(Box::new(decoder))
        } else {
            Self::Plain(reader)
        })
    }

    /// Reads what is left of the packed bytes: only then is their digest known.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn drain(self) -> io::Result<()> {
        let mut reader = match self {
            Self::Plain(reader) => reader,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        };
        io::copy(&mut reader, &mut io::sink()).map(drop)
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn all(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut decompressed = Decompressed::new(bytes)?;
        let mut out = Vec::new();
        decompressed.read_to_end(&mut out)?;
        decompressed.drain()?;
        Ok(out)
    }

    #[test]
    fn the_first_bytes_decide() {
        let text = b"a layer".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let member = gzip.finish().unwrap();
        assert_eq!(all(&text).unwrap(), text);
        assert_eq!(all(&member).unwrap(), text);
        // Some builders write many gzip members one after the other.
        assert_eq!(all(&member.repeat(3)).unwrap(), text.repeat(3));
        assert_eq!(all(&zstd::encode_all(text.as_slice(), 1).unwrap()).unwrap(), text);
        assert_eq!(all(b"").unwrap(), b"");
        all(&member[..member.len() - 9]).unwrap_err();
    }
}
