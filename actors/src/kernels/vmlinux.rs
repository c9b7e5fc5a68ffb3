//! Takes the ELF kernel out of a `vmlinuz`. Pure: bytes in, bytes out.
//!
//! A bzImage is a small boot program around a compressed `vmlinux`. Its header says where that lies (Documentation/arch/x86/
//! boot.rst, `payload_offset`); where the header is of no use, every place that begins like a compressed stream is tried.

use super::elf::{Elf, ElfError};
use crate::artifacts::Cancel;
use std::io::{self, Cursor, Read};

/// No kernel is larger unpacked, in bytes; what claims to be is refused before memory is gone.
pub const UNPACKED_MAX: u64 = 512 << 20;
/// The most that is unpacked in search of a kernel whose header does not say where it is, in bytes, and how many places are tried:
/// in 512 MiB of noise 32 begin like gzip by chance.
const SEARCH_MAX: u64 = 2 * UNPACKED_MAX;
const PLACES_MAX: usize = 128;
/// `XEN_ELFNOTE_PHYS32_ENTRY` (xen/interface/elfnote.h): the PVH entry point that QEMU's microvm starts.
const PVH_ENTRY: u32 = 18;
/// Blocks of the kernel's lz4 are of this size unpacked (lib/decompress_unlz4.c, `LZ4_DEFAULT_UNCOMPRESSED_CHUNK_SIZE`).
const LZ4_BLOCK: usize = 8 << 20;

/// Why no kernel came of it.
#[derive(Debug, thiserror::Error)]
pub enum VmlinuxError {
    #[error("no compressed kernel was found in the file")]
    NoPayload,
    #[error("the {format} payload cannot be decompressed")]
    Decompress {
        format: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the kernel inside is unusable: {0}")]
    Elf(ElfError),
    #[error("the kernel has no PVH entry point (CONFIG_PVH), which a microVM starts")]
    NoPvhEntry,
    #[error("it was given up")]
    Cancelled,
}

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Zstd,
    Xz,
    Lz4,
    Gzip,
}

impl Format {
    const ALL: [Self; 4] = [Self::Zstd, Self::Xz, Self::Lz4, Self::Gzip];

    const fn magic(self) -> &'static [u8] {
        match self {
            Self::Zstd => &[0x28, 0xb5, 0x2f, 0xfd],
            Self::Xz => &[0xfd, b'7', b'z', b'X', b'Z', 0],
            // the legacy frame, the only one that the kernel makes (`lz4 -l`)
            Self::Lz4 => &[0x02, 0x21, 0x4c, 0x18],
            Self::Gzip => &[0x1f, 0x8b, 0x08],
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Gzip => "gzip",
        }
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|format| bytes.starts_with(format.magic()))
    }

    /// Reads one stream from the front of `bytes`; the kernel's build appends other things to it. Takes what it unpacks, also in
    /// vain, out of `room`.
    fn decompress(self, bytes: &[u8], room: &mut u64, cancel: &Cancel) -> io::Result<Vec<u8>> {
        let bounded = |reader: &mut dyn Read, room: &mut u64| bounded(Watched { reader, cancel }, room);
        match self {
            Self::Zstd => {
                let mut decoder = zstd::stream::Decoder::with_buffer(Cursor::new(bytes))?.single_frame();
                // The kernel compresses with `--ultra -22`, whose window is the largest that zstd has.
                decoder.window_log_max(31)?;
                bounded(&mut decoder, room)
            }
            Self::Xz => bounded(&mut liblzma::read::XzDecoder::new(bytes), room),
            Self::Lz4 => lz4(bytes, room, cancel),
            Self::Gzip => bounded(&mut flate2::read::GzDecoder::new(bytes), room),
        }
    }
}

/// The ELF kernel in a `vmlinuz`, checked; a bare ELF kernel is taken as it is.
///
/// # Errors
/// When there is none, or it is cut off, of another architecture or without a PVH entry; when it was cancelled.
pub fn unpack(vmlinuz: Vec<u8>, cancel: &Cancel) -> Result<Vec<u8>, VmlinuxError> {
    let unpacked = search(vmlinuz, cancel);
    if cancel.is_cancelled() { Err(VmlinuxError::Cancelled) } else { unpacked }
}

