//! One stream, and the handshake that opens it.

use super::{ACCEPTED, OpenError, REFUSED};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

/// One stream of the link. Shut it down before dropping it, or the other side sees a reset.
#[derive(Debug)]
pub struct MuxStream {
    stream: Compat<yamux::Stream>,
    /// Its place among those that there may be at once.
    _slot: OwnedSemaphorePermit,
}

impl MuxStream {
    pub(crate) fn new(stream: yamux::Stream, slot: OwnedSemaphorePermit) -> Self {
        Self { stream: stream.compat(), _slot: slot }
    }

    /// The opener's half of the handshake.
    pub(crate) async fn request(mut self, port: u32) -> Result<Self, OpenError> {
        self.write_all(&port.to_le_bytes()).await.map_err(OpenError::Io)?;
        self.flush().await.map_err(OpenError::Io)?;
        match self.read_u8().await {
            Ok(ACCEPTED) => Ok(self),
            Ok(_) => Err(OpenError::Refused(port)),
            Err(error) => Err(OpenError::Io(error)),
        }
    }

    /// The other half, up to the port number.
    pub(crate) async fn requested(mut self) -> io::Result<Incoming> {
        let port = self.read_u32_le().await?;
        Ok(Incoming { port, stream: self })
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A stream that the other side wants.
#[derive(Debug)]
pub struct Incoming {
    /// The vsock port that it asks for.
    pub port: u32,
    stream: MuxStream,
}

impl Incoming {
    /// Takes it.
    ///
    /// # Errors
    /// The link broke.
    pub async fn accept(mut self) -> io::Result<MuxStream> {
        self.stream.write_u8(ACCEPTED).await?;
        self.stream.flush().await?;
        Ok(self.stream)
    }

    /// Says that nobody listens there. A link that breaks meanwhile says the same.
    pub async fn refuse(mut self) {
        if self.stream.write_u8(REFUSED).await.is_ok() && self.stream.shutdown().await.is_err() {
            tracing::debug!("the link broke during a refusal");
        }
    }
}
