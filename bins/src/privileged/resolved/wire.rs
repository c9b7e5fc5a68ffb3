//! What helper and names keeper say to each other: requests of one length, answers of a sentence. Pure.

use std::net::Ipv4Addr;

/// The bytes of a request: what, which interface, which address.
pub(super) const REQUEST_LEN: usize = 9;
/// The longest sentence of an answer, in bytes; longer ones are cut.
pub(super) const SENTENCE_MAX: usize = 500;

/// What the names keeper does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// `.vm` is asked of this address, by way of this interface.
    Route { index: u32, address: Ipv4Addr },
    /// As if it had never been.
    Revert { index: u32 },
    /// firewalld lets the interface's traffic pass.
    Trust { index: u32 },
    /// It is no longer named to firewalld.
    Distrust { index: u32 },
}

impl Request {
    pub(super) fn encode(self) -> [u8; REQUEST_LEN] {
        let (kind, index, address) = match self {
            Self::Route { index, address } => (1, index, address),
            Self::Revert { index } => (2, index, Ipv4Addr::UNSPECIFIED),
            Self::Trust { index } => (3, index, Ipv4Addr::UNSPECIFIED),
            Self::Distrust { index } => (4, index, Ipv4Addr::UNSPECIFIED),
        };
        let ([i, j, k, l], [a, b, c, d]) = (index.to_le_bytes(), address.octets());
        [kind, i, j, k, l, a, b, c, d]
    }

    pub(super) fn decode(bytes: [u8; REQUEST_LEN]) -> Option<Self> {
        let [kind, i, j, k, l, a, b, c, d] = bytes;
        let (index, address) = (u32::from_le_bytes([i, j, k, l]), Ipv4Addr::new(a, b, c, d));
        match kind {
            1 => Some(Self::Route { index, address }),
            2 => Some(Self::Revert { index }),
            3 => Some(Self::Trust { index }),
            4 => Some(Self::Distrust { index }),
            _ => None,
        }
    }
}

/// An answer: the length of a sentence, and the sentence; none where it was done.
pub(super) fn encode_answer(result: &Result<(), String>) -> Vec<u8> {
    let sentence = match result {
        Ok(()) => "",
        Err(sentence) => sentence.get(..sentence.floor_char_boundary(SENTENCE_MAX)).unwrap_or_default(),
    };
    let length = u16::try_from(sentence.len()).unwrap_or(0);
    [&length.to_le_bytes()[..], sentence.as_bytes()].concat()
}
