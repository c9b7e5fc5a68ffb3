//! One connection: hello, one request, progress, one reply. Ends on the first thing that is not that.

use super::context::{Answer, ServerContext};
use super::{commit, daemon, fleet, run};
use crate::images::messages::ExportedImage;
use actors_sys::fd_stream::FdStream;
use link::frames::{FrameReader, ReadError, send_hello};
use messages::error::{ErrorKind, WireError};
use messages::reply::{Progress, Reply, ServerFrame};
use messages::request::{Request, RequestBody};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// From the connect to the whole request. A client of ours sends both at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// For the client to take one frame.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest request: a create with every label.
const REQUEST_MAX: usize = 1 << 20;
/// Lines of progress that may wait for the client.
const PROGRESS_QUEUE: usize = 64;

/// What a handler is given of its client.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) progress: mpsc::Sender<Progress>,
    /// Cancelled when the client vanishes.
    pub(super) gone: CancellationToken,
}

pub(super) async fn serve(stream: UnixStream, context: Arc<ServerContext>) {
    if let Err(error) = exchange(stream, &context).await {
        tracing::debug!(error = %error, "a connection ended early");
    }
}

type Reader = FrameReader<FdStream>;

async fn exchange(stream: UnixStream, context: &Arc<ServerContext>) -> Result<(), ReadError> {
    let peer = stream.peer_cred()?;
    let mut reader = FrameReader::new(FdStream::new(stream), REQUEST_MAX);
    if peer.uid() != context.paths.uid {
        let error = WireError::new(
            ErrorKind::Host,
            format!("this bangerd belongs to uid {}, and you are uid {}", context.paths.uid, peer.uid()),
        )
        .hint("run banger as the owner, or without BANGER_STATE_DIR for a daemon of your own");
        // Without a hello the client could not tell these words from noise.
        send_hello(reader.get_mut()).await?;
        write(&mut reader, None, &ServerFrame::Error(error)).await?;
        return Ok(());
    }
    let request = timeout(REQUEST_TIMEOUT, receive(&mut reader)).await;
    let request = match request {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => return refuse(&mut reader, error).await,
        Err(_) => {
            let error = WireError::new(ErrorKind::Timeout, "no request came");
            return write(&mut reader, None, &ServerFrame::Error(error)).await;
        }
    };
    let Request { id, body } = request;
    tracing::debug!(request = %id, body = name(&body), "request");
    let (progress, mut lines) = mpsc::channel(PROGRESS_QUEUE);
    let client = Client { progress, gone: CancellationToken::new() };
    let gone = client.gone.clone();
    let mut work = {
        let context = Arc::clone(context);
        tokio::spawn(async move { dispatch(context, Request { id, body }, client).await })
    };
    // Whatever way this ends, the handler learns that nobody listens.
    let _leaving = gone.drop_guard();
    let result = loop {
        tokio::select! {
            biased;
            result = &mut work => break result,
            Some(line) = lines.recv() => write(&mut reader, None, &ServerFrame::Progress(line)).await?,
            // One request, then nothing: the end of the stream, or a client that breaks the protocol.
            _ = reader.next() => return Ok(()),
        }
    };
    while let Ok(line) = lines.try_recv() {
        write(&mut reader, None, &ServerFrame::Progress(line)).await?;
    }
    let result = result.unwrap_or_else(|error| {
        Err(WireError::new(ErrorKind::Internal, format!("the request's handler failed: {error}"))
            .hint("this is a bug of banger's: see `banger daemon logs`"))
    });
    match result {
        Ok(Answer { reply, descriptor }) => {
            let descriptors = u8::from(descriptor.is_some());
            let frame = ServerFrame::Reply { reply: Box::new(reply), descriptors };
            write(&mut reader, descriptor, &frame).await
        }
        Err(error) => {
            tracing::info!(request = %id, error = %error, "request failed");
            write(&mut reader, None, &ServerFrame::Error(error)).await
        }
    }
}

