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
use tokio::sync::watch;

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
    // All that was ever granted, and no more than that: however often a guest grants, there is one number to keep.
    let (credit, granted) = watch::channel(0);
    let feeding = async {
        if let Some(file) = input {
            feed(&mut write, file, granted).await?;
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
    credit: &watch::Sender<u64>,
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
            OutputFrame::StdinCredit(bytes) => {
                credit.send_modify(|granted| *granted = granted.saturating_add(u64::from(bytes)));
            }
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
    mut granted: watch::Receiver<u64>,
) -> Result<(), ReadError> {
    let mut chunk = vec![0; STREAM_CHUNK_MAX];
    let mut sent = 0_u64;
    loop {
        let Ok(granted) = granted.wait_for(|granted| *granted > sent).await.map(|granted| *granted) else {
            return Ok(());
        };
        let most = usize::try_from(granted - sent).map_or(chunk.len(), |credit| chunk.len().min(credit));
        let count = file.read(&mut chunk[..most])?;
        if count == 0 {
            return write_frame(write, &OperationFrame::StdinEnd, GUEST_FRAME_MAX).await;
        }
        sent += count as u64;
        write_frame(write, &OperationFrame::Stdin(&chunk[..count]), GUEST_FRAME_MAX).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek as _;

    const QUIET: Output = Output { json: false, quiet: true };

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        file
    }

    /// The guest's side: grants, then takes stdin to its end, and ends.
    async fn guest(stream: UnixStream, grants: Vec<u32>) -> Vec<u8> {
        let (read, mut write) = stream.into_split();
        for bytes in grants {
            write_frame(&mut write, &OutputFrame::StdinCredit(bytes), GUEST_FRAME_MAX).await.unwrap();
        }
        let mut frames = FrameReader::new(read, GUEST_FRAME_MAX);
        let mut taken = Vec::new();
        while let OperationFrame::Stdin(bytes) = frame::decode_borrowed(frames.next().await.unwrap().unwrap()).unwrap()
        {
            taken.extend_from_slice(bytes);
        }
        let exited = OutputFrame::Exited(ExitStatus::Code(3));
        write_frame(&mut write, &exited, GUEST_FRAME_MAX).await.unwrap();
        taken
    }

    #[tokio::test]
    async fn stdin_goes_as_far_as_was_granted_however_it_was() {
        let content: Vec<u8> = (0..=250).cycle().take(1000).collect();
        // What was granted one by one counts as much as at once, and too much is not too much for us.
        for grants in [vec![1000, 1], vec![1; 1001], vec![u32::MAX; 10_000], vec![0, 999, 0, 2]] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (status, taken) = tokio::join!(run(ours, Some(file(&content)), QUIET), guest(theirs, grants));
            assert_eq!(status.unwrap(), ExitStatus::Code(3));
            assert_eq!(taken, content);
        }
    }

    #[tokio::test]
    async fn no_grant_is_kept_for_itself() {
        let (credit, granted) = watch::channel(u64::MAX - 1);
        let flood = frame::encode(&OutputFrame::StdinCredit(u32::MAX), GUEST_FRAME_MAX).unwrap().repeat(100_000);
        let ended = listen(FrameReader::new(&flood[..], GUEST_FRAME_MAX), &credit, QUIET).await;
        assert!(matches!(ended, Err(Failure::Error(error)) if error.kind == ErrorKind::Lost));
        assert_eq!(*granted.borrow(), u64::MAX);
    }
}
