//! One operation in the VM that an image is built in: its stdin comes from a file, what it says goes to our stderr.

use super::super::failure::Failure;
use super::super::output::Output;
use link::frames::{FrameReader, ReadError, write_frame};
use messages::error::ErrorKind;
use messages::frame;
use messages::guest::{ExitStatus, OperationFrame, OutputFrame};
use messages::limits::{GUEST_FRAME_MAX, STREAM_CHUNK_MAX};
use serde_json::json;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use tokio::io::AsyncWrite;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Takes the socket of an operation over for this runtime.
pub(super) fn stream(socket: OwnedFd) -> Result<UnixStream, Failure> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(socket))
        .map_err(|error| Failure::io(ErrorKind::Host, "failed to set up the connection to the guest", &error))
}

/// Runs until it ends.
pub(super) async fn run(stream: UnixStream, input: Option<File>, output: Output) -> Result<ExitStatus, Failure> {
    let (read, mut write) = stream.into_split();
    let (credit, mut granted) = mpsc::unbounded_channel();
    let feeding = async {
        if let Some(file) = input {
            feed(&mut write, file, &mut granted).await?;
        }
        // The operation ends when its last frame says so.
        std::future::pending::<Result<(), ReadError>>().await
    };
    tokio::select! {
        ended = listen(FrameReader::new(read, GUEST_FRAME_MAX), &credit, output) => ended,
        Err(error) = feeding => Err(lost(&error)),
    }
}

fn lost(error: &ReadError) -> Failure {
    Failure::io(ErrorKind::Lost, "lost the connection to the VM that the image is built in", error)
}

async fn listen(
    mut frames: FrameReader<impl tokio::io::AsyncRead + Unpin>,
    credit: &mpsc::UnboundedSender<u32>,
    output: Output,
) -> Result<ExitStatus, Failure> {
    loop {
        let payload = frames.next().await.map_err(|error| lost(&error))?;
        let payload = payload.ok_or_else(|| {
            Failure::new(ErrorKind::Lost, "the VM that the image is built in ended before the step did")
        })?;
        match frame::decode_borrowed(payload).map_err(|error| lost(&error.into()))? {
            OutputFrame::Stdout(bytes) => pass_on(output, "stdout", bytes),
            OutputFrame::Stderr(bytes) => pass_on(output, "stderr", bytes),
            // Nobody feeds it any more: nothing to tell.
            OutputFrame::StdinCredit(bytes) => drop(credit.send(bytes)),
            OutputFrame::Exited(status) => return Ok(status),
            OutputFrame::Failed(error) => return Err(error.into()),
            OutputFrame::Started { .. } | OutputFrame::StdinClosed => {}
        }
    }
}

/// All of it is talk: a build's data is the image's name.
fn pass_on(output: Output, from: &str, bytes: &[u8]) {
    if output.json {
        output.event(&json!({ "event": "output", "stream": from, "text": String::from_utf8_lossy(bytes) }));
    } else if !output.quiet {
        // With nobody to read it there is nobody to tell.
        io::stderr().lock().write_all(bytes).ok();
    }
}

async fn feed(
    write: &mut (impl AsyncWrite + Unpin),
    mut file: File,
    granted: &mut mpsc::UnboundedReceiver<u32>,
) -> Result<(), ReadError> {
    let mut chunk = vec![0; STREAM_CHUNK_MAX];
    let mut credit = 0_usize;
    loop {
        while credit == 0 {
            match granted.recv().await {
                Some(more) => credit += usize::try_from(more).unwrap_or(usize::MAX),
                None => return Ok(()),
            }
        }
        let most = chunk.len().min(credit);
        let count = file.read(&mut chunk[..most])?;
        if count == 0 {
            return write_frame(write, &OperationFrame::StdinEnd, GUEST_FRAME_MAX).await;
        }
        credit -= count;
        write_frame(write, &OperationFrame::Stdin(&chunk[..count]), GUEST_FRAME_MAX).await?;
    }
}