async fn receive(reader: &mut Reader) -> Result<Request, ReadError> {
    // Both sides send at once; a peer of another version reads ours and says what is wrong.
    send_hello(reader.get_mut()).await?;
    reader.hello().await?;
    reader.message().await?.ok_or(ReadError::Frame(messages::frame::FrameError::Truncated))
}

async fn refuse(reader: &mut Reader, error: ReadError) -> Result<(), ReadError> {
    let kind = match &error {
        ReadError::Frame(_) => ErrorKind::Protocol,
        // Nobody is there to be told.
        ReadError::Io(_) | ReadError::NoHello => return Err(error),
    };
    let wire = WireError::from_error(kind, &error).hint("`banger daemon stop`, then repeat the command");
    write(reader, None, &ServerFrame::Error(wire)).await?;
    Err(error)
}

async fn write(
    reader: &mut Reader,
    descriptor: Option<std::os::fd::OwnedFd>,
    frame: &ServerFrame,
) -> Result<(), ReadError> {
    let stream = reader.get_mut();
    let bytes = match frame.encode() {
        Ok(bytes) => bytes,
        // Whoever asked must not be left without a word.
        Err(error) => {
            let wire = WireError::from_error(ErrorKind::Internal, &error).context("the answer cannot be sent");
            ServerFrame::Error(wire).encode()?
        }
    };
    if let Some(descriptor) = descriptor {
        stream.queue_fd(descriptor)?;
    }
    match timeout(WRITE_TIMEOUT, stream.write_all(&bytes)).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(ReadError::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

/// For the log: never the content, which may hold secrets.
const fn name(body: &RequestBody) -> &'static str {
    match body {
        RequestBody::DaemonStatus => "daemon status",
        RequestBody::DaemonStop => "daemon stop",
        RequestBody::CreateVm { .. } => "vm create",
        RequestBody::RunVm { .. } => "vm run",
        RequestBody::StartVms { .. } => "vm start",
        RequestBody::StopVms { .. } => "vm stop",
        RequestBody::RestartVms { .. } => "vm restart",
        RequestBody::KillVms { .. } => "vm kill",
        RequestBody::DeleteVms { .. } => "vm delete",
        RequestBody::ListVms => "vm list",
        RequestBody::ShowVm { .. } => "vm show",
        RequestBody::VmLogs { .. } | RequestBody::VmLogsSince { .. } => "vm logs",
        RequestBody::ExecVm { .. } => "vm exec",
        RequestBody::ConnectSsh { .. } => "vm ssh",
        RequestBody::RenameVm { .. } => "vm rename",
        RequestBody::VmStats { .. } => "vm stats",
        RequestBody::VmPorts { .. } => "vm ports",
        RequestBody::ImageCatalog => "image catalog",
        RequestBody::PullImage { .. } => "image pull",
        RequestBody::ListImages => "image list",
        RequestBody::ShowImage { .. } => "image show",
        RequestBody::DeleteImage { .. } => "image delete",
        RequestBody::PruneImages => "image prune",
        RequestBody::PullImageFor { .. } => "image pull",
        RequestBody::RegisterImage { .. } => "image register",
        RequestBody::PromoteImage { .. } => "image promote",
        RequestBody::CommitImage { .. } => "image commit",
        RequestBody::InspectImage { .. } => "image show",
        RequestBody::KernelCatalog => "kernel catalog",
        RequestBody::PullKernel { .. } => "kernel pull",
        RequestBody::ListKernels => "kernel list",
        RequestBody::ShowKernel { .. } => "kernel show",
        RequestBody::DeleteKernel { .. } => "kernel delete",
        RequestBody::WaitVm { .. } => "vm wait",
        RequestBody::ImportKernel(_) => "kernel import",
        RequestBody::ExportImage { .. } => "image export",
        RequestBody::ImportImage { .. } => "image import",
    }
}

async fn dispatch(context: Arc<ServerContext>, request: Request, client: Client) -> Result<Answer, WireError> {
    let Request { id, body } = request;
    match body {
        RequestBody::DaemonStatus => daemon::status(&context).await.map(Answer::from),
        RequestBody::DaemonStop => {
            tracing::info!("asked to stop");
            context.shutdown.cancel();
            Ok(Reply::Done.into())
        }
        RequestBody::CreateVm { spec, start, wait } => {
            run::create(&context, id, spec, start, wait, &client).await.map(Answer::from)
        }
        RequestBody::RunVm { spec, wait, exec, timeout_ms } => {
            run::run(&context, id, run::Run { spec, wait, exec, timeout_ms }, &client).await
        }
        RequestBody::ExecVm { vm, exec, wait } => run::exec(&context, vm, exec, wait, &client).await,
        RequestBody::ConnectSsh { vm } => run::ssh(&context, vm).await,
        RequestBody::StartVms { vms, wait } => Ok(fleet::start(&context, vms, wait, &client).await.into()),
        RequestBody::StopVms { vms, timeout_ms, force } => {
            Ok(fleet::stop(&context, vms, timeout_ms, force).await.into())
        }
        RequestBody::RestartVms { vms, timeout_ms, wait } => {
            Ok(fleet::restart(&context, vms, timeout_ms, wait, &client).await.into())
        }
        RequestBody::KillVms { vms } => Ok(fleet::kill(&context, vms).await.into()),
        RequestBody::DeleteVms { vms, force, only_ephemeral } => {
            Ok(fleet::delete(&context, vms, force, only_ephemeral).await.into())
        }
        RequestBody::ListVms => fleet::list(&context).await.map(Answer::from),
        RequestBody::ShowVm { vm } => fleet::show(&context, vm).await.map(Answer::from),
        RequestBody::VmLogs { vm, log } => fleet::logs(&context, vm, log, None).await,
        RequestBody::VmLogsSince { vm, log, since_ms } => fleet::logs(&context, vm, log, Some(since_ms)).await,
        RequestBody::RenameVm { vm, name } => fleet::rename(&context, vm, name).await.map(Answer::from),
        RequestBody::VmStats { vm } => fleet::stats(&context, vm).await.map(Answer::from),
        RequestBody::VmPorts { vm } => fleet::ports(&context, vm).await.map(Answer::from),
        RequestBody::WaitVm { vm, level, timeout_ms } => {
            fleet::wait(&context, vm, level, timeout_ms, &client).await.map(Answer::from)
        }
        RequestBody::CommitImage { vm, name, config, source } => {
            commit::commit(&context, commit::Commit { vm, name, config, source }, &client).await.map(Answer::from)
        }
        RequestBody::ExportImage { image } => {
            let ExportedImage { export, rootfs } = context.library.export(image).await?;
            Ok(Answer { reply: Reply::ImageExport(export), descriptor: Some(rootfs.into()) })
        }
        body @ (RequestBody::ImageCatalog
        | RequestBody::ImportImage { .. }
        | RequestBody::ImportKernel(_)
        | RequestBody::PullImage { .. }
        | RequestBody::ListImages
        | RequestBody::ShowImage { .. }
        | RequestBody::DeleteImage { .. }
        | RequestBody::PruneImages
        | RequestBody::PullImageFor { .. }
        | RequestBody::RegisterImage { .. }
        | RequestBody::PromoteImage { .. }
        | RequestBody::InspectImage { .. }
        | RequestBody::KernelCatalog
        | RequestBody::PullKernel { .. }
        | RequestBody::ListKernels
        | RequestBody::ShowKernel { .. }
        | RequestBody::DeleteKernel { .. }) => {
            // An interrupted pull's last caller ends it: dropping the future is how the library is told.
            let progress = client.progress.clone();
            tokio::select! {
                result = context.library.request(body, progress) => result.map(Answer::from),
                () = client.gone.cancelled() => Err(WireError::new(ErrorKind::Cancelled, "the client left")),
            }
        }
    }
}
