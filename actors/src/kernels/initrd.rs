//! Modules out of an initramfs, as a distribution makes one for its kernel: cpio archives behind one another, the last as a rule
//! compressed (Documentation/driver-api/early-userspace/buffer-format.rst). Guests boot banger's own initramfs, so
//! nothing else of it is of use.

use super::modules::{self, MODULES_MAX};
use crate::artifacts::Cancel;
use crate::ext4::{Ext4Error, Meta, Tree};
use cpio::newc;
use std::io::{self, BufRead, BufReader, Read};

/// More than this unpacked is no initramfs, in bytes.
const UNPACKED_MAX: u64 = 4 << 30;
const BUFFER: usize = 256 << 10;
/// A member's header, and where in it the length of its name is, in hexadecimal (buffer-format.rst).
const HEADER: usize = 110;
const NAME_LENGTH: std::ops::Range<usize> = 94..102;
/// The kernel takes no longer names (init/initramfs.c, `PATH_MAX`), in bytes.
const NAME_MAX: u32 = 4096;
/// Beside the modules there are their lists, a dozen.
const KEPT_MAX: usize = MODULES_MAX + 64;
/// File types of `st_mode` (inode(7)).
const TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

/// Adds the modules of this version to `tree`, by their paths below its directory; says how many there were.
///
/// # Errors
/// When it is no initramfs, or a module cannot be kept.
pub(super) fn read(initrd: impl Read, version: &str, tree: &mut Tree, cancel: &Cancel) -> io::Result<usize> {
    let below = [format!("lib/modules/{version}/"), format!("usr/lib/modules/{version}/")];
    let mut reader = Unpacking { below, tree, cancel, found: 0, kept: 0 };
    reader.archives(BufReader::with_capacity(BUFFER, initrd))?;
    Ok(reader.found)
}

struct Unpacking<'a> {
    below: [String; 2],
    tree: &'a mut Tree,
    cancel: &'a Cancel,
    /// Modules.
    found: usize,
    /// Files.
    kept: usize,
}

impl Unpacking<'_> {
    /// Archives and compressed archives, to the end.
    fn archives(&mut self, mut reader: BufReader<impl Read>) -> io::Result<()> {
        loop {
            // They are filled up with zeros between each other.
            let zeros = reader.fill_buf()?.iter().take_while(|byte| **byte == 0).count();
            let rest = reader.buffer().len() - zeros;
            reader.consume(zeros);
            if zeros > 0 && rest == 0 {
                continue;
            }
            match reader.fill_buf()? {
                [] => return Ok(()),
                start if start.starts_with(b"07070") => reader = self.archive(reader)?,
                _ => return self.compressed(reader),
            }
        }
    }

    /// What is compressed is all that is left.
    fn compressed(&mut self, mut reader: BufReader<impl Read>) -> io::Result<()> {
        let start = reader.fill_buf()?;
        let unpacked: Box<dyn Read + '_> = if start.starts_with(&[0x1f, 0x8b]) {
            Box::new(flate2::bufread::MultiGzDecoder::new(reader))
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Box::new(zstd::Decoder::with_buffer(reader)?)
        } else if start.starts_with(b"\xfd7zXZ\0") {
            Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(reader))
        } else {
            return Err(bad("it is no initramfs: neither cpio nor packed with gzip, zstd or xz"));
        };
        // Only archives are in there: what is packed twice is somebody's mistake, or worse.
        let mut unpacked = BufReader::with_capacity(BUFFER, unpacked.take(UNPACKED_MAX));
        while unpacked.fill_buf()?.starts_with(b"07070") {
            unpacked = self.archive(unpacked)?;
            while let [0, ..] = unpacked.fill_buf()? {
                unpacked.consume(1);
            }
        }
        if unpacked.get_ref().limit() == 0 { Err(bad("it holds more than 4 GiB")) } else { Ok(()) }
    }

    /// One archive, to its trailer.
    fn archive<R: BufRead>(&mut self, mut reader: R) -> io::Result<R> {
        loop {
            let mut header = [0; HEADER];
            reader.read_exact(&mut header)?;
            // Names are read whole.
            let length =
                std::str::from_utf8(&header[NAME_LENGTH]).ok().and_then(|text| u32::from_str_radix(text, 16).ok());
            if length.is_none_or(|length| length > NAME_MAX) {
                return Err(bad("a name in it is longer than any path"));
            }
            let mut member = newc::Reader::new(io::Cursor::new(header).chain(reader))?;
            if member.entry().is_trailer() {
                return Ok(member.finish()?.into_inner().1);
            }
            if self.cancel.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let name = member.entry().name().trim_start_matches("./").trim_start_matches('/').to_owned();
            let within = self.below.iter().find_map(|below| name.strip_prefix(below.as_str()));
            if let Some(within) = within
                && member.entry().mode() & TYPE == REGULAR
                && (modules::is_module(within) || within.starts_with("modules."))
            {
                self.found += usize::from(modules::is_module(within));
                self.kept += 1;
                if self.kept > KEPT_MAX {
                    return Err(bad("it holds more modules than any kernel has"));
                }
                let kept = self.tree.file(within.as_bytes(), Meta::root(0o644), &mut member);
                kept.map_err(|error| match error {
                    Ext4Error::Archive(source) => source,
                    other => io::Error::other(other),
                })?;
            }
            reader = member.finish()?.into_inner().1;
        }
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
