//! The envelope on a port that outlives its ends: every envelope names the epoch it belongs to.
//!
//! A virtio-serial port has no connections. The agent behind it may be restarted, and a VM restored from a snapshot meets a
//! new host with half an envelope of the old one in its buffers. Hence:
//!
//! * The guest begins an *epoch* with [`Kind::GuestStart`]; whatever belongs to an older one is dropped on both sides.
//! * A host that attaches to a running guest sends [`Kind::HostStart`]; the guest answers with a new epoch.
//! * Either may come after a broken envelope, so both can be preceded by [`RESYNC_LEN`] zeros, which complete it. Its trailer
//!   is then wrong and it is dropped, instead of its zeros reaching a program's stdin.
//!
//! ```text
//! magic 4 | kind 1 | payload length 3 | epoch 8 | CRC-32 of these 16 | payload | CRC again, inverted
//! ```
//! All little endian. No I/O here.

use bytes::{BufMut, BytesMut};
use std::ops::Range;

/// The longest payload of one envelope.
pub const PAYLOAD_MAX: usize = 64 << 10;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 20;
/// Bytes after the payload.
pub const TRAILER_LEN: usize = 4;
/// How many zeros complete any broken envelope.
pub const RESYNC_LEN: usize = PAYLOAD_MAX + HEADER_LEN + TRAILER_LEN;

const MAGIC: [u8; 4] = [0xba, 0x6e, 0x9e, 0x21];

/// What an envelope is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of the multiplexer.
    Data,
    /// The guest begins the epoch that the envelope names.
    GuestStart,
    /// The host is new: begin an epoch, please.
    HostStart,
}

impl Kind {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::GuestStart => 2,
            Self::HostStart => 3,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Data),
            2 => Some(Self::GuestStart),
            3 => Some(Self::HostStart),
            _ => None,
        }
    }
}

/// A whole envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub kind: Kind,
    pub epoch: u64,
    /// Where its payload lies in the bytes that it was found in.
    pub payload: Range<usize>,
}

/// Appends an envelope to `out`.
///
/// # Panics
/// Where the payload is over [`PAYLOAD_MAX`]: a bug of the caller.
pub fn encode(out: &mut BytesMut, kind: Kind, epoch: u64, payload: &[u8]) {
    assert!(payload.len() <= PAYLOAD_MAX, "callers split at PAYLOAD_MAX");
    out.reserve(HEADER_LEN + payload.len() + TRAILER_LEN);
    let header = header(kind, payload.len(), epoch);
    out.put_slice(&header);
    out.put_slice(payload);
    out.put_slice(&trailer(&header));
}

/// An envelope that is filled in place, at the end of a buffer: saves the copy from a staging buffer.
#[derive(Debug)]
pub struct OpenEnvelope {
    /// Where its header stands in the buffer.
    start: usize,
    epoch: u64,
}

impl OpenEnvelope {
    /// Leaves room for a header at the end of `out`. Nothing may be taken off the front of `out` before [`Self::seal`].
    pub fn begin(out: &mut BytesMut, epoch: u64) -> Self {
        let start = out.len();
        out.put_bytes(0, HEADER_LEN);
        Self { start, epoch }
    }

    /// How much payload still fits.
    #[must_use]
    pub fn room(&self, out: &BytesMut) -> usize {
        PAYLOAD_MAX - (out.len() - self.start - HEADER_LEN)
    }

    /// Writes header and trailer around what was appended since [`Self::begin`].
    pub fn seal(self, out: &mut BytesMut) {
        let header = header(Kind::Data, out.len() - self.start - HEADER_LEN, self.epoch);
        out[self.start..self.start + HEADER_LEN].copy_from_slice(&header);
        out.put_slice(&trailer(&header));
    }
}

fn header(kind: Kind, length: usize, epoch: u64) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = kind.to_byte();
    header[5..8].copy_from_slice(&u32::try_from(length).expect("below PAYLOAD_MAX").to_le_bytes()[..3]);
    header[8..16].copy_from_slice(&epoch.to_le_bytes());
    let sum = crc32fast::hash(&header[..16]);
    header[16..].copy_from_slice(&sum.to_le_bytes());
    header
}

fn trailer(header: &[u8; HEADER_LEN]) -> [u8; TRAILER_LEN] {
    let mut sum = [0; 4];
    sum.copy_from_slice(&header[16..]);
    (!u32::from_le_bytes(sum)).to_le_bytes()
}

