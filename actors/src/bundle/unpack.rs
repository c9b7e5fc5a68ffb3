//! Unpacks the bundle of an image: manifest, file system, checksums, in this order and nothing else.

use super::manifest::{ImageManifest, MANIFEST_MAX};
use super::sparse::SparseFile;
use super::{BundleError, CHECKSUMS, MANIFEST, ROOTFS};
use crate::artifacts::{Cancel, Reporter};
use crate::ext4::Superblock;
use crate::ext4::archive::{Archive, Member};
use crate::oci::Decompressed;
use sha2::{Digest as _, Sha256};
use std::io::{self, Read};
use std::path::Path;
use tar::EntryType;
use uuid::Uuid;

/// Two lines.
const CHECKSUMS_MAX: u64 = 4096;
/// What an archiver may fill up its last record with, in bytes: GNU tar takes 10 KiB, tapes took more.
const PADDING_MAX: u64 = 1 << 20;
/// How much is unpacked at once, in bytes.
const CHUNK: usize = 256 << 10;

/// A bundle whose manifest has been read.
pub struct ImageBundle<R: Read> {
    archive: Archive<Decompressed<R>>,
    of: String,
    pub manifest: ImageManifest,
    manifest_hash: [u8; 32],
}

impl<R: Read> std::fmt::Debug for ImageBundle<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageBundle").field("of", &self.of).finish_non_exhaustive()
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackedImage {
    /// `sha256:…` of the file system.
    pub digest: String,
    /// Of the file system.
    pub uuid: Uuid,
    pub size_bytes: u64,
}

impl<R: Read> ImageBundle<R> {
    /// Reads the manifest of the bundle that is `of` somewhere.
    ///
    /// # Errors
    /// When it is no bundle of an image.
    pub fn open(reader: R, of: &str) -> Result<Self, BundleError> {
        let unreadable = |source| BundleError::Archive { of: of.to_owned(), source };
        let mut archive = Archive::new(Decompressed::new(reader).map_err(unreadable)?);
        let not_one = |why: &str| BundleError::NotOne { of: of.to_owned(), why: why.to_owned() };
        // What is no archive at all is told apart from one that breaks off.
        let member = archive.next().map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other => {
                not_one("it does not begin like an archive of tar's")
            }
            _ => unreadable(error),
        })?;
        let member = member.ok_or_else(|| not_one("it is empty"))?;
        if !is(&member, MANIFEST) {
            return Err(not_one(&format!("its first member is not `{MANIFEST}`")));
        }
        if member.size > MANIFEST_MAX {
            return Err(not_one(&format!("its manifest is longer than {} MiB", MANIFEST_MAX >> 20)));
        }
        let mut bytes = Vec::new();
        archive.read_to_end(&mut bytes).map_err(unreadable)?;
        let manifest = ImageManifest::parse(&bytes, of)?;
        Ok(Self { archive, of: of.to_owned(), manifest, manifest_hash: Sha256::digest(&bytes).into() })
    }

    /// Writes the file system to `path`, and reads the bundle to its end. Where it fails, what is at `path` is worthless.
    ///
    /// # Errors
    /// When the bundle is not what it says, or the file cannot be written.
    pub fn unpack(self, path: &Path, cancel: &Cancel, reporter: &Reporter) -> Result<UnpackedImage, BundleError> {
        let Self { mut archive, of, manifest, manifest_hash } = self;
        let unreadable = |source| BundleError::Archive { of: of.clone(), source };
        let damaged = |why: String| BundleError::Damaged { of: of.clone(), why };
        let size = manifest.size_bytes;
        let member = archive.next().map_err(unreadable)?;
        if !member.is_some_and(|member| is(&member, ROOTFS) && member.size == size) {
            return Err(damaged(format!("no `{ROOTFS}` of {size} bytes follows the manifest")));
        }
        let mut file = SparseFile::create(path, size)?;
        let mut hash = Sha256::new();
        let (mut buffer, mut done) = (vec![0; CHUNK], 0_u64);
        while done < size {
            if cancel.is_cancelled() {
                return Err(BundleError::Cancelled);
            }
            let filled = fill(&mut archive, &mut buffer).map_err(unreadable)?;
            if filled == 0 {
                return Err(damaged(format!("`{ROOTFS}` ends after {done} bytes")));
            }
            hash.update(&buffer[..filled]);
            file.append(&buffer[..filled])?;
            done += filled as u64;
            reporter.amount("unpacking the file system", done, Some(size));
        }
        let rootfs_hash: [u8; 32] = hash.finalize().into();

        let member = archive.next().map_err(unreadable)?;
        if !member.is_some_and(|member| is(&member, CHECKSUMS) && member.size <= CHECKSUMS_MAX) {
            return Err(damaged(format!("no `{CHECKSUMS}` follows the file system")));
        }
        let mut sums = String::new();
        archive.read_to_string(&mut sums).map_err(unreadable)?;
        let expected = super::pack::checksums(&manifest_hash, &rootfs_hash);
        for (line, name) in expected.lines().zip([MANIFEST, ROOTFS]) {
            if !sums.lines().any(|found| found == line) {
                return Err(damaged(format!("`{name}` is not what its checksum says")));
            }
        }
        if archive.next().map_err(unreadable)?.is_some() {
            return Err(damaged(format!("something follows `{CHECKSUMS}`")));
        }
        // To the end of the archive and of the file: only then they are known to be whole.
        let mut rest = archive.into_inner();
        if io::copy(&mut (&mut rest).take(PADDING_MAX + 1), &mut io::sink()).map_err(unreadable)? > PADDING_MAX {
            return Err(damaged("something follows the archive".to_owned()));
        }
        rest.drain().map_err(unreadable)?;

        let unfit = |source| BundleError::Rootfs { of: of.clone(), source };
        let superblock = Superblock::read(file.file()).and_then(Superblock::mountable).map_err(unfit)?;
        let digest = format!("sha256:{}", hex::encode(rootfs_hash));
        Ok(UnpackedImage { digest, uuid: superblock.uuid, size_bytes: size })
    }
}

fn is(member: &Member, name: &str) -> bool {
    member.header.entry_type() == EntryType::Regular && member.path == name.as_bytes()
}

/// Reads until the buffer is full or there is no more: whole blocks leave the most out.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
