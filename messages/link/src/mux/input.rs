//! What has come from the port: one buffer for as long as the port lasts, in which envelopes and their payloads are found in place.
//! Does no I/O, and knows no epochs.

use crate::epoch::{self, Envelope, Kind, RESYNC_LEN};
use std::ops::Range;

/// The whole buffer. What is not yet a whole envelope has room in it twice, so that it is seldom moved.
const SIZE: usize = 256 << 10;
/// The least that is read at once, as far as the port has so much.
const ROOM: usize = 64 << 10;
const _: () = assert!(SIZE >= RESYNC_LEN + 2 * ROOM, "the longest envelope leaves room to read the next");

#[derive(Debug, Default)]
pub(super) struct Input {
    /// Empty until the first read; then always whole, or each read would have to fill it with zeros before.
    bytes: Vec<u8>,
    /// What has come and belongs to no envelope found so far.
    unread: Range<usize>,
    /// The rest of the payload of the envelope that was found last.
    payload: Range<usize>,
}

impl Input {
    /// The rest of the last envelope's payload.
    pub(super) fn payload(&self) -> &[u8] {
        &self.bytes[self.payload.clone()]
    }

    /// Takes so much off the front of the payload.
    pub(super) fn took(&mut self, length: usize) {
        self.payload.start += length;
    }

    /// Nobody wants the rest of it.
    pub(super) fn drop_payload(&mut self) {
        self.payload = 0..0;
    }

    /// Finds the next envelope: kind and epoch; its payload is then [`Self::payload`]. `None` where more has to be read first.
    pub(super) fn next_envelope(&mut self) -> Option<(Kind, u64)> {
        let start = self.unread.start;
        let (done, envelope) = epoch::decode(&self.bytes[self.unread.clone()]);
        self.unread.start += done;
        let Envelope { kind, epoch, payload } = envelope?;
        self.payload = start + payload.start..start + payload.end;
        Some((kind, epoch))
    }

    /// Where to read to. What is left of the payload is gone.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.drop_payload();
        if self.bytes.is_empty() {
            self.bytes = vec![0; SIZE];
        }
        if self.unread.is_empty() {
            self.unread = 0..0;
        } else if SIZE - self.unread.end < ROOM {
            self.bytes.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        &mut self.bytes[self.unread.end..]
    }

    /// So much has been read there.
    pub(super) fn came(&mut self, length: usize) {
        self.unread.end += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn payloads_come_back_however_they_are_read(
            lengths in proptest::collection::vec(0_usize..=epoch::PAYLOAD_MAX, 1..12), pieces in proptest::collection::vec(1_usize..200_000, 1..8),
        ) {
            let mut wire = BytesMut::new();
            let payloads: Vec<Vec<u8>> =
                lengths.iter().zip(1_u8..).map(|(length, byte)| vec![byte; *length]).collect();
            for (payload, number) in payloads.iter().zip(0..) {
                epoch::encode(&mut wire, Kind::Data, number, payload);
            }
            let (mut input, mut rest, mut found) = (Input::default(), &wire[..], Vec::new());
            for piece in pieces.iter().cycle() {
                while let Some((_, number)) = input.next_envelope() {
                    let half = input.payload().len() / 2;
                    let mut payload = input.payload()[..half].to_vec();
                    input.took(half);
                    payload.extend_from_slice(input.payload());
                    prop_assert_eq!(usize::try_from(number).unwrap(), found.len());
                    found.push(payload);
                }
                if rest.is_empty() {
                    break;
                }
                let room = input.room();
                let length = room.len().min(*piece).min(rest.len());
                prop_assert!(length > 0);
                room[..length].copy_from_slice(&rest[..length]);
                input.came(length);
                rest = &rest[length..];
            }
            prop_assert_eq!(found, payloads);
        }
    }
}
