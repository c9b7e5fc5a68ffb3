//! Starts the helper in the background: this program again, in its own session, and waits until that very process serves.

use super::run::Args;
use super::socket::{self, SocketError};
use messages::frame::{self, FrameError, HEADER_LEN, Hello};
use messages::limits::{HELLO_FRAME_MAX, PRIVILEGED_FRAME_MAX};
use messages::privileged::{PrivilegedOperation, PrivilegedReply, PrivilegedRequest, PrivilegedResponse};
use serde::de::DeserializeOwned;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the helper may take until its socket answers.
const START_TIME: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// Why the helper does not run in the background.
#[derive(Debug, thiserror::Error)]
pub enum BackgroundError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot {0}")]
    Io(&'static str, #[source] io::Error),
    #[error("the network helper ended at once: {0}")]
    Ended(String),
    #[error("the network helper did not answer within {} s", START_TIME.as_secs())]
    Silent,
}

/// Starts it and returns once it serves.
///
/// # Errors
/// [`BackgroundError`]; nothing is left running then.
pub(super) fn start(args: &Args, owner_uid: u32) -> Result<(), BackgroundError> {
    socket::prepare_directory(&args.socket, owner_uid)?;
    // Before the log is begun anew: it may be the log of a helper that serves.
    socket::refuse_taken(&args.socket)?;
    let log_path = log_path(&args.socket);
    let log = new_log(&log_path).map_err(|e| BackgroundError::Io("make the log file", e))?;
    let program = std::env::current_exe().map_err(|e| BackgroundError::Io("find this program", e))?;
    let mut child = Command::new(program)
        .args(["--owner", &owner_uid.to_string(), "--foreground", "--detached", "--socket"])
        .arg(&args.socket)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|e| BackgroundError::Io("start the network helper", e))?;
    let result = wait_until_serving(&mut child, &args.socket, &log_path);
    if result.is_err() {
        // Already gone is fine; so is an error nobody could act on here.
        child.kill().and_then(|()| child.wait()).ok();
    }
    result
}

fn log_path(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".log");
    PathBuf::from(name)
}

/// A new file each time: an existing one could be a link to something that root should not append to.
fn new_log(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    OpenOptions::new().append(true).create_new(true).mode(0o644).open(path)
}

fn wait_until_serving(child: &mut Child, socket: &Path, log: &Path) -> Result<(), BackgroundError> {
    let deadline = Instant::now() + START_TIME;
    while Instant::now() < deadline {
        if child.try_wait().map_err(|e| BackgroundError::Io("watch the network helper", e))?.is_some() {
            return Err(BackgroundError::Ended(fs::read_to_string(log).unwrap_or_default().trim().to_owned()));
        }
        // Another helper may serve this path: only the child's own pid counts.
        if serving_pid(socket).is_ok_and(|pid| pid == child.id()) {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    Err(BackgroundError::Silent)
}

/// Asks whoever serves the socket for its pid.
fn serving_pid(socket: &Path) -> io::Result<u32> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(START_TIME))?;
    stream.set_write_timeout(Some(START_TIME))?;
    let request = PrivilegedRequest { number: 0, operation: PrivilegedOperation::Status };
    let mut bytes = frame::encode(&Hello::ours(), HELLO_FRAME_MAX).map_err(io::Error::other)?;
    bytes.extend(frame::encode(&request, PRIVILEGED_FRAME_MAX).map_err(io::Error::other)?);
    stream.write_all(&bytes)?;
    let hello: Hello = read(&mut stream)?;
    hello.check().map_err(io::Error::other)?;
    match read::<PrivilegedResponse>(&mut stream)?.result {
        Ok(PrivilegedReply::Status { pid, .. }) => Ok(pid),
        other => Err(io::Error::other(format!("an unexpected answer: {other:?}"))),
    }
}

fn read<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let refused = |e: FrameError| io::Error::other(e);
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header)?;
    let mut payload = vec![0; frame::payload_length(header, PRIVILEGED_FRAME_MAX).map_err(refused)?];
    stream.read_exact(&mut payload)?;
    frame::decode(&payload).map_err(refused)
}
