//! One request out, one reply in. Owns the connection to `bangerd`; what a reply means is for the commands.

use super::autostart;
use super::failure::{Failure, mismatch};
use super::output::Output;
use super::progress::ProgressView;
use actors::paths::Paths;
use actors_sys::fd_stream::FdStream;
use link::frames::{FrameReader, ReadError};
use messages::error::ErrorKind;
use messages::frame::{self, FrameError, Hello};
use messages::ids::RequestId;
use messages::limits::{CONTROL_FRAME_MAX, HELLO_FRAME_MAX};
use messages::reply::{Reply, ServerFrame};
use messages::request::{Request, RequestBody};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// How long a daemon may take for its hello. One that is only busy answers at once: no actor is involved.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// What becomes of a command when there is no daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    /// One is started.
    Start,
    /// The command fails, or does without.
    Fail,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    pub(super) descriptor: Option<OwnedFd>,
}

/// Talks to the daemon of one instance.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) paths: Paths,
    pub(super) output: Output,
}

impl Client {
    /// A client of the instance that the environment names.
    pub(super) fn from_env(output: Output) -> Result<Self, Failure> {
        let paths = paths()?;
        Ok(Self { paths, output })
    }

    /// Sends a request and shows its progress until the reply is there.
    pub(super) async fn call(&self, absent: Absent, body: RequestBody) -> Result<Answer, Failure> {
        let mut progress = ProgressView::new(self.output);
        let answer = tokio::select! {
            answer = self.exchange(absent, body, &mut progress) => answer,
            // Leaving closes the connection, which is how the daemon learns of it.
            _ = tokio::signal::ctrl_c() => Err(Failure::interrupted("the daemon")
                .hint("what was begun may still be finishing: `banger vm list` shows it")),
        };
        progress.close();
        answer
    }

    /// [`Client::call`], for requests whose reply carries no descriptor.
    pub(super) async fn ask(&self, body: RequestBody) -> Result<Reply, Failure> {
        Ok(self.call(Absent::Start, body).await?.reply)
    }

    /// Sends a request to a daemon that runs, showing no progress.
    pub(super) async fn ask_running(&self, body: RequestBody) -> Result<Reply, Failure> {
        let mut progress = ProgressView::new(Output { quiet: true, json: false });
        Ok(self.exchange(Absent::Fail, body, &mut progress).await?.reply)
    }

    async fn exchange(
        &self,
        absent: Absent,
        body: RequestBody,
        progress: &mut ProgressView,
    ) -> Result<Answer, Failure> {
        let mut reader = self.open(absent).await?;
        let request = Request { id: request_id()?, body };
        let bytes = frame::encode(&request, CONTROL_FRAME_MAX).map_err(|error| match error {
            FrameError::TooLong { .. } => Failure::usage("the request is too long: fewer or shorter arguments"),
            other => Failure::io(ErrorKind::Internal, "failed to encode the request", &other),
        })?;
        // A daemon that refuses us says why and closes, maybe before this is written: its words are read in any case.
        let sent = reader.get_mut().write_all(&bytes).await;
        loop {
            let read = match reader.next().await {
                Ok(payload) => payload.map(ServerFrame::decode).transpose().map_err(ReadError::from),
                Err(error) => Err(error),
            };
            let frame = match (read, &sent) {
                (Ok(Some(frame)), _) => Some(frame),
                (_, Err(_)) => None,
                (read, Ok(())) => read.map_err(|error| lost(&error))?,
            };
            match frame {
                Some(ServerFrame::Progress(step)) => progress.show(&step),
                Some(ServerFrame::Reply { reply, descriptors }) => {
                    return take_descriptor(reader.get_mut(), descriptors)
                        .map(|descriptor| Answer { reply: *reply, descriptor });
                }
                Some(ServerFrame::Error(error)) => return Err(error.into()),
                None => {
                    return Err(Failure::new(ErrorKind::Lost, "bangerd went away before it answered")
                        .hint("`banger vm list` shows what became of it, `banger daemon logs` why"));
                }
            }
        }
    }

    /// Connects and exchanges hellos.
    pub(super) async fn open(&self, absent: Absent) -> Result<FrameReader<FdStream>, Failure> {
        match self.greet(absent).await? {
            Ok(reader) => Ok(reader),
            // A daemon that was ending took the connection along before it said a word, and nothing was asked of it yet.
            Err(ReadError::NoHello | ReadError::Io(_)) => self.greet(absent).await?.map_err(|error| self.refused(&error)),
            Err(error) => Err(self.refused(&error)),
        }
    }

