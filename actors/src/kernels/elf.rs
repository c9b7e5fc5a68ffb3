//! Just enough of ELF64 (System V ABI, chapter 4) to find a section by name and to read notes. Trusts no offset.

/// A file seen as ELF64, little-endian.
#[derive(Debug, Clone, Copy)]
pub struct Elf<'a> {
    bytes: &'a [u8],
}

/// Why it is none, or not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    #[error("it is no ELF file")]
    NotElf,
    #[error("it is no 64-bit little-endian x86-64 file")]
    NotX86,
    #[error("it is cut off")]
    Truncated,
}

const HEADER: usize = 64;
const SECTION_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// `EM_X86_64`
const X86_64: u16 = 62;
/// `PT_NOTE`
const NOTE: u32 = 4;
/// The most that is read of all notes, in bytes: a kernel's have a few hundred. Segments may lie over one another, so that a file
/// can have far more notes than bytes.
const NOTES_MAX: usize = 1 << 20;
/// `SHT_NOBITS`: takes no bytes of the file.
const NO_BITS: u32 = 8;

impl<'a> Elf<'a> {
    /// Checks the header and that every segment and section lies inside the file.
    ///
    /// # Errors
    /// When it is no such file.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        if !bytes.starts_with(b"\x7fELF") {
            return Err(ElfError::NotElf);
        }
        if bytes.len() < HEADER {
            return Err(ElfError::Truncated);
        }
        let elf = Self { bytes };
        // ELFCLASS64, ELFDATA2LSB
        if bytes[4..6] != [2, 1] || elf.u16(18) != Some(X86_64) {
            return Err(ElfError::NotX86);
        }
        elf.check().ok_or(ElfError::Truncated)?;
        Ok(elf)
    }

    fn check(&self) -> Option<()> {
        for segment in self.table(32, 56, PROGRAM_HEADER)? {
            self.slice(field(segment, 8)?, field(segment, 32)?)?;
        }
        for section in self.table(40, 60, SECTION_HEADER)? {
            if u32_at(section, 4)? != NO_BITS {
                self.slice(field(section, 24)?, field(section, 32)?)?;
            }
        }
        Some(())
    }

    /// The contents of the first section of that name.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<&'a [u8]> {
        let names = {
            let index = usize::from(self.u16(62)?);
            let header = self.table(40, 60, SECTION_HEADER)?.nth(index)?;
            self.slice(field(header, 24)?, field(header, 32)?)?
        };
        for header in self.table(40, 60, SECTION_HEADER)? {
            let start = usize::try_from(u32_at(header, 0)?).ok()?;
            // Compared in place: what many sections name may be as long as the file.
            if names.get(start..)?.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0)) {
                return self.slice(field(header, 24)?, field(header, 32)?);
            }
        }
        None
    }

    /// True if a note segment has a note of that owner and type.
    #[must_use]
    pub fn has_note(&self, owner: &[u8], kind: u32) -> bool {
        let Some(segments) = self.table(32, 56, PROGRAM_HEADER) else { return false };
        let mut left = NOTES_MAX;
        let mut notes = segments.filter(|segment| u32_at(segment, 0) == Some(NOTE));
        notes.any(|segment| {
            let bytes = field(segment, 8).zip(field(segment, 32)).and_then(|(at, size)| self.slice(at, size));
            let bytes = bytes.map_or(&[][..], |bytes| &bytes[..bytes.len().min(left)]);
            left -= bytes.len();
            note_in(bytes, owner, kind)
        })
    }

    fn table(&self, offset_at: usize, count_at: usize, entry: usize) -> Option<std::slice::ChunksExact<'a, u8>> {
        let count = usize::from(self.u16(count_at)?);
        let size = usize::from(self.u16(count_at - 2)?);
        if count == 0 {
            return Some([].chunks_exact(entry));
        }
        if size != entry {
            return None;
        }
        let bytes = self.slice(field(self.bytes, offset_at)?, u64::try_from(count * entry).ok()?)?;
        Some(bytes.chunks_exact(entry))
    }

    fn slice(&self, offset: u64, size: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(size).ok()?)?;
        self.bytes.get(start..end)
    }

    fn u16(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes.get(at..at + 2)?.try_into().ok()?))
    }
}

fn note_in(mut bytes: &[u8], owner: &[u8], kind: u32) -> bool {
    let aligned = |size: u32| usize::try_from(size).ok().and_then(|size| size.checked_next_multiple_of(4));
    while let (Some(name_size), Some(size), Some(found)) = (u32_at(bytes, 0), u32_at(bytes, 4), u32_at(bytes, 8)) {
        let (Some(name_room), Some(room)) = (aligned(name_size), aligned(size)) else { return false };
        let name = bytes.get(12..).and_then(|rest| rest.get(..name_size as usize)).unwrap_or_default();
        if found == kind && name.strip_suffix(b"\0").unwrap_or(name) == owner {
            return true;
        }
        let Some(rest) = name_room.checked_add(room).and_then(|skip| bytes.get(12 + skip..)) else { return false };
        bytes = rest;
    }
    false
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn field(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
