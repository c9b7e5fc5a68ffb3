//! Reads and writes `messages::frame` frames on asynchronous byte streams.
//!
//! Bounds every length before it allocates. Sets no deadlines: whoever waits for a peer knows how long it may take.

use messages::frame::{self, FrameError, HEADER_LEN, Hello};
use messages::limits::HELLO_FRAME_MAX;
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Says why no message could be had. Ends only the connection it came from.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the peer closed the connection before its hello")]
    NoHello,
}

/// Reads frames; its buffer is reused from frame to frame and never grows past the limit.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    limit: usize,
    header: [u8; HEADER_LEN],
    payload: Vec<u8>,
    /// How much of header and payload has been read: kept here so that a dropped `next` loses nothing.
    filled: usize,
    /// Set once the header of the present frame is whole.
    length: Option<usize>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader of frames with payloads of at most `limit` bytes.
    pub fn new(inner: R, limit: usize) -> Self {
        Self { inner, limit, header: [0; HEADER_LEN], payload: Vec::new(), filled: 0, length: None }
    }

    /// Changes the limit, for the frames after a hello.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// The stream. Nothing that lies behind the last frame has been read from it.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The stream, to look at.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The stream.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// The next payload, or `None` where the stream ends between two frames. Cancel-safe.
    ///
    /// # Errors
    /// A frame over the limit, a stream that ends inside one, or an I/O error.
    pub async fn next(&mut self) -> Result<Option<&[u8]>, ReadError> {
        let length = loop {
            if let Some(length) = self.length {
                break length;
            }
            let read = self.inner.read(&mut self.header[self.filled..]).await?;
            if read == 0 {
                return if self.filled == 0 { Ok(None) } else { Err(FrameError::Truncated.into()) };
            }
            self.filled += read;
            if self.filled == HEADER_LEN {
                let length = frame::payload_length(self.header, self.limit)?;
                if self.payload.len() < length {
                    self.payload.resize(length, 0);
                }
                self.length = Some(length);
                self.filled = 0;
            }
        };
        while self.filled < length {
            let read = self.inner.read(&mut self.payload[self.filled..length]).await?;
            if read == 0 {
                return Err(FrameError::Truncated.into());
            }
            self.filled += read;
        }
        self.length = None;
        self.filled = 0;
        Ok(Some(&self.payload[..length]))
    }

    /// The next message that owns its content.
    ///
    /// # Errors
    /// As [`FrameReader::next`], or a payload that does not decode.
    pub async fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ReadError> {
        match self.next().await? {
            Some(payload) => Ok(Some(frame::decode(payload)?)),
            None => Ok(None),
        }
    }

    /// Reads and checks the peer's hello.
    ///
    /// # Errors
    /// [`ReadError::NoHello`], or a hello of another program or generation.
    pub async fn hello(&mut self) -> Result<Hello, ReadError> {
        let limit = std::mem::replace(&mut self.limit, HELLO_FRAME_MAX);
        let hello = match self.next().await {
            Ok(Some(payload)) => Hello::decode(payload).map_err(ReadError::Frame),
            Ok(None) => Err(ReadError::NoHello),
            // A length that no hello has: this is no banger.
            Err(ReadError::Frame(FrameError::TooLong { .. })) => Err(FrameError::NotBanger.into()),
            Err(error) => Err(error),
        };
        self.limit = limit;
        hello
    }
}

/// Writes one frame and flushes it.
///
/// # Errors
/// A message over the limit, or an I/O error.
pub async fn write_frame<W, T>(writer: &mut W, message: &T, limit: usize) -> Result<(), ReadError>
where
    W: AsyncWrite + Unpin,
    T: Serialize,
{
    let bytes = frame::encode(message, limit)?;
    writer.write_all(&bytes).await?;
    writer.flush().await?;
    Ok(())
}

/// Sends our hello.
///
/// # Errors
/// An I/O error.
pub async fn send_hello<W: AsyncWrite + Unpin>(writer: &mut W) -> Result<(), ReadError> {
    write_frame(writer, &Hello::ours(), HELLO_FRAME_MAX).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_back_whole_from_single_bytes() {
        let (mut near, far) = tokio::io::duplex(1);
        let sender = tokio::spawn(async move {
            send_hello(&mut near).await.unwrap();
            write_frame(&mut near, &"first", 64).await.unwrap();
            write_frame(&mut near, &7_u32, 64).await.unwrap();
        });
        let mut reader = FrameReader::new(far, 64);
        assert_eq!(reader.hello().await.unwrap(), Hello::ours());
        assert_eq!(reader.message::<String>().await.unwrap().unwrap(), "first");
        assert_eq!(reader.message::<u32>().await.unwrap().unwrap(), 7);
        assert!(reader.next().await.unwrap().is_none());
        sender.await.unwrap();
    }

    #[tokio::test]
    async fn hostile_bytes_are_typed_errors() {
        let huge = u32::MAX.to_le_bytes();
        assert!(matches!(
            FrameReader::new(&huge[..], 64).next().await,
            Err(ReadError::Frame(FrameError::TooLong { .. }))
        ));
        let half = [8, 0, 0, 0, 1, 2];
        assert!(matches!(FrameReader::new(&half[..], 64).next().await, Err(ReadError::Frame(FrameError::Truncated))));
        assert!(matches!(FrameReader::new(&half[..3], 64).next().await, Err(ReadError::Frame(FrameError::Truncated))));
        let http = b"GET / HTTP/1.1\r\n\r\n";
        assert!(matches!(FrameReader::new(&http[..], 64).hello().await, Err(ReadError::Frame(FrameError::NotBanger))));
        assert!(matches!(FrameReader::new(&[][..], 64).hello().await, Err(ReadError::NoHello)));
    }
}