    async fn greet(&self, absent: Absent) -> Result<Result<FrameReader<FdStream>, ReadError>, Failure> {
        let stream = match (connect(&self.paths).await?, absent) {
            (Some(stream), _) => stream,
            (None, Absent::Start) => autostart::start(&self.paths, self.output, None).await?,
            (None, Absent::Fail) => return Err(not_running(&self.paths)),
        };
        let mut reader = FrameReader::new(FdStream::new(stream), CONTROL_FRAME_MAX);
        let greeting = async {
            let hello = frame::encode(&Hello::ours(), HELLO_FRAME_MAX)?;
            // A daemon that refuses may close before it reads: its hello says why, so that is read in any case.
            drop(reader.get_mut().write_all(&hello).await);
            reader.hello().await.map(drop)
        };
        match tokio::time::timeout(HELLO_DEADLINE, greeting).await {
            Ok(greeted) => Ok(greeted.map(|()| reader)),
            Err(_) => Err(Failure::new(
                ErrorKind::Timeout,
                format!("bangerd did not answer within {} s", HELLO_DEADLINE.as_secs()),
            )
            .hint("`banger daemon logs` may say why; `banger daemon stop` ends it, and VMs keep running")),
        }
    }

    fn refused(&self, error: &ReadError) -> Failure {
        let socket = self.paths.socket();
        match error {
            ReadError::Frame(frame_error) => mismatch(frame_error).unwrap_or_else(|| {
                Failure::io(ErrorKind::Protocol, format!("what listens at `{}` is no bangerd", socket.display()), error)
            }),
            ReadError::NoHello | ReadError::Io(_) => {
                Failure::io(ErrorKind::Unavailable, "bangerd closed the connection", error)
                    .hint("`banger daemon logs` may say why")
            }
        }
    }
}

/// The paths of this instance, checked.
pub(super) fn paths() -> Result<Paths, Failure> {
    let paths = Paths::from_env().map_err(|error| Failure::io_only(ErrorKind::Usage, &error))?;
    paths.check_sockets().map_err(|error| Failure::io_only(ErrorKind::Usage, &error))?;
    Ok(paths)
}

/// Connects to the daemon's socket; `None` where nobody listens.
pub(super) async fn connect(paths: &Paths) -> Result<Option<UnixStream>, Failure> {
    let socket = paths.socket();
    match UnixStream::connect(&socket).await {
        Ok(stream) => Ok(Some(stream)),
        // Reset: it stopped listening before it took us.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
            ) =>
        {
            Ok(None)
        }
        Err(error) => {
            let kind =
                if error.kind() == io::ErrorKind::PermissionDenied { ErrorKind::Host } else { ErrorKind::Unavailable };
            Err(Failure::io(kind, format!("failed to connect to bangerd at `{}`", socket.display()), &error))
        }
    }
}

/// There is no daemon, and this command does not start one.
pub(super) fn not_running(paths: &Paths) -> Failure {
    Failure::new(ErrorKind::Unavailable, format!("bangerd is not running (socket `{}`)", paths.socket().display()))
        .hint("`banger daemon start`")
}

/// A reply of a kind that this request does not have.
pub(super) fn unexpected(reply: &Reply) -> Failure {
    let mut text = format!("{reply:?}");
    text.truncate(text.find([' ', '(', '{']).unwrap_or(text.len()));
    Failure::new(ErrorKind::Protocol, format!("bangerd answered something else: `{text}`"))
}

fn lost(error: &ReadError) -> Failure {
    let kind = match error {
        ReadError::Frame(FrameError::Truncated) | ReadError::Io(_) | ReadError::NoHello => ErrorKind::Lost,
        ReadError::Frame(_) => ErrorKind::Protocol,
    };
    Failure::io(kind, "the conversation with bangerd broke off", error)
        .hint("`banger vm list` shows what became of it, `banger daemon logs` why")
}

fn take_descriptor(stream: &mut FdStream, announced: u8) -> Result<Option<OwnedFd>, Failure> {
    if usize::from(announced) != stream.received() || announced > 1 {
        let sentence = format!("bangerd announced {announced} file descriptors and sent {}", stream.received());
        return Err(Failure::new(ErrorKind::Protocol, sentence));
    }
    Ok(stream.take_fd())
}

fn request_id() -> Result<RequestId, Failure> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| Failure::new(ErrorKind::Host, format!("failed to get random bytes: {error}")))?;
    Ok(RequestId(id))
}
