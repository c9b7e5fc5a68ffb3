//! Copies between a client's socket and a stream of the link, both ways, until both have ended or either is gone.

use link::mux::MuxStream;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// Large enough that a bulk copy is not all wake-ups. The memory is only touched as far as it is used.
const BUFFER: usize = 128 << 10;

/// How long a guest that has said its last may leave what is sent to it unread: it may have closed the stream altogether,
/// which the link does not tell from half of it.
const LINGER: Duration = Duration::from_secs(10);

/// Which side of a copy broke.
#[derive(Debug)]
enum Broken {
    Reader(io::Error),
    Writer(io::Error),
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Reader(error) | Broken::Writer(error) => error,
        }
    }
}

/// How a copy is getting on.
#[derive(Debug, Default)]
struct Progress {
    /// Chunks carried so far.
    chunks: AtomicU64,
    /// Whether it waits for the receiver, not for the sender.
    is_writing: AtomicBool,
}

/// Carries bytes until both directions have ended. A client that hangs up altogether ends the stream as well, or a silent
/// guest could keep it for ever. Once the link is `over`, nobody is there to be sent anything.
pub(super) async fn relay(client: UnixStream, guest: MuxStream, over: &CancellationToken) {
    let (mut client_reader, mut client_writer) = client.into_split();
    let (mut guest_reader, mut guest_writer) = tokio::io::split(guest);
    let progress = Progress::default();
    let outward = async {
        copy(&mut client_reader, &mut guest_writer, &progress).await?;
        guest_writer.shutdown().await?;
        // A half-closed client still listens.
        hung_up(client_reader.as_ref()).await
    };
    let inward = async {
        copy(&mut guest_reader, &mut client_writer, &Progress::default()).await?;
        client_writer.shutdown().await.map_err(Broken::Writer)
    };
    tokio::pin!(outward, inward);
    let result = tokio::select! {
        result = &mut inward => match result {
            // The guest has said all; the client may go on until it has as well, or is gone.
            Ok(()) => tokio::select! {
                result = &mut outward => result,
                () = stuck(&progress) => Err(io::ErrorKind::TimedOut.into()),
                () = over.cancelled() => Ok(()),
            },
            // A client that takes nothing more has most likely gone. What it said before is still the guest's to hear: that it
            // leaves a command running, for one.
            Err(Broken::Writer(error)) => tokio::select! {
                result = &mut outward => result,
                () = tokio::time::sleep(LINGER) => Err(error),
                () = over.cancelled() => Ok(()),
            },
            Err(Broken::Reader(error)) => Err(error),
        },
        result = &mut outward => result,
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a vsock stream broke");
    }
}

async fn copy<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    reader: &mut R,
    writer: &mut W,
    progress: &Progress,
) -> Result<(), Broken> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = reader.read(&mut buffer).await.map_err(Broken::Reader)?;
        if read == 0 {
            return Ok(());
        }
        progress.is_writing.store(true, Ordering::Relaxed);
        writer.write_all(&buffer[..read]).await.map_err(Broken::Writer)?;
        writer.flush().await.map_err(Broken::Writer)?;
        progress.is_writing.store(false, Ordering::Relaxed);
        progress.chunks.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits until a copy has stood still before its receiver for [`LINGER`].
async fn stuck(progress: &Progress) {
    loop {
        let before = progress.chunks.load(Ordering::Relaxed);
        tokio::time::sleep(LINGER).await;
        if progress.is_writing.load(Ordering::Relaxed) && progress.chunks.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

/// Waits until nothing can be sent to the client any more.
async fn hung_up(client: &UnixStream) -> io::Result<()> {
    // A registration of its own: this one forgets that the socket is writable, which the writer must not.
    let probe = UnixStream::from_std(client.as_fd().try_clone_to_owned()?.into())?;
    loop {
        if probe.ready(Interest::WRITABLE).await?.is_write_closed() {
            return Ok(());
        }
        let forgotten = probe.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        debug_assert!(forgotten.is_err(), "the closure always refuses");
    }
}
