//! One session of an SSH connection: what the client asks for becomes an operation like any other, and its frames become the
//! channel's messages.

use super::inbox::Inbox;
use crate::exec::plan::Place;
use crate::exec::registry::Registry;
use crate::exec::session::{self as operation, Executor, World};
use crate::outbox::Outbox;
use crate::users::{DEFAULT_SHELL, Database};
use bytes::Bytes;
use link::frames::{FrameReader, ReadError, send_hello, write_frame};
use messages::frame;
use messages::guest::{
    ArgBytes, ExecCommand, ExecSpec, ExitStatus, OnDisconnect, OperationFrame, OutputFrame, TerminalSize,
};
use messages::ids::OperationId;
use messages::limits::{GUEST_FRAME_MAX, STREAM_CHUNK_MAX};
use russh::server::{Handle, Msg};
use russh::{ChannelId, ChannelMsg, ChannelWriteHalf, Sig};
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Between this session and the operation behind it: a chunk, and then some.
const DUPLEX: usize = 2 * STREAM_CHUNK_MAX;
/// How many variables a client may set.
const ENV_MAX: usize = 64;
/// What `ext` means in RFC 4254, section 5.2.
const STDERR: u32 = 1;

/// What the client has said before its command.
#[derive(Debug, Default)]
struct Wish {
    terminal: Option<TerminalSize>,
    env: Vec<(String, String)>,
}

/// What it wants to run.
#[derive(Debug, PartialEq, Eq)]
enum Run {
    Shell,
    Line(Vec<u8>),
    Sftp,
}

/// A session's channel: what comes, and the two ways to answer.
pub(super) struct Ends {
    pub(super) id: ChannelId,
    pub(super) handle: Handle,
    pub(super) replies: ChannelWriteHalf<Msg>,
    pub(super) inbox: Inbox,
}

/// Serves a session until its command has ended, or the client has.
pub(super) async fn run(channel: Ends, world: World, user: Option<String>) {
    let Ends { id, handle, replies, mut inbox } = channel;
    let mut wish = Wish::default();
    let Some(run) = listen(&mut inbox, &handle, id, &mut wish).await else { return };
    let exec = spec(run, wish, user, &world.place);
    let executor = Arc::new(Executor::new(Registry::new(Outbox::default())));
    executor.enter(world);
    let (near, far) = tokio::io::duplex(DUPLEX);
    let served = tokio::spawn(operation::serve(far, executor));
    let (read, write) = tokio::io::split(near);
    match talk(FrameReader::new(read, GUEST_FRAME_MAX), write, exec, &mut inbox, &replies).await {
        Ok(Some(end)) => conclude(end, &handle, id, &replies).await,
        Ok(None) => {}
        Err(error) => tracing::debug!(%error, "an SSH session was broken off"),
    }
    // Its ends of the duplex are dropped: the operation sees its client leave, and hangs up what still runs.
    if let Err(error) = served.await {
        tracing::warn!(%error, "an SSH session's operation failed");
    }
}

/// Answers requests until one of them is a command. A client that is gone hears no answer, and says no more.
async fn listen(inbox: &mut Inbox, handle: &Handle, id: ChannelId, wish: &mut Wish) -> Option<Run> {
    loop {
        let run = match inbox.next().await?.0 {
            ChannelMsg::RequestPty { term, col_width, row_height, .. } => {
                wish.terminal = Some(size(col_width, row_height));
                wish.env.push(("TERM".to_owned(), term));
                None
            }
            ChannelMsg::WindowChange { col_width, row_height, .. } => {
                wish.terminal = wish.terminal.map(|_| size(col_width, row_height));
                continue;
            }
            ChannelMsg::SetEnv { variable_name: name, variable_value: value, .. }
                if is_accepted(&name) && wish.env.len() < ENV_MAX =>
            {
                wish.env.push((name, value));
                None
            }
            ChannelMsg::RequestShell { .. } => Some(Run::Shell),
            ChannelMsg::Exec { command, .. } => Some(Run::Line(command)),
            ChannelMsg::RequestSubsystem { name, .. } if name == "sftp" => Some(Run::Sftp),
            ChannelMsg::SetEnv { .. }
            | ChannelMsg::RequestSubsystem { .. }
            | ChannelMsg::RequestX11 { .. }
            | ChannelMsg::AgentForward { .. } => {
                handle.channel_failure(id).await.ok()?;
                continue;
            }
            ChannelMsg::Close => return None,
            _ => continue,
        };
        handle.channel_success(id).await.ok()?;
        if run.is_some() {
            return run;
        }
    }
}

