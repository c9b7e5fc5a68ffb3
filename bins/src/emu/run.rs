//! From the command line to the exit code.

use crate::emu::FIRECRACKER_VERSION;
use crate::emu::api::bodies;
use crate::emu::api::request::Request;
use crate::emu::api::server;
use crate::emu::args::Args;
use crate::emu::config_file;
use crate::emu::controller::{Controller, Settings};
use crate::emu::log;
use crate::emu::machine::End;
use crate::emu::script::{Moment, Script};
use crate::emu::snapshot;
use crate::emu::tsc::Reading;
use crate::emu::vsock::SocketFile;
use clap::Parser as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::termios::{SetArg, tcgetattr, tcsetattr};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// Firecracker's exit codes (`FcExitCode`), as far as they are used.
const GENERIC_ERROR: u8 = 1;
const BAD_CONFIGURATION: u8 = 152;
const ARGUMENT_PARSING: u8 = 153;
/// How long answers under way may take at the end; a scripted hang never would.
const LAST_ANSWERS: Duration = Duration::from_millis(200);

/// What ends the process with an exit code that is not 0.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("`{0}` is not supported by banger-emu")]
    UnsupportedFlag(&'static str),
    #[error("Could not initialize logger: {0}")]
    Logger(#[source] std::io::Error),
    #[error("{0}")]
    Script(String),
    #[error("Unable to open or read from the configuration file: {0}")]
    ConfigFile(#[source] std::io::Error),
    #[error("Configuration for VMM from one single json failed: {0}")]
    Configuration(String),
    #[error("Failed to open the API socket at: {path}. Check that it is not already used. ({source})")]
    ApiSocket { path: String, source: std::io::Error },
    #[error("{0}")]
    Snapshot(#[from] snapshot::SnapshotError),
    #[error("cannot set up the process: {0}")]
    Setup(#[source] std::io::Error),
    #[error("{0}")]
    Machine(String),
    /// 128 + the signal, as a shell has it.
    #[error("ended by signal {0}")]
    Signal(u8),
}

impl RunError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::UnsupportedFlag(_) => ARGUMENT_PARSING,
            Self::Configuration(_) | Self::ConfigFile(_) | Self::Script(_) => BAD_CONFIGURATION,
            Self::Signal(number) => 128 + *number,
            Self::Logger(_) | Self::ApiSocket { .. } | Self::Snapshot(_) | Self::Setup(_) | Self::Machine(_) => {
                GENERIC_ERROR
            }
        }
    }
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    // First of all: the time until it is needed is the time that the measurement has.
    let tsc = Reading::now();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { ARGUMENT_PARSING } else { 0 };
            return if error.print().is_ok() { code.into() } else { GENERIC_ERROR.into() };
        }
    };
    // QEMU puts a terminal into raw mode for the guest's console, and may be killed before it puts it back.
    let terminal = tcgetattr(std::io::stdin()).ok();
    let ended = run(&args, tsc);
    if let Some(terminal) = terminal
        && tcsetattr(std::io::stdin(), SetArg::TCSANOW, &terminal).is_err()
    {
        tracing::debug!("the terminal went away");
    }
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            let code = error.exit_code();
            // Nobody is left to tell if stderr is closed.
            drop(writeln!(std::io::stderr(), "Error: {error}"));
            code.into()
        }
    }
}

fn run(args: &Args, tsc: Reading) -> Result<(), RunError> {
    if args.version {
        // The empty line is Firecracker's as well.
        return print(&format!("Firecracker v{FIRECRACKER_VERSION} (banger-emu {})\n\n", env!("CARGO_PKG_VERSION")));
    }
    if args.snapshot_version {
        return print(&format!("v{}\n", snapshot::VERSION));
    }
    if let Some(path) = &args.describe_snapshot {
        return print(&format!("v{}\n", snapshot::read_state(path)?.version));
    }
    if let Some(flag) = args.unsupported() {
        return Err(RunError::UnsupportedFlag(flag));
    }
    log::install(&args.id);
    log::update(&logger(args)).map_err(RunError::Logger)?;
    let script = match &args.script {
        Some(path) => Script::load(path).map_err(|error| RunError::Script(chain(&error)))?,
        None => Script::default(),
    };
    tracing::info!("Running banger-emu {} as Firecracker v{FIRECRACKER_VERSION}", env!("CARGO_PKG_VERSION"));
    raise_descriptor_limit();
    // One thread: see the module's documentation.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Setup)?;
    runtime.block_on(serve(args, Settings { id: args.id.clone(), kind: args.kind(), script, tsc }))
}

fn print(text: &str) -> Result<(), RunError> {
    std::io::stdout().write_all(text.as_bytes()).map_err(RunError::Setup)
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn logger(args: &Args) -> bodies::Logger {
    bodies::Logger {
        log_path: args.log_path.clone(),
        level: args.level,
        show_level: args.show_level.then_some(true),
        show_log_origin: args.show_log_origin.then_some(true),
        module: args.module.clone(),
    }
}

/// Every stream is a descriptor, and the usual soft limit is 1024.
fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

async fn serve(args: &Args, settings: Settings) -> Result<(), RunError> {
    settings.script.play(Moment::Launch).await;
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Setup)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Setup)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(RunError::Setup)?;
    let mut controller = Controller::new(settings);
    let (stop, stopped) = oneshot::channel::<()>();
    let api = if args.no_api { None } else { Some(bind(&args.api_sock)?) };
    if let Some(path) = &args.metrics_path {
        configure(&mut controller, Request::Metrics(bodies::Metrics { metrics_path: path.clone() })).await?;
    }
    if let Some(path) = &args.config_file {
        let text = std::fs::read_to_string(path).map_err(RunError::ConfigFile)?;
        let requests = config_file::requests(&text).map_err(|fault| RunError::Configuration(fault.to_string()))?;
        for request in requests {
            configure(&mut controller, request).await?;
        }
    }
    let (calls, server) = match api {
        Some(socket) => {
            let (sender, calls) = mpsc::channel(16);
            let until = async {
                // An error is the sender's end, which means the same.
                drop(stopped.await);
            };
            (Some(calls), Some(tokio::spawn(server::serve(socket, sender, args.http_api_max_payload_size, until))))
        }
        None => (None, None),
    };
    let ended = tokio::select! {
        end = controller.run(calls) => match end {
            End::Guest => Ok(()),
            End::Failed(why) => Err(RunError::Machine(why)),
        },
        _ = terminate.recv() => Err(RunError::Signal(15)),
        _ = interrupt.recv() => Err(RunError::Signal(2)),
        _ = hangup.recv() => Err(RunError::Signal(1)),
    };
    if ended.is_err() {
        controller.close().await;
    }
    drop(stop);
    if let Some(server) = server
        && tokio::time::timeout(LAST_ANSWERS, server).await.is_err()
    {
        tracing::debug!("an API call was left unanswered");
    }
    if ended.is_ok() {
        tracing::info!("Firecracker exiting successfully. exit_code=0");
    }
    ended
}

async fn configure(controller: &mut Controller, request: Request) -> Result<(), RunError> {
    controller.handle(request).await.map(drop).map_err(|fault| RunError::Configuration(fault.to_string()))
}

fn bind(path: &Path) -> Result<SocketFile, RunError> {
    SocketFile::bind(path).map_err(|source| RunError::ApiSocket { path: path.display().to_string(), source })
}
