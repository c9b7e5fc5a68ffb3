//! Packs an image into a bundle. Equal images give equal bundles, byte for byte: holes are zeros, and nothing in it has a time.

use super::manifest::ImageManifest;
use super::{CHECKSUMS, MANIFEST, ROOTFS};
use messages::image::ImageExport;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;

/// zstd's own default: a file system of a gigabyte takes some ten seconds, and holes next to none.
const LEVEL: i32 = 3;

/// Writes the bundle of an image whose file system is `rootfs`. `told` hears how many bytes of it were packed, and ends it by an
/// error.
///
/// # Errors
/// When the file system cannot be read or is not as long as was said, or `out` refuses.
pub fn pack(
    export: &ImageExport,
    rootfs: &File,
    out: impl Write,
    told: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let length = rootfs.metadata()?.len();
    if length != export.size_bytes {
        let why = format!("the file system has {length} bytes, and its record says {}", export.size_bytes);
        return Err(io::Error::other(why));
    }
    let mut packer = zstd::Encoder::new(out, LEVEL)?;
    // So that a damaged one is noticed where it is damaged, not at the end.
    packer.include_checksum(true)?;
    let mut archive = tar::Builder::new(packer);
    let manifest = serde_json::to_vec_pretty(&ImageManifest::from(export)).map_err(io::Error::other)?;
    append(&mut archive, MANIFEST, &mut manifest.as_slice(), manifest.len() as u64)?;
    let mut reader = Hashed { file: rootfs, at: 0, hash: Sha256::new(), told };
    append(&mut archive, ROOTFS, &mut reader, length)?;
    if reader.at != length {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file system became shorter meanwhile"));
    }
    let sums = checksums(&Sha256::digest(&manifest), &reader.hash.finalize());
    append(&mut archive, CHECKSUMS, &mut sums.as_bytes(), sums.len() as u64)?;
    archive.into_inner()?.finish()?.flush()
}

/// As `sha256sum` writes and `sha256sum -c` reads them.
pub(super) fn checksums(manifest: &[u8], rootfs: &[u8]) -> String {
    format!("{}  {MANIFEST}\n{}  {ROOTFS}\n", hex::encode(manifest), hex::encode(rootfs))
}

fn append<W: Write>(archive: &mut tar::Builder<W>, name: &str, contents: &mut dyn Read, size: u64) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    archive.append_data(&mut header, name, contents.take(size))
}

/// Reads from the file's beginning, whoever else has the descriptor.
struct Hashed<'a> {
    file: &'a File,
    at: u64,
    hash: Sha256,
    told: &'a mut dyn FnMut(u64) -> io::Result<()>,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.hash.update(&buffer[..count]);
        self.at += count as u64;
        (self.told)(self.at)?;
        Ok(count)
    }
}