/// As in the sshd_config of images that have an sshd.
fn is_accepted(name: &str) -> bool {
    name == "LANG" || name.starts_with("LC_")
}

fn size(columns: u32, rows: u32) -> TerminalSize {
    let bounded = |cells: u32| u16::try_from(cells).unwrap_or(u16::MAX);
    TerminalSize { rows: bounded(rows), columns: bounded(columns) }
}

fn spec(run: Run, wish: Wish, user: Option<String>, place: &Place) -> ExecSpec {
    let argument = |bytes: &[u8]| ArgBytes(bytes.to_vec());
    let command = match run {
        Run::Shell => ExecCommand::LoginShell,
        Run::Line(line) => {
            ExecCommand::Argv(vec![argument(shell(user.as_deref(), place).as_bytes()), argument(b"-c"), ArgBytes(line)])
        }
        Run::Sftp => ExecCommand::Argv(vec![argument(b"/proc/self/exe"), argument(b"--sftp")]),
    };
    ExecSpec {
        command,
        env: wish.env,
        workdir: None,
        user,
        terminal: wish.terminal,
        stdin: true,
        on_disconnect: OnDisconnect::Kill,
    }
}

fn shell(user: Option<&str>, place: &Place) -> String {
    let user = match place {
        Place::Guest => user.unwrap_or("0").to_owned(),
        Place::Process { .. } => nix::unistd::geteuid().to_string(),
    };
    let shell = Database::read(Path::new("/")).find(&user).map(|account| account.shell);
    shell.ok().filter(|shell| Path::new(shell).is_file()).unwrap_or_else(|| DEFAULT_SHELL.to_owned())
}

/// How the operation ended.
enum End {
    Exited(ExitStatus),
    Failed(String, u32),
}

/// Speaks for the client until the operation has ended; `None` where the client left first.
async fn talk<R, W>(
    mut frames: FrameReader<R>,
    mut write: W,
    exec: ExecSpec,
    inbox: &mut Inbox,
    replies: &ChannelWriteHalf<Msg>,
) -> Result<Option<End>, ReadError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    send_hello(&mut write).await?;
    let open = OperationFrame::Open { operation: OperationId([0; 8]), exec: Box::new(exec) };
    write_frame(&mut write, &open, GUEST_FRAME_MAX).await?;
    let (credit, granted) = mpsc::unbounded_channel();
    tokio::select! {
        end = output(&mut frames, replies, credit) => end.map(Some),
        left = input(inbox, &mut write, granted) => left.map(|()| None),
    }
}

/// What the operation says goes to the client, as fast as the client takes it.
async fn output<R: AsyncRead + Unpin>(
    frames: &mut FrameReader<R>,
    replies: &ChannelWriteHalf<Msg>,
    credit: mpsc::UnboundedSender<u32>,
) -> Result<End, ReadError> {
    let gone = |_| ReadError::Io(std::io::ErrorKind::BrokenPipe.into());
    loop {
        let payload = frames.next().await?.ok_or(frame::FrameError::Truncated)?;
        match frame::decode_borrowed(payload)? {
            OutputFrame::Started { .. } => {}
            OutputFrame::Stdout(bytes) => replies.data_bytes(Bytes::copy_from_slice(bytes)).await.map_err(gone)?,
            OutputFrame::Stderr(bytes) => {
                replies.extended_data_bytes(STDERR, Bytes::copy_from_slice(bytes)).await.map_err(gone)?;
            }
            // The input side ends with this one.
            OutputFrame::StdinCredit(bytes) => drop(credit.send(bytes)),
            OutputFrame::StdinClosed => drop(credit.send(u32::MAX)),
            OutputFrame::Exited(status) => return Ok(End::Exited(status)),
            OutputFrame::Failed(error) => {
                let status = if error.kind == messages::error::ErrorKind::NotFound { 127 } else { 126 };
                return Ok(End::Failed(error.to_string(), status));
            }
        }
    }
}

