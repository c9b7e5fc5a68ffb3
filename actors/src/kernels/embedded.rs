//! What a kernel says of itself: its version, and its configuration where it carries it. Pure; trusts no byte.

use std::io::Read;

/// In front of every kernel's `linux_banner` (init/version-timestamp.c), which `/proc/version` prints.
const BANNER: &[u8] = b"Linux version ";
/// `uname -r` has at most so many bytes (`__NEW_UTS_LEN`, linux/utsname.h).
const VERSION_MAX: usize = 64;
/// In front of the gzipped configuration of `CONFIG_IKCONFIG` (kernel/configs.c).
const CONFIG_START: &[u8] = b"IKCFG_ST";
/// How gzip begins (RFC 1952).
const GZIP: &[u8] = &[0x1f, 0x8b];
/// A configuration of everything that there is has a third of a megabyte.
const CONFIG_MAX: u64 = 4 << 20;

/// `uname -r` of an unpacked kernel.
#[must_use]
pub fn version(kernel: &[u8]) -> Option<String> {
    // The same words are a format of printk's, with a `%s` after them.
    places(kernel, BANNER).find_map(|at| {
        let rest = &kernel[at..kernel.len().min(at + VERSION_MAX + 1)];
        let end = rest.iter().position(|byte| *byte == b' ')?;
        let text = std::str::from_utf8(&rest[..end]).ok()?;
        is_version(text).then(|| text.to_owned())
    })
}

/// True for what may be a version: it becomes a directory's name in every guest.
#[must_use]
pub fn is_version(text: &str) -> bool {
    text.len() <= VERSION_MAX
        && text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".+-_~".contains(&byte))
}

/// So many places are tried: the mark's own bytes are in the code that looks for it, and hardly anywhere else.
const PLACES_MAX: usize = 8;

/// The configuration inside an unpacked kernel, or inside its module `configs`.
#[must_use]
pub fn config(bytes: &[u8]) -> Option<String> {
    let packed = places(bytes, CONFIG_START).map(|at| &bytes[at..]).filter(|rest| rest.starts_with(GZIP));
    packed.take(PLACES_MAX).find_map(|rest| config_text(rest).filter(|text| text.contains("CONFIG_")))
}

/// A configuration as text or gzipped, as `/proc/config.gz` has it; `None` where it is neither.
#[must_use]
pub fn config_text(bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    let read = if bytes.starts_with(GZIP) {
        flate2::read::GzDecoder::new(bytes).take(CONFIG_MAX).read_to_string(&mut text)
    } else {
        bytes.take(CONFIG_MAX).read_to_string(&mut text)
    };
    read.ok().map(|_| text)
}

/// Where what follows each `mark` begins.
fn places<'a>(bytes: &'a [u8], mark: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    bytes.windows(mark.len()).enumerate().filter(move |(_, window)| *window == mark).map(|(at, _)| at + mark.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_version_is_the_banners_and_no_formats() {
        let kernel = b"\x00Linux version %s (%s)\0Linux version 6.12.1+deb13-cloud-amd64 (x@y) #1\0";
        assert_eq!(version(kernel).as_deref(), Some("6.12.1+deb13-cloud-amd64"));
        for bad in
            [&b"Linux version 6.1/../../x (y)"[..], b"Linux version 6.12", b"Linux version ", b"", b"Linux version .. "]
        {
            assert_eq!(version(bad), None, "{}", bad.escape_ascii());
        }
        assert_eq!(version(&[BANNER, &[b'6'; 65], b" "].concat()), None);
    }

    #[test]
    fn the_configuration_is_found_inside_and_a_damaged_one_is_not() {
        let packed = gzip("CONFIG_X86_64=y\n");
        let kernel = [&b"rubbish IKCFG_ST more IKCFG_ST"[..], &packed, b"IKCFG_ED rest"].concat();
        assert_eq!(config(&kernel).as_deref(), Some("CONFIG_X86_64=y\n"));
        let half = [&b"IKCFG_ST"[..], &packed[..packed.len() / 2]].concat();
        assert_eq!(config(&half), None);
        assert_eq!(config(b"nothing"), None);
    }

    #[test]
    fn a_configuration_that_unpacks_to_anything_is_cut() {
        let bomb = gzip(&"CONFIG_A=y\n".repeat(1 << 20));
        assert_eq!(config_text(&bomb).map(|text| text.len() as u64), Some(CONFIG_MAX));
        assert_eq!(config_text(b"CONFIG_A=m\n").as_deref(), Some("CONFIG_A=m\n"));
        assert_eq!(config_text(&[0xff, 0xfe]), None);
    }
}