/// Finds the first whole envelope and skips what is none. Says how many bytes at the front are done with, and the envelope in them;
/// where there is none, more bytes are needed behind the rest.
#[must_use]
pub fn decode(bytes: &[u8]) -> (usize, Option<Envelope>) {
    let mut at = 0;
    loop {
        at += before_magic(&bytes[at..]);
        let rest = &bytes[at..];
        let Some(header) = rest.first_chunk::<HEADER_LEN>() else { return (at, None) };
        let Some((kind, length, epoch)) = parse(header) else {
            at += 1;
            continue;
        };
        let end = HEADER_LEN + length;
        let Some(found) = rest.get(end..end + TRAILER_LEN) else { return (at, None) };
        if found != trailer(header) {
            // Broken by a restart in its middle. What completed it may hold the next envelope, so look on inside.
            at += 1;
            continue;
        }
        return (at + end + TRAILER_LEN, Some(Envelope { kind, epoch, payload: at + HEADER_LEN..at + end }));
    }
}

/// How many bytes lie before the magic, or before what may be the beginning of it.
fn before_magic(bytes: &[u8]) -> usize {
    let may_begin = |at: &usize| MAGIC.starts_with(&bytes[*at..bytes.len().min(at + MAGIC.len())]);
    (0..bytes.len()).find(may_begin).unwrap_or(bytes.len())
}

fn parse(header: &[u8; HEADER_LEN]) -> Option<(Kind, usize, u64)> {
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if header[..4] != MAGIC || word(16) != crc32fast::hash(&header[..16]) {
        return None;
    }
    let kind = Kind::from_byte(header[4])?;
    let length = usize::try_from(u32::from_le_bytes([header[5], header[6], header[7], 0])).ok()?;
    let epoch = u64::from(word(8)) | u64::from(word(12)) << 32;
    (length <= PAYLOAD_MAX).then_some((kind, length, epoch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is found where the bytes come in pieces: kinds, epochs and payloads.
    fn drain(bytes: &[u8], piece: usize) -> Vec<(Kind, u64, Vec<u8>)> {
        let mut buffer = Vec::new();
        let mut found = Vec::new();
        for chunk in bytes.chunks(piece.max(1)) {
            buffer.extend_from_slice(chunk);
            loop {
                let (done, envelope) = decode(&buffer);
                found.extend(
                    envelope.iter().map(|found| (found.kind, found.epoch, buffer[found.payload.clone()].to_vec())),
                );
                buffer.drain(..done);
                if envelope.is_none() {
                    break;
                }
            }
        }
        found
    }

    fn one(kind: Kind, epoch: u64, payload: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        encode(&mut out, kind, epoch, payload);
        out
    }

    #[test]
    fn a_start_is_found_after_an_envelope_broken_anywhere() {
        let old = one(Kind::Data, 1, &[7; 300]);
        let start = one(Kind::GuestStart, 2, &[]);
        for cut in 0..old.len() {
            let mut bytes = old[..cut].to_vec();
            bytes.resize(bytes.len() + RESYNC_LEN, 0);
            bytes.extend_from_slice(&start);
            let found = drain(&bytes, 4096);
            assert_eq!(found, [(Kind::GuestStart, 2, Vec::new())], "cut at {cut}");
        }
    }

    #[test]
    fn the_tail_of_an_old_envelope_is_skipped() {
        let old = one(Kind::Data, 1, &[7; 300]);
        let start = one(Kind::GuestStart, 2, &[]);
        for cut in 1..old.len() {
            let bytes = [&old[cut..], &start[..]].concat();
            assert_eq!(drain(&bytes, 64).len(), 1, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn envelopes_come_back_in_any_pieces(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..2000), 0..8),
            epoch: u64, piece in 1_usize..3000,
        ) {
            let mut bytes = BytesMut::new();
            for payload in &payloads {
                encode(&mut bytes, Kind::Data, epoch, payload);
            }
            let found = drain(&bytes, piece);
            prop_assert_eq!(found.len(), payloads.len());
            for (found, payload) in found.into_iter().zip(payloads) {
                prop_assert_eq!(found, (Kind::Data, epoch, payload));
            }
        }

        #[test]
        fn noise_yields_nothing_and_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..5000), piece in 1_usize..600) {
            prop_assert!(drain(&noise, piece).is_empty());
        }
    }
}
