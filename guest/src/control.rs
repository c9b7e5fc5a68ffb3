//! The control stream: dialled by the agent, again and again, for as long as the guest lives. Carries what the agent knows up
//! and the daemon's wishes down; decides nothing.

use crate::agent::Agent;
use crate::transport::{DialError, Dialer, Stream};
use link::frames::{FrameReader, ReadError, send_hello, write_frame};
use messages::guest::{AgentFrame, CONTROL_PORT, DaemonFrame};
use messages::limits::GUEST_FRAME_MAX;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

/// The pauses between two attempts: short at first, as the daemon is usually there within milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// A stream that is neither accepted nor refused, or a hello that does not come, is given up after this.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// Says why a control stream ended.
#[derive(Debug, thiserror::Error)]
enum ControlEnd {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the host did not answer in time")]
    Silent,
    #[error(transparent)]
    Stream(#[from] ReadError),
    #[error("the daemon closed the control stream")]
    Closed,
}

/// Keeps a control stream up for ever.
pub async fn run(agent: Arc<Agent>, dialer: Dialer) {
    let mut pause = FIRST_PAUSE;
    loop {
        match connect(&dialer).await {
            Ok((stream, frames)) => {
                pause = FIRST_PAUSE;
                let end = converse(&agent, stream, frames).await;
                agent.outbox.close();
                tracing::debug!(%end, "the control stream ended");
            }
            Err(end) => tracing::debug!(%end, "no control stream"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

type Reader = FrameReader<tokio::io::ReadHalf<Stream>>;
type Writer = tokio::io::WriteHalf<Stream>;

async fn connect(dialer: &Dialer) -> Result<(Writer, Reader), ControlEnd> {
    let greeting = async {
        let (read, mut write) = tokio::io::split(dialer.dial(CONTROL_PORT).await?);
        send_hello(&mut write).await?;
        let mut frames = FrameReader::new(read, GUEST_FRAME_MAX);
        frames.hello().await?;
        Ok((write, frames))
    };
    tokio::time::timeout(HELLO_DEADLINE, greeting).await.map_err(|_| ControlEnd::Silent)?
}

async fn converse(agent: &Arc<Agent>, mut write: Writer, frames: Reader) -> ControlEnd {
    agent.outbox.open();
    let up = async {
        write_frame(&mut write, &agent.identify(), GUEST_FRAME_MAX).await?;
        speak(agent, write).await
    };
    tokio::select! {
        end = up => end,
        end = listen(agent, frames) => end,
    }
    .unwrap_or_else(|end| end)
}

async fn speak<W: AsyncWrite + Unpin>(agent: &Agent, mut write: W) -> Result<ControlEnd, ControlEnd> {
    while let Some(frame) = agent.outbox.next().await {
        write_frame(&mut write, &frame, GUEST_FRAME_MAX).await?;
        if matches!(frame, AgentFrame::Stopping { .. }) {
            agent.last_words_sent();
        }
    }
    if write.shutdown().await.is_err() {
        tracing::debug!("the daemon was gone before the control stream was closed");
    }
    Ok(ControlEnd::Closed)
}

async fn listen<R: AsyncRead + Unpin>(
    agent: &Arc<Agent>,
    mut frames: FrameReader<R>,
) -> Result<ControlEnd, ControlEnd> {
    while let Some(frame) = frames.message::<DaemonFrame>().await? {
        match frame {
            DaemonFrame::Spec(spec) => agent.take_spec(*spec),
            DaemonFrame::Welcome => agent.welcomed(),
            DaemonFrame::Acknowledge { operation } => agent.executor.registry.acknowledged(operation),
            DaemonFrame::Call { call, question } => agent.answer(call, question),
        }
    }
    Ok(ControlEnd::Closed)
}