fn search(vmlinuz: Vec<u8>, cancel: &Cancel) -> Result<Vec<u8>, VmlinuxError> {
    if vmlinuz.starts_with(b"\x7fELF") {
        check(&vmlinuz)?;
        return Ok(vmlinuz);
    }
    if let Some(payload) = header_payload(&vmlinuz)
        && let Some(format) = Format::of(payload)
    {
        let kernel = format
            .decompress(payload, &mut { UNPACKED_MAX }, cancel)
            .map_err(|source| VmlinuxError::Decompress { format: format.name(), source })?;
        check(&kernel)?;
        return Ok(kernel);
    }
    scan(&vmlinuz, cancel)
}

/// The payload by the boot protocol's header, 2.08 and later.
fn header_payload(image: &[u8]) -> Option<&[u8]> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let version = u16::from_le_bytes(image.get(0x206..0x208)?.try_into().ok()?);
    if image.get(0x202..0x206)? != b"HdrS" || version < 0x208 {
        return None;
    }
    // 0 means 4, for kernels of 1995.
    let setup_sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1).checked_mul(512)?.checked_add(u32_at(0x248)?)?;
    image.get(start..start.checked_add(u32_at(0x24c)?)?)
}

/// Tries every place that begins like a compressed stream; the first that gives a kernel is it.
fn scan(image: &[u8], cancel: &Cancel) -> Result<Vec<u8>, VmlinuxError> {
    let mut first_failure = None;
    let mut left = SEARCH_MAX;
    let places = (0..image.len()).filter_map(|at| Some((at, Format::of(&image[at..])?)));
    for (at, format) in places.take(PLACES_MAX) {
        let mut room = left.min(UNPACKED_MAX);
        let before = room;
        let decompressed = format.decompress(&image[at..], &mut room, cancel);
        left -= before - room;
        let outcome = match decompressed {
            Ok(kernel) => match check(&kernel) {
                Ok(()) => return Ok(kernel),
                Err(error) => error,
            },
            Err(source) => VmlinuxError::Decompress { format: format.name(), source },
        };
        // Chance matches fail early; a real payload that is cut off is the more telling error.
        if first_failure.is_none() {
            first_failure = Some(outcome);
        }
    }
    Err(first_failure.unwrap_or(VmlinuxError::NoPayload))
}

fn check(kernel: &[u8]) -> Result<(), VmlinuxError> {
    let elf = Elf::parse(kernel).map_err(VmlinuxError::Elf)?;
    if elf.has_note(b"Xen", PVH_ENTRY) { Ok(()) } else { Err(VmlinuxError::NoPvhEntry) }
}

fn bounded(reader: impl Read, room: &mut u64) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    let read = reader.take(*room + 1).read_to_end(&mut unpacked);
    take(room, unpacked.len())?;
    read.map(|_| unpacked)
}

fn take(room: &mut u64, count: usize) -> io::Result<()> {
    let fits = count as u64 <= *room;
    *room = room.saturating_sub(count as u64);
    if fits { Ok(()) } else { Err(io::Error::new(io::ErrorKind::FileTooLarge, "it unpacks to more than 512 MiB")) }
}

/// Ends with the cancellation: a stream may unpack to little, and be long.
struct Watched<'a, 'b> {
    reader: &'a mut dyn Read,
    cancel: &'b Cancel,
}

impl Read for Watched<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("it was given up"));
        }
        self.reader.read(buffer)
    }
}

/// lz4's legacy frame: blocks of a length and that many bytes, to the end; the last four bytes of the kernel's payload are
/// its unpacked length, not a block.
fn lz4(bytes: &[u8], room: &mut u64, cancel: &Cancel) -> io::Result<Vec<u8>> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut rest = &bytes[Format::Lz4.magic().len()..];
    let mut unpacked = Vec::new();
    // Where chance made the mark, no block follows.
    let mut block = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        if after.is_empty() && length == unpacked.len() {
            break;
        }
        let Some(packed) = after.get(..length) else {
            // Found by scanning: whatever follows the stream is no block. A short stream is found out by the ELF check.
            if unpacked.is_empty() {
                return Err(invalid("a block is longer than the file"));
            } else {
                break;
            };
        };
        if cancel.is_cancelled() {
            return Err(invalid("it was given up"));
        }
        block.resize(LZ4_BLOCK, 0);
        let count =
            lz4_flex::block::decompress_into(packed, &mut block).map_err(|error| invalid(&error.to_string()))?;
        unpacked.extend_from_slice(&block[..count]);
        take(room, count)?;
        rest = &after[length..];
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests;
