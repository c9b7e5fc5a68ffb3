//! What a command writes, on its way to the client, and the end of the command. The only writer of an operation's stream, so
//! that nothing is held back but by the client itself: while it does not read, the command's pipes fill and the command waits.
//!
//! # When output ends
//! A command's output is complete when all copies of its pipes are closed. A background process that kept one would delay
//! that for ever (as with ssh), so after the command's own exit everything that it had written is delivered, then whatever
//! comes without a pause of [`IDLE_GRACE`], for at most [`TOTAL_GRACE`]. What comes later is read and dropped, so that a
//! background process is not killed by a closed pipe.

use super::fd::StreamFd;
use super::input::Feedback;
use link::frames::{ReadError, write_frame};
use messages::frame::{self, HEADER_LEN};
use messages::guest::{ExitStatus, OutputFrame};
use messages::limits::{GUEST_FRAME_MAX, STREAM_CHUNK_MAX};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;
use tokio::io::{AsyncRead as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a pause in the output after the command's exit may be.
pub const IDLE_GRACE: Duration = Duration::from_millis(100);
/// How long after the command's exit the output of others is waited for.
pub const TOTAL_GRACE: Duration = Duration::from_secs(1);
/// Room before the payload for the frame's header: its length, the variant, and the payload's length as a varint.
const HEADROOM: usize = 16;
/// The first buffer of each stream; most commands never need the large one.
const SMALL_BUFFER: usize = 8 << 10;

/// One of a command's output streams.
#[derive(Debug)]
struct Source {
    fd: StreamFd,
    /// What comes before the payload's length in a frame.
    variant: u8,
    /// [`HEADROOM`], then payload.
    buffer: Vec<u8>,
    /// Bytes that were in the pipe when the command exited and have not been read yet.
    owed: usize,
    /// A terminal says of a part of what it holds only that there is some (n_tty shows its own 4 KiB, not the queue before them).
    terminal: bool,
}

impl Source {
    fn new(fd: StreamFd, empty_frame: &OutputFrame<'_>, terminal: bool) -> Self {
        let encoded = frame::encode(empty_frame, GUEST_FRAME_MAX).expect("an empty frame fits");
        Self { fd, variant: encoded[HEADER_LEN], buffer: vec![0; HEADROOM + SMALL_BUFFER], owed: 0, terminal }
    }

    fn waiting(&self) -> usize {
        crate::sys::bytes_waiting(self.fd.as_fd()).unwrap_or(0)
    }

    /// Nothing is left of what was there at the command's end.
    fn is_settled(&self) -> bool {
        self.owed == 0 && !(self.terminal && self.waiting() > 0)
    }

    /// Reads once. Cancel-safe.
    async fn read(&mut self) -> io::Result<usize> {
        let Self { fd, buffer, .. } = self;
        let length = std::future::poll_fn(|cx| {
            let mut target = ReadBuf::new(&mut buffer[HEADROOM..]);
            std::pin::Pin::new(&mut *fd).poll_read(cx, &mut target).map_ok(|()| target.filled().len())
        })
        .await?;
        self.owed = self.owed.saturating_sub(length);
        Ok(length)
    }

    /// The whole frame around the first `length` bytes of payload, made in place: the payload is not moved.
    fn frame(&mut self, length: usize) -> &[u8] {
        let mut header = [0; HEADROOM];
        header[HEADER_LEN] = self.variant;
        let mut end = HEADER_LEN + 1;
        let mut rest = length;
        loop {
            let byte = u8::try_from(rest & 0x7f).expect("seven bits");
            rest >>= 7;
            header[end] = if rest == 0 { byte } else { byte | 0x80 };
            end += 1;
            if rest == 0 {
                break;
            }
        }
        let payload = u32::try_from(end - HEADER_LEN + length).expect("a chunk is far below 4 GiB");
        header[..HEADER_LEN].copy_from_slice(&payload.to_le_bytes());
        let start = HEADROOM - end;
        self.buffer[start..HEADROOM].copy_from_slice(&header[..end]);
        &self.buffer[start..HEADROOM + length]
    }

    /// A read that filled the buffer says that more is coming.
    fn grow(&mut self, length: usize) {
        if length == self.buffer.len() - HEADROOM && length < STREAM_CHUNK_MAX {
            self.buffer.resize(HEADROOM + STREAM_CHUNK_MAX, 0);
        }
    }
}

/// Both streams of a command, and its end.
#[derive(Debug)]
pub struct Output {
    stdout: Option<Source>,
    stderr: Option<Source>,
    /// From the task that waits for the command: it is reaped at its end, also while a client that does not read holds us up.
    ended: JoinHandle<io::Result<std::process::ExitStatus>>,
    exit: Option<Exit>,
}

#[derive(Clone, Copy, Debug)]
struct Exit {
    status: ExitStatus,
    /// When it was, later by all the time that was spent waiting for the client since.
    at: Instant,
    last_output: Instant,
}

enum Event {
    Stdout(io::Result<usize>),
    Stderr(io::Result<usize>),
    Exited(io::Result<std::process::ExitStatus>),
    Feedback(u32, bool),
    Quiet,
}

async fn read(source: &mut Option<Source>) -> io::Result<usize> {
    match source {
        Some(source) => source.read().await,
        None => std::future::pending().await,
    }
}

impl Output {
    /// The output of `child`. Without a stderr, stdout is a terminal. `on_exit` is called at the very moment that its process id
    /// becomes invalid.
    #[must_use]
    pub fn new(
        mut child: Child,
        stdout: StreamFd,
        stderr: Option<StreamFd>,
        on_exit: impl FnOnce() + Send + 'static,
    ) -> Self {
        let ended = tokio::spawn(async move {
            let status = child.wait().await;
            on_exit();
            status
        });
        Self {
            stdout: Some(Source::new(stdout, &OutputFrame::Stdout(&[]), stderr.is_none())),
            stderr: stderr.map(|fd| Source::new(fd, &OutputFrame::Stderr(&[]), false)),
            ended,
            exit: None,
        }
    }

    /// Delivers everything up to the command's end.
    ///
    /// # Errors
    /// The client is gone. The command and its streams are untouched by that: [`Output::discard`] goes on.
    pub async fn deliver<W: AsyncWrite + Unpin>(
        &mut self,
        writer: &mut W,
        feedback: &Feedback,
    ) -> Result<ExitStatus, ReadError> {
        loop {
            if let Some(status) = self.finished() {
                return Ok(status);
            }
            let event = self.event(Some(feedback)).await;
            let since = Instant::now();
            match event {
                Event::Stdout(read) => {
                    forward(&mut self.stdout, &read, writer).await?;
                    self.not_counting(since);
                }
                Event::Stderr(read) => {
                    forward(&mut self.stderr, &read, writer).await?;
                    self.not_counting(since);
                }
                Event::Exited(status) => self.exited(status),
                Event::Feedback(credit, closed) => {
                    if credit > 0 {
                        write_frame(writer, &OutputFrame::StdinCredit(credit), GUEST_FRAME_MAX).await?;
                    }
                    if closed {
                        write_frame(writer, &OutputFrame::StdinClosed, GUEST_FRAME_MAX).await?;
                    }
                }
                Event::Quiet => {}
            }
        }
    }

    /// Reads and drops the output until the command's end.
    pub async fn discard(&mut self) -> ExitStatus {
        loop {
            if let Some(exit) = &self.exit {
                return exit.status;
            }
            match self.event(None).await {
                Event::Stdout(read) => skip(&mut self.stdout, &read),
                Event::Stderr(read) => skip(&mut self.stderr, &read),
                Event::Exited(status) => self.exited(status),
                Event::Feedback(..) | Event::Quiet => {}
            }
        }
    }

    /// Reads and drops what background processes still write, until they are all gone.
    pub async fn drain_background(mut self) {
        while self.stdout.is_some() || self.stderr.is_some() {
            tokio::select! {
                read = read(&mut self.stdout) => skip(&mut self.stdout, &read),
                read = read(&mut self.stderr) => skip(&mut self.stderr, &read),
            }
        }
    }

    async fn event(&mut self, feedback: Option<&Feedback>) -> Event {
        let quiet_at = self.exit.map(|exit| exit.last_output + IDLE_GRACE);
        tokio::select! {
            (credit, closed) = async { match feedback { Some(feedback) => feedback.next().await, None => std::future::pending().await } } =>
                Event::Feedback(credit, closed),
            read = read(&mut self.stdout) => Event::Stdout(read),
            read = read(&mut self.stderr) => Event::Stderr(read),
            status = &mut self.ended, if self.exit.is_none() => Event::Exited(status.unwrap_or_else(|error| Err(error.into()))),
            () = async { match quiet_at { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } =>
                Event::Quiet,
        }
        .noted(self)
    }

    fn exited(&mut self, status: io::Result<std::process::ExitStatus>) {
        let status = match status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => ExitStatus::Code(code),
                (None, Some(signal)) => ExitStatus::Signal(signal),
                (None, None) => ExitStatus::Unknown,
            },
            Err(_) => ExitStatus::Unknown,
        };
        for source in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            source.owed = source.waiting();
        }
        let now = Instant::now();
        self.exit = Some(Exit { status, at: now, last_output: now });
    }

    /// A client that takes its time is no pause in the output.
    fn not_counting(&mut self, since: Instant) {
        if let Some(exit) = &mut self.exit {
            let now = Instant::now();
            exit.at += now - since;
            exit.last_output = now;
        }
    }

    /// The status, once the command has exited and its output is complete or was waited for long enough.
    fn finished(&self) -> Option<ExitStatus> {
        let exit = self.exit?;
        let open = || [&self.stdout, &self.stderr].into_iter().flatten();
        let now = Instant::now();
        let quiet = now >= exit.last_output + IDLE_GRACE && open().all(Source::is_settled);
        let given_up = quiet || now >= exit.at + TOTAL_GRACE && open().all(|source| source.owed == 0);
        (open().next().is_none() || given_up).then_some(exit.status)
    }
}

