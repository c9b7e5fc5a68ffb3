//! The raw baseline of `make bench`: swallows bytes and counts them. Speaks no frames.

use crate::transport::Stream;
use std::io;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// As much at once as the largest stdin frame has.
const BUFFER: usize = 128 << 10;

/// Reads a `u64` (little endian), then so many bytes, drops them, and answers how many came, as a `u64`.
///
/// # Errors
/// The stream broke.
pub async fn serve(mut stream: Stream) -> io::Result<()> {
    let wanted = stream.read_u64_le().await?;
    let mut buffer = vec![0; BUFFER];
    let mut count: u64 = 0;
    while count < wanted {
        let room = usize::try_from(wanted - count).unwrap_or(BUFFER).min(BUFFER);
        match stream.read(&mut buffer[..room]).await? {
            0 => break,
            length => count += length as u64,
        }
    }
    stream.write_u64_le(count).await?;
    stream.flush().await?;
    stream.shutdown().await
}
