//! The connection's life: connect, greet, send, match answers by number, and all over again when it breaks.

use super::error::HelperError;
use actors_sys::fd_stream::FdStream;
use link::frames::{FrameReader, ReadError, send_hello, write_frame};
use messages::WireError;
use messages::limits::PRIVILEGED_FRAME_MAX;
use messages::privileged::{PrivilegedOperation, PrivilegedReply, PrivilegedRequest, PrivilegedResponse};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// How long the helper may take to greet.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// How long a helper that was there a moment ago may stay away before calls fail: it is being restarted.
const AWAY_TIME: Duration = Duration::from_secs(3);
const BACK_OFF_FIRST: Duration = Duration::from_millis(10);
const BACK_OFF_LAST: Duration = Duration::from_millis(500);
/// How many operations may be on the wire. The helper does one at a time; this only hides the round trip.
const IN_FLIGHT: usize = 32;
/// How often an operation is sent. One that breaks the helper each time must not be sent for ever.
const ATTEMPTS: u32 = 4;

/// What was done, with the descriptors that came along.
#[derive(Debug)]
pub(super) struct Performed {
    pub(super) reply: PrivilegedReply,
    pub(super) descriptors: Vec<OwnedFd>,
}

type Answer = oneshot::Sender<Result<Performed, WireError>>;

/// An operation that waits for its answer.
#[derive(Debug)]
pub(super) struct Call {
    operation: PrivilegedOperation,
    answer: Answer,
    attempts: u32,
}

impl Call {
    pub(super) fn new(operation: PrivilegedOperation, answer: Answer) -> Self {
        Self { operation, answer, attempts: 0 }
    }

    fn finish(self, result: Result<Performed, WireError>) {
        if self.answer.send(result).is_err() {
            debug!("whoever asked the network helper has left");
        }
    }
}

/// What is known of the helper while there is no connection.
#[derive(Clone, Copy, Debug)]
enum Helper {
    /// It has not been seen, or not for long: calls fail at once.
    Absent,
    /// It was there until then.
    Away { since: Instant },
}

/// Runs until the queue's senders are gone.
pub(super) async fn drive(socket: PathBuf, mut queue: mpsc::Receiver<Call>) {
    let mut waiting = VecDeque::new();
    let mut helper = Helper::Absent;
    let mut back_off = BACK_OFF_FIRST;
    let mut numbers = 0;
    loop {
        if waiting.is_empty() {
            let Some(call) = queue.recv().await else { return };
            waiting.push_back(call);
        }
        match connect(&socket).await {
            Ok(connection) => {
                info!(socket = %socket.display(), "connected to the network helper");
                back_off = BACK_OFF_FIRST;
                match converse(connection, &mut queue, &mut waiting, &mut numbers).await {
                    Over::NoMoreCalls => return,
                    Over::Broken => helper = Helper::Away { since: Instant::now() },
                }
            }
            Err(HelperError::Absent { .. }) if is_fresh(helper) => {
                tokio::time::sleep(back_off).await;
                back_off = (back_off * 2).min(BACK_OFF_LAST);
            }
            Err(error) => {
                helper = Helper::Absent;
                let error = WireError::from(&error);
                waiting.drain(..).for_each(|call: Call| call.finish(Err(error.clone())));
            }
        }
    }
}

fn is_fresh(helper: Helper) -> bool {
    matches!(helper, Helper::Away { since } if since.elapsed() < AWAY_TIME)
}

/// Read and written by one task, never both at once.
struct Connection {
    reader: FrameReader<FdStream>,
}

async fn connect(socket: &Path) -> Result<Connection, HelperError> {
    let greet = async {
        let stream = UnixStream::connect(socket).await.map_err(|e| HelperError::absent(socket, e))?;
        let mut reader = FrameReader::new(FdStream::new(stream), PRIVILEGED_FRAME_MAX);
        let greeted = async {
            send_hello(reader.get_mut()).await?;
            reader.hello().await
        };
        match greeted.await {
            Ok(_) => Ok(Connection { reader }),
            // It died while it greeted: as good as absent, and worth another try.
            Err(ReadError::Io(error)) => Err(HelperError::absent(socket, error)),
            Err(ReadError::NoHello) => Err(HelperError::absent(socket, std::io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(HelperError::Greeting(error)),
        }
    };
    tokio::time::timeout(HELLO_TIME, greet).await.unwrap_or_else(|_| Err(HelperError::Mute(socket.to_owned())))
}

/// Why a conversation ended.
enum Over {
    NoMoreCalls,
    Broken,
}

/// Sends and receives until the connection breaks; what is unanswered then is put back in front of `waiting`.
async fn converse(
    mut connection: Connection,
    queue: &mut mpsc::Receiver<Call>,
    waiting: &mut VecDeque<Call>,
    numbers: &mut u64,
) -> Over {
    let mut in_flight: BTreeMap<u64, Call> = BTreeMap::new();
    let over = loop {
        while in_flight.len() < IN_FLIGHT
            && let Some(mut call) = waiting.pop_front()
        {
            // Nobody waits for it any more.
            if call.answer.is_closed() {
                continue;
            }
            if call.attempts == ATTEMPTS {
                call.finish(Err((&HelperError::Broken(ATTEMPTS)).into()));
                continue;
            }
            call.attempts += 1;
            *numbers += 1;
            let request = PrivilegedRequest { number: *numbers, operation: call.operation.clone() };
            in_flight.insert(*numbers, call);
            if let Err(error) = write_frame(connection.reader.get_mut(), &request, PRIVILEGED_FRAME_MAX).await {
                warn!(error = %error, "cannot write to the network helper");
                break;
            }
        }
        tokio::select! {
            biased;
            response = connection.reader.message::<PrivilegedResponse>() => match response {
                Ok(Some(PrivilegedResponse { number, result })) => {
                    // What came along came with this frame: the reader takes no byte of the next one.
                    let descriptors = std::iter::from_fn(|| connection.reader.get_mut().take_fd()).collect();
                    match in_flight.remove(&number) {
                        Some(call) => call.finish(result.map(|reply| Performed { reply, descriptors })),
                        None => warn!(number, "the network helper answered what was not asked"),
                    }
                }
                Ok(None) => break Over::Broken,
                Err(error) => {
                    warn!(error = %error, "the connection to the network helper broke");
                    break Over::Broken;
                }
            },
            call = queue.recv(), if in_flight.len() < IN_FLIGHT => match call {
                Some(call) => waiting.push_back(call),
                None => break Over::NoMoreCalls,
            },
        }
    };
    for (_, call) in in_flight.into_iter().rev() {
        waiting.push_front(call);
    }
    over
}
