//! Frames: a little-endian `u32` length, bounded before anything is allocated, then one postcard value and nothing after it.
//!
//! The first frame of each side is a [`Hello`], whose layout never changes, so that two versions can at least name each
//! other. This module works on byte slices; the readers and writers live in `banger-link`.

use crate::limits::HELLO_FRAME_MAX;
use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The generation of every message in this crate. Raised when a frozen struct or enum variant has to change.
pub const GENERATION: u32 = 2;
/// The bytes in front of the payload.
pub const HEADER_LEN: usize = 4;
/// The first field of every hello.
pub const MAGIC: [u8; 4] = *b"bngr";

/// Says why bytes are not the frame that they should be. Each closes only the connection it came from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {length} bytes is over the limit of {limit}")]
    TooLong { length: usize, limit: usize },
    #[error("the connection ended inside a frame")]
    Truncated,
    #[error("the frame does not decode")]
    Malformed(#[source] postcard::Error),
    #[error("the frame has {0} bytes after its message")]
    Trailing(usize),
    #[error("the message cannot be encoded")]
    Encode(#[source] postcard::Error),
    #[error("the peer does not speak banger's protocol")]
    NotBanger,
    #[error(
        "the peer is banger {theirs} (protocol {their_generation}), this is banger {ours} (protocol {our_generation})"
    )]
    Generation { theirs: String, their_generation: u32, ours: String, our_generation: u32 },
}

/// The first frame of each side. **Frozen for ever**, in every generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: [u8; 4],
    /// [`GENERATION`] of the sender.
    pub generation: u32,
    /// The sender's version, for people.
    pub build: String,
}

impl Hello {
    /// This build's hello.
    #[must_use]
    pub fn ours() -> Self {
        Self { magic: MAGIC, generation: GENERATION, build: build_id().to_owned() }
    }

    /// Accepts a peer of the same generation.
    ///
    /// # Errors
    /// [`FrameError::NotBanger`] or [`FrameError::Generation`].
    pub fn check(&self) -> Result<(), FrameError> {
        if self.magic != MAGIC {
            return Err(FrameError::NotBanger);
        }
        if self.generation != GENERATION {
            return Err(FrameError::Generation {
                theirs: self.build.clone(),
                their_generation: self.generation,
                ours: build_id().to_owned(),
                our_generation: GENERATION,
            });
        }
        Ok(())
    }

    /// Decodes and checks a hello's payload.
    ///
    /// # Errors
    /// Anything that is not a hello of this generation.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        if payload.len() > HELLO_FRAME_MAX {
            return Err(FrameError::TooLong { length: payload.len(), limit: HELLO_FRAME_MAX });
        }
        let hello: Self = decode(payload).map_err(|_| FrameError::NotBanger)?;
        hello.check()?;
        Ok(hello)
    }
}

/// The version and, where it is known, the commit of this build.
#[must_use]
pub const fn build_id() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Reads a header: the payload's length.
///
/// # Errors
/// [`FrameError::TooLong`] where it is over `limit`.
pub fn payload_length(header: [u8; HEADER_LEN], limit: usize) -> Result<usize, FrameError> {
    let length = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if length > limit { Err(FrameError::TooLong { length, limit }) } else { Ok(length) }
}

/// Encodes header and payload.
///
/// # Errors
/// [`FrameError::Encode`], or [`FrameError::TooLong`] where the payload is over `limit`.
pub fn encode<T: Serialize>(message: &T, limit: usize) -> Result<Vec<u8>, FrameError> {
    let start = Framed(vec![0; HEADER_LEN]);
    let mut bytes = postcard::serialize_with_flavor(message, start).map_err(FrameError::Encode)?;
    let length = bytes.len() - HEADER_LEN;
    if length > limit {
        return Err(FrameError::TooLong { length, limit });
    }
    let header = u32::try_from(length).map_err(|_| FrameError::TooLong { length, limit })?;
    bytes[..HEADER_LEN].copy_from_slice(&header.to_le_bytes());
    Ok(bytes)
}

/// A frame being written. postcard's own flavors either have no room for a header or append a byte at a time.
struct Framed(Vec<u8>);

impl Flavor for Framed {
    type Output = Vec<u8>;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

/// Decodes a whole payload.
///
/// # Errors
/// [`FrameError::Malformed`], or [`FrameError::Trailing`] where bytes are left over: an old reader of a new struct would
/// otherwise silently succeed.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    decode_borrowed(payload)
}

/// [`decode`], for messages that borrow from the payload.
///
/// # Errors
/// As [`decode`].
pub fn decode_borrowed<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, FrameError> {
    let (message, rest) = postcard::take_from_bytes(payload).map_err(FrameError::Malformed)?;
    if rest.is_empty() { Ok(message) } else { Err(FrameError::Trailing(rest.len())) }
}
