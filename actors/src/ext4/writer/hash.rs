//! The hash by which large directories are sorted: half MD4, of names as signed bytes.
//!
//! Format: kernel documentation, filesystems/ext4, "Hash Tree Directories"; the superblock says which hash and that bytes are
//! signed (`s_def_hash_version`, `s_flags`).

/// `DX_HASH_HALF_MD4`
pub(crate) const VERSION: u8 = 1;
/// What a seed of zeros stands for: MD4's own (RFC 1320, 3.3).
const SEED: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
/// The words of name that one round takes.
const WORDS: usize = 8;
/// The largest hash, which says "end of directory" in a reader's position (`EXT4_HTREE_EOF_32BIT`).
const END: u32 = 0xffff_fffe;

/// Hashes names with one seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hasher([u32; 4]);

impl Hasher {
    pub(crate) fn new(seed: &[u8; 16]) -> Self {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(seed.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Self(if words == [0; 4] { SEED } else { words })
    }

    /// The lowest bit is always 0: in an index it tells that the block before ends with the same hash.
    pub(crate) fn hash(self, name: &[u8]) -> u32 {
        let mut state = self.0;
        let mut rest = name;
        while !rest.is_empty() {
            mix(&mut state, &words(rest));
            rest = &rest[rest.len().min(WORDS * 4)..];
        }
        let hash = state[1] & !1;
        if hash == END { END - 2 } else { hash }
    }
}

/// The next 32 bytes, the first of each word on top; what is missing is made of the length of the rest.
fn words(rest: &[u8]) -> [u32; WORDS] {
    // Names have at most 255 bytes.
    let length = u32::try_from(rest.len()).expect("a name's length fits");
    let padding = length.wrapping_mul(0x0101_0101);
    let mut words = [padding; WORDS];
    for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
        for byte in bytes {
            // A signed byte borrows from those above it: kernels on x86 did so first, and the format keeps it.
            *word = (*word << 8).wrapping_add_signed(i32::from(byte.cast_signed()));
        }
    }
    words
}

/// Three rounds of eight steps: MD4 without the second half of each round (RFC 1320, 3.4).
fn mix(state: &mut [u32; 4], words: &[u32; WORDS]) {
    const K2: u32 = 0x5a82_7999;
    const K3: u32 = 0x6ed9_eba1;
    let choose = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let majority = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
    let parity = |x: u32, y: u32, z: u32| x ^ y ^ z;

    let mut now = *state;
    round(&mut now, words, choose, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]);
    round(&mut now, words, majority, K2, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]);
    round(&mut now, words, parity, K3, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]);
    for (word, add) in state.iter_mut().zip(now) {
        *word = word.wrapping_add(add);
    }
}

fn round(
    now: &mut [u32; 4],
    words: &[u32; WORDS],
    function: impl Fn(u32, u32, u32) -> u32,
    constant: u32,
    order: [usize; WORDS],
    shifts: [u32; 4],
) {
    for (step, word) in order.into_iter().enumerate() {
        let [a, b, c, d] = *now;
        let sum = a.wrapping_add(function(b, c, d)).wrapping_add(words[word]).wrapping_add(constant);
        // Each step is about another of the four: they take turns by changing places.
        *now = [d, sum.rotate_left(shifts[step % 4]), b, c];
    }
}
