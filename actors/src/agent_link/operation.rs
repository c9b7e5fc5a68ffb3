//! Streams into a guest: Firecracker's `CONNECT <port>\n` on the VMM's socket, answered by `OK <n>\n`.
//!
//! The socket is handed to a client afterwards, so that not a byte behind that answer may be read here.

use messages::error::{ErrorKind, WireError};
use messages::frame::{self, Hello};
use messages::guest::{ExecSpec, OPERATION_PORT, OperationFrame};
use messages::ids::OperationId;
use messages::limits::{GUEST_FRAME_MAX, HELLO_FRAME_MAX};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// From the connect to the opened operation. The guest's kernel answers, and then its agent: milliseconds, but a second or
/// more under emulation on a loaded host.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest answer: `OK ` and a 32-bit number.
const ANSWER_MAX: usize = "OK 4294967295".len();

/// Says why there is no stream into the guest.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("failed to connect to the VM's socket `{}`", path.display())]
    Connect { path: PathBuf, source: io::Error },
    /// The VMM closed the stream: nobody listens in the guest.
    #[error("nothing in the guest listens on port {port}")]
    Refused { port: u32 },
    #[error("the VMM answered a dial of port {port} with nonsense")]
    Nonsense { port: u32 },
    #[error("the guest did not take a stream to port {port} within {} ms", after.as_millis())]
    Timeout { port: u32, after: Duration },
    #[error("the stream to port {port} broke")]
    Broken { port: u32, source: io::Error },
    #[error("the operation cannot be sent")]
    Frame(#[from] frame::FrameError),
}

impl DialError {
    /// The error as it crosses a socket.
    #[must_use]
    pub fn to_wire(&self) -> WireError {
        let kind = match self {
            Self::Connect { .. } | Self::Refused { .. } => ErrorKind::Unavailable,
            Self::Nonsense { .. } => ErrorKind::Protocol,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Broken { .. } => ErrorKind::Guest,
            Self::Frame(_) => ErrorKind::Usage,
        };
        WireError::from_error(kind, self)
    }
}

/// Says whether a command is short enough to be sent to a guest: a VM that is made for one has to know before.
///
/// # Errors
/// A sentence for the user.
pub fn check_size(exec: &ExecSpec) -> Result<(), WireError> {
    let open = OperationFrame::Open { operation: OperationId([0; 8]), exec: Box::new(exec.clone()) };
    match frame::encode(&open, GUEST_FRAME_MAX) {
        Ok(_) => Ok(()),
        Err(_) => Err(WireError::new(
            ErrorKind::Usage,
            format!("the command with its arguments and environment is longer than {} KiB", GUEST_FRAME_MAX >> 10),
        )
        .hint("give what is long by stdin")),
    }
}

/// Opens a stream to a port of the guest, through the VMM's socket `vsock` (`VmFiles::vsock`).
///
/// # Errors
/// See [`DialError`].
pub async fn dial(vsock: &Path, port: u32, limit: Duration) -> Result<UnixStream, DialError> {
    timeout(limit, connect(vsock, port)).await.map_err(|_| DialError::Timeout { port, after: limit })?
}

/// Opens an operation: what comes out of the stream is the agent's first answer, what goes in is the client's.
///
/// # Errors
/// See [`DialError`]. After [`DialError::Timeout`] or [`DialError::Broken`] the command may be running.
pub async fn open_operation(vsock: &Path, operation: OperationId, exec: &ExecSpec) -> Result<UnixStream, DialError> {
    open_operation_within(vsock, operation, exec, OPEN_TIMEOUT).await
}

/// [`open_operation`] with another deadline.
///
/// # Errors
/// As [`open_operation`].
pub(super) async fn open_operation_within(
    vsock: &Path,
    operation: OperationId,
    exec: &ExecSpec,
    limit: Duration,
) -> Result<UnixStream, DialError> {
    let port = OPERATION_PORT;
    let mut opening = frame::encode(&Hello::ours(), HELLO_FRAME_MAX)?;
    let open = OperationFrame::Open { operation, exec: Box::new(exec.clone()) };
    opening.extend(frame::encode(&open, GUEST_FRAME_MAX)?);
    let opened = async {
        let mut stream = connect(vsock, port).await?;
        stream.write_all(&opening).await.map_err(|source| DialError::Broken { port, source })?;
        Ok(stream)
    };
    timeout(limit, opened).await.map_err(|_| DialError::Timeout { port, after: limit })?
}

async fn connect(vsock: &Path, port: u32) -> Result<UnixStream, DialError> {
    let mut stream = loop {
        match UnixStream::connect(vsock).await {
            Ok(stream) => break stream,
            // The VMM's backlog is full: it is busy with other dials.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(Duration::from_millis(1)).await,
            Err(source) => return Err(DialError::Connect { path: vsock.to_owned(), source }),
        }
    };
    let broken = |source| DialError::Broken { port, source };
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.map_err(broken)?;
    let mut answer = Vec::with_capacity(ANSWER_MAX);
    loop {
        // One byte at a time: the next one after the newline belongs to whoever gets the socket.
        match stream.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) if answer.len() < ANSWER_MAX => answer.push(byte),
            Ok(_) => return Err(DialError::Nonsense { port }),
            Err(error) if is_hang_up(&error) => return Err(DialError::Refused { port }),
            Err(error) => return Err(broken(error)),
        }
    }
    let number = answer.strip_prefix(b"OK ").and_then(|rest| std::str::from_utf8(rest).ok());
    match number.map(str::parse::<u32>) {
        Some(Ok(_)) => Ok(stream),
        _ => Err(DialError::Nonsense { port }),
    }
}

/// A VMM closes a refused stream, with or without our command still unread in it.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
