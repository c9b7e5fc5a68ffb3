//! The logger: lines like Firecracker's, to a file or stdout, changed at run time by `PUT /logger`.

use crate::emu::api::bodies;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};

/// How much is logged. Case does not matter when it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub enum Level {
    Off,
    Error,
    Warning,
    #[default]
    Info,
    Debug,
    Trace,
}

impl TryFrom<String> for Level {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::str::FromStr for Level {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "off" => Self::Off,
            "error" => Self::Error,
            "warn" | "warning" => Self::Warning,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => return Err("Invalid LevelFilter".to_owned()),
        })
    }
}

impl Level {
    fn of(level: tracing::Level) -> Self {
        match level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warning,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::TRACE => Self::Trace,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "OFF",
            Self::Error => "ERROR",
            Self::Warning => "WARN",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
            Self::Trace => "TRACE",
        }
    }
}

#[derive(Debug, Default)]
struct State {
    id: String,
    /// Stdout while there is none, as in Firecracker.
    file: Option<File>,
    level: Level,
    show_level: bool,
    show_origin: bool,
    module: Option<String>,
}

static STATE: OnceLock<Mutex<State>> = OnceLock::new();

fn state() -> MutexGuard<'static, State> {
    // A panic while a line was written leaves the settings usable.
    STATE.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Opens what a log, metrics or console path names: a file (made where missing) or a named pipe, never blocking on it.
///
/// # Errors
/// The file system's.
pub fn open_output(path: &Path) -> io::Result<File> {
    std::fs::OpenOptions::new()
        .read(true) // so that a pipe without a reader opens
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open(path)
}

/// Starts logging for the instance `id`.
pub fn install(id: &str) {
    id.clone_into(&mut state().id);
    // A second call (tests in one process) keeps the first subscriber, which is the same.
    drop(tracing::subscriber::set_global_default(Logger));
}

/// Applies what is given; what is not stays.
///
/// # Errors
/// The log file cannot be opened; nothing has changed then.
pub fn update(config: &bodies::Logger) -> io::Result<()> {
    let file = config.log_path.as_deref().map(open_output).transpose()?;
    let mut state = state();
    if let Some(file) = file {
        state.file = Some(file);
    }
    state.level = config.level.unwrap_or(state.level);
    state.show_level = config.show_level.unwrap_or(state.show_level);
    state.show_origin = config.show_log_origin.unwrap_or(state.show_origin);
    if config.module.is_some() {
        state.module.clone_from(&config.module);
    }
    Ok(())
}

struct Logger;

/// `message`, then `key=value` for the rest.
#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String cannot fail.
        let written = if field.name() == "message" {
            write!(self.0, "{value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
        debug_assert!(written.is_ok(), "a String takes everything");
    }
}

impl Subscriber for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let state = state();
        Level::of(*metadata.level()) <= state.level
            && state.module.as_ref().is_none_or(|module| metadata.target().starts_with(module.as_str()))
            // Wake-ups of the runtime and the HTTP library are nobody's business below trace.
            && (state.level == Level::Trace || !metadata.target().starts_with("hyper"))
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let metadata = event.metadata();
        let mut state = state();
        let now = humantime::format_rfc3339_nanos(std::time::SystemTime::now()).to_string();
        let mut text = format!("{} [{}", now.trim_end_matches('Z'), state.id);
        if state.show_level {
            text.push(':');
            text.push_str(Level::of(*metadata.level()).as_str());
        }
        if state.show_origin {
            let (file, number) = (metadata.file().unwrap_or("?"), metadata.line().unwrap_or(0));
            text.push_str(&format!(":{file}:{number}"));
        }
        // Control characters of whoever is quoted must not forge lines.
        let message: String = line.0.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        text.push_str(&format!("] {}\n", message.trim()));
        let written = match &mut state.file {
            Some(file) => file.write_all(text.as_bytes()),
            None => io::stdout().write_all(text.as_bytes()),
        };
        // A full disk or a pipe without a reader must not stop the VM, and there is nobody to tell.
        drop(written);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
    fn register_callsite(&self, _: &'static Metadata<'static>) -> tracing::subscriber::Interest {
        // The level changes at run time.
        tracing::subscriber::Interest::sometimes()
    }
}
