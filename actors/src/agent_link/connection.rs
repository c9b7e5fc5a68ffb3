//! One control stream: who it is, then frames both ways until it ends.

use super::budget::{Budget, Rate};
use super::calls::Answers;
use super::server::{ConnectionId, LinkEvent, LinkLimits};
use super::untrusted::{self, ListTooLong};
use link::frames::{FrameReader, ReadError, send_hello};
use messages::frame::{self, FrameError};
use messages::guest::{AgentFrame, RunningIdentity};
use messages::limits::GUEST_FRAME_MAX;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// A guest reports seldom: at boot, and twice for each operation. Hundreds of operations at once fit the burst.
const FRAMES: Rate = Rate { burst: 4096, per_second: 1000 };
/// In KiB, rounded up for each frame.
const KIBIBYTES: Rate = Rate { burst: 8192, per_second: 2048 };

/// Says why a stream did not become the control stream, or ceased to be.
#[derive(Debug, thiserror::Error)]
pub enum IdentifyError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the agent closed its control stream")]
    Closed,
    #[error("the agent did not identify itself within {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the agent's first frame was not its identity")]
    NotIdentity,
    /// Each costs the host an answer with a whole boot spec.
    #[error("the agent identified itself twice on one stream")]
    IdentityAgain,
    /// Some other program of the guest's, if the guest is not hostile as a whole.
    #[error("something in the guest claimed to be the agent and did not know this boot's nonce")]
    WrongNonce,
    #[error(transparent)]
    List(#[from] ListTooLong),
    #[error("the guest did not take a frame within {} ms", .0.as_millis())]
    Stalled(Duration),
    #[error("a newer control stream took its place")]
    Replaced,
    #[error("it was closed on purpose")]
    Dropped,
}

impl From<FrameError> for IdentifyError {
    fn from(error: FrameError) -> Self {
        Self::Read(error.into())
    }
}

/// What the agent said of itself.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) running: Option<RunningIdentity>,
    pub(super) uptime_us: u64,
    pub(super) restarts: u32,
}

/// A stream that has said who it is.
#[derive(Debug)]
pub(super) struct Identified {
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

/// Exchanges hellos and reads the identity, within the deadline.
pub(super) async fn identify(stream: UnixStream, limit: Duration) -> Result<(Identity, Identified), IdentifyError> {
    timeout(limit, exchange(stream)).await.map_err(|_| IdentifyError::Silent(limit))?
}

async fn exchange(stream: UnixStream) -> Result<(Identity, Identified), IdentifyError> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = FrameReader::new(reader, GUEST_FRAME_MAX);
    send_hello(&mut writer).await?;
    reader.hello().await?;
    let frame = reader.message::<AgentFrame>().await?.ok_or(IdentifyError::Closed)?;
    let AgentFrame::Identify { running, uptime_us, restarts } = untrusted::check(frame)? else {
        return Err(IdentifyError::NotIdentity);
    };
    Ok((Identity { running, uptime_us, restarts }, Identified { reader, writer }))
}

/// Carries frames until the stream ends, and says why it did.
pub(super) async fn carry(
    identified: Identified,
    id: ConnectionId,
    outgoing: mpsc::Receiver<Vec<u8>>,
    answers: Arc<Answers>,
    events: mpsc::Sender<LinkEvent>,
    limits: LinkLimits,
) -> IdentifyError {
    let Identified { reader, writer } = identified;
    let reading = read(reader, id, &answers, &events);
    tokio::pin!(reading);
    let ended = tokio::select! {
        ended = &mut reading => ended,
        ended = write(writer, outgoing, limits.write) => match ended {
            // Nobody is there to write to; what they said before they left is still to be read, and ends by itself.
            Err(why @ IdentifyError::Read(ReadError::Io(_))) => {
                timeout(limits.write, reading).await.unwrap_or(Err(why))
            }
            ended => ended,
        },
    };
    match ended {
        Ok(never) => match never {},
        Err(why) => why,
    }
}

async fn read(
    mut reader: FrameReader<OwnedReadHalf>,
    id: ConnectionId,
    answers: &Answers,
    events: &mpsc::Sender<LinkEvent>,
) -> Result<std::convert::Infallible, IdentifyError> {
    let (mut frames, mut kibibytes) = (Budget::new(FRAMES), Budget::new(KIBIBYTES));
    loop {
        let payload = reader.next().await?.ok_or(IdentifyError::Closed)?;
        let length = payload.len();
        let frame = untrusted::check(frame::decode::<AgentFrame>(payload)?)?;
        match frame {
            AgentFrame::Answer { call, result } => answers.answer(call, result),
            AgentFrame::Identify { .. } => return Err(IdentifyError::IdentityAgain),
            // Waits while the VM actor is behind; the guest then waits too.
            frame => {
                if events.send(LinkEvent::Frame { connection: id, frame }).await.is_err() {
                    return Err(IdentifyError::Dropped);
                }
            }
        }
        frames.spend(1).await;
        kibibytes.spend(u32::try_from(length / 1024 + 1).unwrap_or(u32::MAX)).await;
    }
}

async fn write(
    mut writer: OwnedWriteHalf,
    mut outgoing: mpsc::Receiver<Vec<u8>>,
    limit: Duration,
) -> Result<std::convert::Infallible, IdentifyError> {
    while let Some(frame) = outgoing.recv().await {
        let written = timeout(limit, writer.write_all(&frame)).await.map_err(|_| IdentifyError::Stalled(limit))?;
        written.map_err(ReadError::Io)?;
    }
    Err(IdentifyError::Dropped)
}