/// What the client says goes to the operation, as far as it has room. Ends when the client has left.
async fn input<W: AsyncWrite + Unpin>(
    inbox: &mut Inbox,
    write: &mut W,
    mut granted: mpsc::UnboundedReceiver<u32>,
) -> Result<(), ReadError> {
    let mut credit: u64 = 0;
    loop {
        match inbox.next().await {
            None | Some((ChannelMsg::Close, _)) => return Ok(()),
            Some((ChannelMsg::Data { mut data }, _waiting)) => {
                while !data.is_empty() {
                    while credit == 0 {
                        let Some(more) = granted.recv().await else { return Ok(()) };
                        credit += u64::from(more);
                    }
                    let room = usize::try_from(credit).unwrap_or(usize::MAX);
                    let part = data.split_to(data.len().min(room).min(STREAM_CHUNK_MAX));
                    credit -= part.len() as u64;
                    write_frame(write, &OperationFrame::Stdin(&part), GUEST_FRAME_MAX).await?;
                }
            }
            Some((ChannelMsg::Eof, _)) => write_frame(write, &OperationFrame::StdinEnd, GUEST_FRAME_MAX).await?,
            Some((ChannelMsg::WindowChange { col_width, row_height, .. }, _)) => {
                let resize = OperationFrame::Resize(size(col_width, row_height));
                write_frame(write, &resize, GUEST_FRAME_MAX).await?;
            }
            Some((ChannelMsg::Signal { signal }, _)) => {
                if let Some(number) = number(&signal) {
                    write_frame(write, &OperationFrame::Signal(number), GUEST_FRAME_MAX).await?;
                }
            }
            Some(_) => {}
        }
    }
}

/// The signals that RFC 4254 section 6.10 names.
const SIGNALS: [(Sig, i32); 12] = [
    (Sig::ABRT, libc::SIGABRT),
    (Sig::ALRM, libc::SIGALRM),
    (Sig::FPE, libc::SIGFPE),
    (Sig::HUP, libc::SIGHUP),
    (Sig::ILL, libc::SIGILL),
    (Sig::INT, libc::SIGINT),
    (Sig::KILL, libc::SIGKILL),
    (Sig::PIPE, libc::SIGPIPE),
    (Sig::QUIT, libc::SIGQUIT),
    (Sig::SEGV, libc::SIGSEGV),
    (Sig::TERM, libc::SIGTERM),
    (Sig::USR1, libc::SIGUSR1),
];

fn number(signal: &Sig) -> Option<i32> {
    let same = |known: &Sig| std::mem::discriminant(known) == std::mem::discriminant(signal);
    SIGNALS.iter().find(|(known, _)| same(known)).map(|(_, number)| *number)
}

/// The channel's last messages. A client that is gone hears none of them.
async fn conclude(end: End, handle: &Handle, id: ChannelId, replies: &ChannelWriteHalf<Msg>) {
    let said = async {
        match end {
            End::Exited(ExitStatus::Code(code)) => replies.exit_status(code.cast_unsigned()).await.ok()?,
            End::Exited(ExitStatus::Signal(signal)) => match SIGNALS.iter().find(|(_, number)| *number == signal) {
                Some((name, _)) => {
                    handle.exit_signal_request(id, name.clone(), false, String::new(), String::new()).await.ok()?;
                }
                None => replies.exit_status(128 + signal.cast_unsigned()).await.ok()?,
            },
            End::Exited(ExitStatus::Unknown) => replies.exit_status(255).await.ok()?,
            End::Failed(message, status) => {
                replies.extended_data_bytes(STDERR, format!("{message}\n")).await.ok()?;
                replies.exit_status(status).await.ok()?;
            }
        }
        replies.eof().await.ok()?;
        replies.close().await.ok()
    };
    if said.await.is_none() {
        tracing::debug!("a client left before it was told how its command ended");
    }
}
