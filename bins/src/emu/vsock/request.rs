//! The request line of a vsock client: `CONNECT <port>\n`.

use std::io;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

/// The longest request: `CONNECT 4294967295\n`, with some room for spaces. In bytes.
const REQUEST_MAX: usize = 32;

/// What a client asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) port: u32,
    /// What came behind the line without waiting for the answer: it belongs to the stream.
    pub(super) early: Vec<u8>,
}

/// Says why a request is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("the client left before its request was complete")]
    Incomplete,
    #[error("the request is longer than any can be")]
    TooLong,
    #[error("the request is not `CONNECT <port>`")]
    Malformed,
}

/// Reads the line, and no more than a line's worth.
pub(super) async fn read(stream: &mut UnixStream) -> Result<Request, RequestError> {
    let mut buffer = [0; REQUEST_MAX];
    let mut filled = 0;
    loop {
        if let Some(end) = buffer[..filled].iter().position(|byte| *byte == b'\n') {
            let port = parse(&buffer[..end]).ok_or(RequestError::Malformed)?;
            return Ok(Request { port, early: buffer[end + 1..filled].to_vec() });
        }
        if filled == buffer.len() {
            return Err(RequestError::TooLong);
        }
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Err(RequestError::Incomplete);
        }
        filled += read;
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let port = match words.next() {
        // Firecracker ignores the case as well.
        Some(word) if word.eq_ignore_ascii_case("connect") => words.next()?,
        _ => return None,
    };
    // `u32::from_str` would take a `+`.
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    if words.next().is_some() || !digits { None } else { port.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[test]
    fn lines_are_strict() {
        assert_eq!(parse(b"CONNECT 52"), Some(52));
        assert_eq!(parse(b"connect 4294967295\r"), Some(u32::MAX));
        for line in ["", "CONNECT", "CONNECT 4294967296", "CONNECT -1", "CONNECT +1", "CONNECT 1 2", "DIAL 52"] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(parse(b"CONNECT \xff"), None);
    }

    #[tokio::test]
    async fn a_line_in_pieces_is_read_and_early_bytes_are_kept() {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        let reading = tokio::spawn(async move { read(&mut server).await });
        for piece in [&b"CONN"[..], b"ECT 7", b"\nhello"] {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        let request = reading.await.unwrap().unwrap();
        assert_eq!(request.port, 7);
        assert!(b"hello".starts_with(&request.early[..]));
    }

    #[tokio::test]
    async fn endless_and_broken_lines_end() {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        client.write_all(&[b'C'; 64]).await.unwrap();
        assert!(matches!(read(&mut server).await, Err(RequestError::TooLong)));
        let (mut client, mut server) = UnixStream::pair().unwrap();
        client.write_all(b"CONNECT 1").await.unwrap();
        drop(client);
        assert!(matches!(read(&mut server).await, Err(RequestError::Incomplete)));
    }
}
