//! Payloads made here, so that each format and each kind of damage is there to be found.

#![cfg(test)]

use super::*;
use std::io::Write;

fn unpack(image: &[u8]) -> Result<Vec<u8>, VmlinuxError> {
    super::unpack(image.to_vec(), &Cancel::new())
}

/// A little ELF kernel: header, one note segment with a PVH entry (or another note), and ballast that does not compress to nothing.
fn kernel(note_type: u32) -> Vec<u8> {
    let mut elf = vec![0; 64 + 56];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16..20].copy_from_slice(&[2, 0, 62, 0]);
    elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
    elf[54..58].copy_from_slice(&[56, 0, 1, 0]);
    elf[64..68].copy_from_slice(&4_u32.to_le_bytes());
    let at = elf.len() as u64;
    for (name, kind) in [(&b"GNU\0"[..], 3), (&b"Xen\0"[..], note_type)] {
        elf.extend_from_slice(&4_u32.to_le_bytes());
        elf.extend_from_slice(&8_u32.to_le_bytes());
        elf.extend_from_slice(&kind.to_le_bytes());
        elf.extend_from_slice(name);
        elf.extend_from_slice(&[0xaa; 8]);
    }
    let ballast: Vec<u8> = (0_u32..50_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    elf.extend_from_slice(&ballast);
    let size = elf.len() as u64 - at;
    elf[72..80].copy_from_slice(&at.to_le_bytes());
    elf[96..104].copy_from_slice(&size.to_le_bytes());
    elf
}

fn packed(format: Format, bytes: &[u8]) -> Vec<u8> {
    match format {
        Format::Zstd => zstd::stream::encode_all(bytes, 3).unwrap(),
        Format::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Format::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Format::Lz4 => {
            let mut out = Format::Lz4.magic().to_vec();
            for block in bytes.chunks(LZ4_BLOCK) {
                let block = lz4_flex::block::compress(block);
                out.extend_from_slice(&u32::try_from(block.len()).unwrap().to_le_bytes());
                out.extend_from_slice(&block);
            }
            out
        }
    }
}

/// A boot program around a payload, with or without a header that tells where it is. The kernel's build appends the
/// unpacked length to all formats but gzip, whose own trailer is just that.
fn bz_image(format: Format, kernel: &[u8], header: bool) -> Vec<u8> {
    let mut payload = packed(format, kernel);
    if format != Format::Gzip {
        payload.extend_from_slice(&u32::try_from(kernel.len()).unwrap().to_le_bytes());
    }
    let mut image = vec![0x90; 5 * 512 + 0x100];
    if header {
        image[0x1f1] = 4;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&0x100_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    }
    image.extend_from_slice(&payload);
    image.extend_from_slice(&[0xcc; 300]);
    image
}

#[test]
fn every_format_is_found_by_the_header_and_by_looking() {
    let kernel = kernel(PVH_ENTRY);
    for format in Format::ALL {
        for header in [true, false] {
            let image = bz_image(format, &kernel, header);
            let unpacked = unpack(&image).unwrap_or_else(|error| panic!("{format:?} {header}: {error:?}"));
            assert_eq!(&unpacked[..kernel.len()], kernel, "{format:?} {header}");
        }
    }
}

#[test]
fn a_false_start_does_not_hide_the_payload() {
    let kernel = kernel(PVH_ENTRY);
    let mut image = Format::Gzip.magic().to_vec();
    image.extend_from_slice(Format::Zstd.magic());
    image.extend_from_slice(&bz_image(Format::Xz, &kernel, false));
    assert_eq!(unpack(&image).unwrap(), kernel);
}

#[test]
fn a_payload_that_is_cut_off_is_refused() {
    let kernel = kernel(PVH_ENTRY);
    for format in Format::ALL {
        let whole = packed(format, &kernel);
        for header in [true, false] {
            let mut image = bz_image(format, &kernel, header);
            image.truncate(5 * 512 + 0x100 + whole.len() / 2);
            assert!(unpack(&image).is_err(), "{format:?} {header}");
        }
    }
}

#[test]
fn what_is_no_kernel_is_said_so() {
    assert!(matches!(unpack(b""), Err(VmlinuxError::NoPayload)));
    assert!(matches!(unpack(&[0; 4096]), Err(VmlinuxError::NoPayload)));
    let image = bz_image(Format::Zstd, b"not a kernel at all", true);
    assert!(matches!(unpack(&image), Err(VmlinuxError::Elf(ElfError::NotElf))));
    let image = bz_image(Format::Zstd, &kernel(4), true);
    assert!(matches!(unpack(&image), Err(VmlinuxError::NoPvhEntry)));
    let mut other = kernel(PVH_ENTRY);
    other[18] = 183;
    assert!(matches!(unpack(&other), Err(VmlinuxError::Elf(ElfError::NotX86))));
    let whole = kernel(PVH_ENTRY);
    assert!(matches!(unpack(&whole[..whole.len() - 1]), Err(VmlinuxError::Elf(ElfError::Truncated))));
    assert_eq!(unpack(&whole).unwrap(), whole);
}

#[test]
fn a_search_in_a_file_of_bombs_ends() {
    // Each unpacks to 48 MiB, is no kernel, and would be tried at every place.
    let bomb = packed(Format::Zstd, &vec![0; 48 << 20]);
    let image = bomb.repeat(10_000);
    let mut room = SEARCH_MAX;
    assert!(scan(&image, &Cancel::new()).is_err());
    assert!(Format::Zstd.decompress(&bomb, &mut room, &Cancel::new()).is_ok());
    assert_eq!(room, SEARCH_MAX - (48 << 20));
    // A mark that nothing follows takes no memory either.
    assert!(scan(&Format::Lz4.magic().repeat(1 << 20), &Cancel::new()).is_err());
    let cancel = Cancel::new();
    cancel.cancel();
    assert!(matches!(super::unpack(image, &cancel), Err(VmlinuxError::Cancelled)));
}

#[test]
fn sections_and_segments_that_lie_over_one_another_are_no_work() {
    // 65,535 sections whose name is as long as the file, and as many note segments over all of it.
    const COUNT: usize = 65_535;
    let (sections, segments, names) = (64, 64 + COUNT * 64, 64 + COUNT * (64 + 56));
    let mut elf = vec![0; names + (24 << 20)];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16..20].copy_from_slice(&[2, 0, 62, 0]);
    elf[32..40].copy_from_slice(&(segments as u64).to_le_bytes());
    elf[40..48].copy_from_slice(&(sections as u64).to_le_bytes());
    elf[54..64].copy_from_slice(&[56, 0, 0xff, 0xff, 64, 0, 0xff, 0xff, 0xfe, 0xff]);
    let length = elf.len();
    elf[names..length - 1].fill(b'a');
    for index in 0..COUNT {
        let (section, segment) = (sections + index * 64, segments + index * 56);
        elf[section + 24..section + 32].copy_from_slice(&(names as u64).to_le_bytes());
        elf[section + 32..section + 40].copy_from_slice(&((length - names) as u64).to_le_bytes());
        elf[segment] = 4;
        elf[segment + 32..segment + 40].copy_from_slice(&(length as u64).to_le_bytes());
    }
    let parsed = Elf::parse(&elf).unwrap();
    assert_eq!(parsed.section(".modinfo"), None);
    assert!(!parsed.has_note(b"Xen", PVH_ENTRY));
}
