//! Modules out of an initramfs, as a distribution makes one for its kernel: cpio archives behind one another, the last as a rule
//! compressed (Documentation/driver-api/early-userspace/buffer-format.rst). Guests boot banger's own initramfs, so
//! nothing else of it is of use.

use super::modules;
use crate::artifacts::Cancel;
use crate::ext4::{Ext4Error, Meta, Tree};
use cpio::newc;
use std::io::{self, BufRead, BufReader, Read};

/// More than this unpacked is no initramfs, in bytes.
const UNPACKED_MAX: u64 = 4 << 30;
const BUFFER: usize = 256 << 10;
/// File types of `st_mode` (inode(7)).
const TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

/// Adds the modules of this version to `tree`, by their paths below its directory; says how many there were.
///
/// # Errors
/// When it is no initramfs, or a module cannot be kept.
pub(super) fn read(initrd: impl Read, version: &str, tree: &mut Tree, cancel: &Cancel) -> io::Result<usize> {
    let below = [format!("lib/modules/{version}/"), format!("usr/lib/modules/{version}/")];
    let mut reader = Unpacking { below, tree, cancel, found: 0 };
    reader.archives(BufReader::with_capacity(BUFFER, initrd))?;
    Ok(reader.found)
}

struct Unpacking<'a> {
    below: [String; 2],
    tree: &'a mut Tree,
    cancel: &'a Cancel,
    found: usize,
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
            let mut member = newc::Reader::new(reader)?;
            if member.entry().is_trailer() {
                return member.finish();
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
                let kept = self.tree.file(within.as_bytes(), Meta::root(0o644), &mut member);
                kept.map_err(|error| match error {
                    Ext4Error::Archive(source) => source,
                    other => io::Error::other(other),
                })?;
            }
            reader = member.finish()?;
        }
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
