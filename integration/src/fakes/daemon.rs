//! A `bangerd` that answers what it is told to. Speaks the real frames over a real socket.

use messages::error::WireError;
use messages::frame::{self, HEADER_LEN, Hello};
use messages::limits::CONTROL_FRAME_MAX;
use messages::reply::{Progress, Reply, ServerFrame};
use messages::request::Request;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Serialize;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What to do with a request, in order.
#[derive(Debug)]
pub enum Step {
    Progress(Progress),
    Reply(Reply),
    /// A reply with a descriptor.
    Hand(Reply, OwnedFd),
    Error(WireError),
    /// These bytes, whatever they are.
    Bytes(Vec<u8>),
    /// Wait until the client has gone.
    AwaitHangup,
}

type Answerer = dyn Fn(&Request) -> Vec<Step> + Send + Sync;

/// A listening fake; stops when dropped.
#[derive(Debug)]
pub struct FakeDaemon {
    path: PathBuf,
    stopping: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<Request>>>,
    hangups: Arc<Mutex<usize>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeDaemon {
    /// Listens at `path` and answers each request with the steps that `answer` gives.
    ///
    /// # Panics
    /// Where it cannot listen.
    pub fn start(path: &Path, answer: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::with_hello(path, Hello::ours(), answer)
    }

    /// The same, of another version.
    ///
    /// # Panics
    /// Where it cannot listen.
    pub fn with_hello(
        path: &Path,
        hello: Hello,
        answer: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let stopping = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let hangups = Arc::new(Mutex::new(0));
        let answer: Arc<Answerer> = Arc::new(answer);
        let thread = {
            let (stopping, requests, hangups) = (Arc::clone(&stopping), Arc::clone(&requests), Arc::clone(&hangups));
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    let connection = Connection {
                        stream: stream.unwrap(),
                        hello: hello.clone(),
                        answer: Arc::clone(&answer),
                        requests: Arc::clone(&requests),
                        hangups: Arc::clone(&hangups),
                    };
                    std::thread::spawn(move || {
                        // A client that leaves in the middle is part of many tests.
                        connection.serve().ok();
                    });
                }
            })
        };
        Self { path: path.to_path_buf(), stopping, requests, hangups, thread: Some(thread) }
    }

    /// What was asked so far.
    ///
    /// # Panics
    /// Where a connection's thread has.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// How many clients left while a [`Step::AwaitHangup`] waited for it.
    ///
    /// # Panics
    /// Where a connection's thread has.
    #[must_use]
    pub fn hangups(&self) -> usize {
        *self.hangups.lock().unwrap()
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the accept; the file goes so that nobody connects to a dead socket.
        UnixStream::connect(&self.path).ok();
        std::fs::remove_file(&self.path).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Connection {
    stream: UnixStream,
    hello: Hello,
    answer: Arc<Answerer>,
    requests: Arc<Mutex<Vec<Request>>>,
    hangups: Arc<Mutex<usize>>,
}

impl Connection {
    fn serve(mut self) -> io::Result<()> {
        self.send(&self.hello.clone(), None)?;
        let hello = read_payload(&mut self.stream)?;
        Hello::decode(&hello).map_err(io::Error::other)?;
        let request: Request = frame::decode(&read_payload(&mut self.stream)?).map_err(io::Error::other)?;
        self.requests.lock().unwrap().push(request.clone());
        for step in (self.answer)(&request) {
            match step {
                Step::Progress(progress) => self.send(&ServerFrame::Progress(progress), None)?,
                Step::Error(error) => self.send(&ServerFrame::Error(error), None)?,
                Step::Reply(reply) => {
                    self.send(&ServerFrame::Reply { reply: Box::new(reply), descriptors: 0 }, None)?
                }
                Step::Hand(reply, fd) => {
                    self.send(&ServerFrame::Reply { reply: Box::new(reply), descriptors: 1 }, Some(fd))?;
                }
                Step::Bytes(bytes) => self.stream.write_all(&bytes)?,
                Step::AwaitHangup => {
                    if self.stream.read(&mut [0])? == 0 {
                        *self.hangups.lock().unwrap() += 1;
                    }
                }
            }
        }
        Ok(())
    }

    fn send<T: Serialize>(&mut self, message: &T, fd: Option<OwnedFd>) -> io::Result<()> {
        let bytes = frame::encode(message, CONTROL_FRAME_MAX).map_err(io::Error::other)?;
        let raw: Vec<i32> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<()>(self.stream.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None)?;
        self.stream.write_all(&bytes[sent..])
    }
}

/// The next frame's payload.
pub(super) fn read_payload(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header)?;
    let mut payload = vec![0; frame::payload_length(header, CONTROL_FRAME_MAX).map_err(io::Error::other)?];
    stream.read_exact(&mut payload)?;
    Ok(payload)
}
