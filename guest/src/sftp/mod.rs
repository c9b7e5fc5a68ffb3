//! SFTP version 3 (draft-ietf-secsh-filexfer-02) on stdin and stdout, in a process of its own that runs as the user who logged
//! in: the kernel decides what it may touch. File names are bytes. Answers requests in their order.

mod files;
mod wire;

use files::Files;
use std::io::{self, BufWriter, Read as _, Write as _};
use wire::{PACKET_MAX, Packet};

/// Serves the client on stdin until it leaves.
///
/// # Errors
/// It breaks the protocol, or the streams break.
pub fn run() -> io::Result<()> {
    let (mut input, mut output) = (io::stdin().lock(), BufWriter::new(io::stdout().lock()));
    let mut files = Files::default();
    let mut length = [0; 4];
    loop {
        match input.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if !(1..=PACKET_MAX).contains(&length) {
            return Err(io::Error::other(format!("a packet of {length} bytes")));
        }
        let mut packet = vec![0; length];
        input.read_exact(&mut packet)?;
        let answer = files.answer(&mut Packet::new(&packet)).ok_or_else(|| io::Error::other("a malformed packet"))?;
        output.write_all(&answer.finish())?;
        output.flush()?;
    }
}