impl Event {
    /// Output after the exit postpones the end.
    fn noted(self, output: &mut Output) -> Self {
        if let (Self::Stdout(Ok(1..)) | Self::Stderr(Ok(1..)), Some(exit)) = (&self, &mut output.exit) {
            exit.last_output = Instant::now();
        }
        self
    }
}

fn skip(source: &mut Option<Source>, read: &io::Result<usize>) {
    if !matches!(read, Ok(1..)) {
        *source = None;
    }
}

async fn forward<W: AsyncWrite + Unpin>(
    source: &mut Option<Source>,
    read: &io::Result<usize>,
    writer: &mut W,
) -> Result<(), ReadError> {
    let (Some(open), Ok(length @ 1..)) = (source.as_mut(), read) else {
        *source = None;
        return Ok(());
    };
    writer.write_all(open.frame(*length)).await.map_err(ReadError::Io)?;
    writer.flush().await.map_err(ReadError::Io)?;
    open.grow(*length);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a piece, then nothing for longer than any pause in the output may be.
    async fn slow_client(mut from: tokio::io::DuplexStream) -> Vec<u8> {
        use tokio::io::AsyncReadExt as _;
        let (mut all, mut piece) = (Vec::new(), vec![0; 4096]);
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            all.extend_from_slice(&piece[..length]);
            tokio::time::sleep(IDLE_GRACE * 3 / 2).await;
        }
        all
    }

    #[tokio::test]
    async fn a_slow_client_gets_all_that_a_terminal_holds() {
        use crate::exec::plan::Plan;
        use crate::exec::spawn::{Streams, spawn};
        const LENGTH: usize = 40_000;
        let plan = Plan {
            program: "/bin/sh".into(),
            argv0: "sh".into(),
            arguments: vec!["-c".into(), format!("head -c {LENGTH} /dev/zero | tr '\\0' x").into()],
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
            directory: "/".into(),
            identity: None,
        };
        let size = messages::guest::TerminalSize { rows: 24, columns: 80 };
        let spawned = spawn(&plan, Streams::Terminal(size)).unwrap();
        let mut output = Output::new(spawned.child, spawned.stdout, spawned.stderr, || {});
        let (mut near, far) = tokio::io::duplex(4096);
        let client = tokio::spawn(slow_client(far));
        let status = output.deliver(&mut near, &Feedback::default()).await.unwrap();
        assert_eq!(status, ExitStatus::Code(0));
        drop(near);
        let got = client.await.unwrap().iter().filter(|byte| **byte == b'x').count();
        assert!(got >= LENGTH, "{got} of {LENGTH} bytes came");
    }

    #[tokio::test]
    async fn a_command_is_reaped_while_its_client_does_not_read() {
        use crate::exec::plan::Plan;
        use crate::exec::spawn::{Streams, spawn};
        let plan = Plan {
            program: "/bin/sh".into(),
            argv0: "sh".into(),
            arguments: vec!["-c".into(), "head -c 8192 /dev/zero".into()],
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
            directory: "/".into(),
            identity: None,
        };
        let spawned = spawn(&plan, Streams::Pipes { stdin: false }).unwrap();
        let (reaped, told) = tokio::sync::oneshot::channel();
        let mut output = Output::new(spawned.child, spawned.stdout, spawned.stderr, move || reaped.send(()).unwrap());
        // Takes a little, and never reads it.
        let (mut near, _far) = tokio::io::duplex(16);
        let feedback = Feedback::default();
        tokio::select! {
            told = told => told.unwrap(),
            _ = output.deliver(&mut near, &feedback) => panic!("nobody took the output"),
        }
    }

    #[tokio::test]
    async fn frames_made_in_place_are_what_the_encoder_makes() {
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        let mut source = Source::new(StreamFd::new(reader).unwrap(), &OutputFrame::Stderr(&[]), false);
        source.buffer = vec![0; HEADROOM + STREAM_CHUNK_MAX];
        for (index, byte) in source.buffer[HEADROOM..].iter_mut().enumerate() {
            *byte = u8::try_from(index % 251).unwrap();
        }
        for length in [1, 127, 128, 16_383, 16_384, STREAM_CHUNK_MAX] {
            let payload = source.buffer[HEADROOM..HEADROOM + length].to_vec();
            let expected = frame::encode(&OutputFrame::Stderr(&payload), GUEST_FRAME_MAX).unwrap();
            assert_eq!(source.frame(length), expected, "{length}");
        }
    }
}
