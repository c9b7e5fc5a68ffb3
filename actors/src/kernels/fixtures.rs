//! Little kernels and modules for the tests: just enough of ELF that everything which looks at one is content.

#![cfg(test)]

use std::io::Write as _;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn header(kind: u16) -> Vec<u8> {
    let mut elf = vec![0; 64];
    put(&mut elf, 0, b"\x7fELF\x02\x01\x01");
    put(&mut elf, 16, &kind.to_le_bytes());
    // EM_X86_64
    put(&mut elf, 18, &62_u16.to_le_bytes());
    elf
}

/// An ELF kernel with a PVH entry and a banner, which carries a configuration where one is given.
pub(super) fn kernel(version: &str, config: Option<&str>) -> Vec<u8> {
    let mut elf = header(2);
    put(&mut elf, 32, &64_u64.to_le_bytes());
    put(&mut elf, 54, &[56, 0, 1, 0]);
    let mut note = [0_u8; 24];
    put(&mut note, 0, &4_u32.to_le_bytes());
    put(&mut note, 4, &8_u32.to_le_bytes());
    // XEN_ELFNOTE_PHYS32_ENTRY
    put(&mut note, 8, &18_u32.to_le_bytes());
    put(&mut note, 12, b"Xen\0");
    let mut segment = [0; 56];
    // PT_NOTE
    put(&mut segment, 0, &4_u32.to_le_bytes());
    put(&mut segment, 8, &120_u64.to_le_bytes());
    put(&mut segment, 32, &(note.len() as u64).to_le_bytes());
    elf.extend_from_slice(&segment);
    elf.extend_from_slice(&note);
    elf.extend_from_slice(format!("\0Linux version {version} (me@here) #1 SMP\0").as_bytes());
    if let Some(config) = config {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(config.as_bytes()).unwrap();
        elf.extend_from_slice(b"IKCFG_ST");
        elf.extend_from_slice(&encoder.finish().unwrap());
        elf.extend_from_slice(b"IKCFG_ED");
    }
    elf
}

/// A module that says this of itself: `depends=virtio`, `vermagic=6.1.0 SMP`.
pub(super) fn module(info: &[&str]) -> Vec<u8> {
    let mut elf = header(1);
    let modinfo: Vec<u8> = info.iter().flat_map(|entry| [entry.as_bytes(), b"\0"].concat()).collect();
    let names = b"\0.modinfo\0.shstrtab\0";
    let (modinfo_at, names_at) = (elf.len(), elf.len() + modinfo.len());
    elf.extend_from_slice(&modinfo);
    elf.extend_from_slice(names);
    let sections = elf.len() as u64;
    for (name, at, size) in [(0_u32, 0, 0), (1, modinfo_at, modinfo.len()), (10, names_at, names.len())] {
        let mut section = [0; 64];
        put(&mut section, 0, &name.to_le_bytes());
        put(&mut section, 4, &1_u32.to_le_bytes());
        put(&mut section, 24, &(at as u64).to_le_bytes());
        put(&mut section, 32, &(size as u64).to_le_bytes());
        elf.extend_from_slice(&section);
    }
    put(&mut elf, 40, &sections.to_le_bytes());
    // Size and number of section headers, and which one has the names.
    put(&mut elf, 58, &[64, 0, 3, 0, 2, 0]);
    elf
}
