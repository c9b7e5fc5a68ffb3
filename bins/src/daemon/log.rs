//! The daemon's log: a file in the state directory that never grows past a bound.

use super::host_error;
use messages::error::{ErrorKind, WireError};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// When the log has so many bytes it becomes `<log>.1`, in place of the one before.
const LOG_MAX: u64 = 8 << 20;

/// A log file that is turned over when it is full.
#[derive(Clone, Debug)]
pub(super) struct BoundedLog(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    length: u64,
    limit: u64,
}

impl BoundedLog {
    fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = append(path)?;
        let length = file.metadata()?.len();
        Ok(Self(Arc::new(Mutex::new(Inner { path: path.to_path_buf(), file, length, limit }))))
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

impl Inner {
    /// Where no new file can be opened (out of descriptors, say), the old one is written on until one can be.
    fn turn_over(&mut self) -> io::Result<()> {
        match std::fs::rename(&self.path, self.path.with_extension("log.1")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        if let Ok(file) = append(&self.path) {
            self.file = file;
            self.length = 0;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let more = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.length.saturating_add(more) > self.limit {
            self.turn_over()?;
        }
        self.file.write_all(bytes)?;
        self.length += more;
        Ok(())
    }
}

impl Write for BoundedLog {
    /// One event is one write, so that lines of several threads do not mix.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for BoundedLog {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The DNS library tells of each question, in part even as warnings: guests could fill the log with them. What matters of
/// names is logged by their keeper. Put first, so that a `log_level` that names the library has the last word.
fn filter(level: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    EnvFilter::try_new(format!("hickory_server=off,hickory_net=off,hickory_proto=off,{level}"))
}

/// Sends tracing to the log.
pub(super) fn start(path: &Path, level: &str) -> Result<(), WireError> {
    let log = BoundedLog::open(path, LOG_MAX)
        .map_err(|error| host_error(format!("the log `{}` cannot be written", path.display()), &error))?;
    let filter = filter(level)
        .map_err(|error| WireError::from_error(ErrorKind::Usage, &error).context(format!("log_level `{level}`")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(log)
        .try_init()
        .map_err(|error| WireError::new(ErrorKind::Internal, format!("the log cannot be started: {error}")))?;
    // A panic is caught and its actor restarted: the log is where it can be read about.
    std::panic::set_hook(Box::new(|panic| tracing::error!(panic = %panic, "panic")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_turned_over_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.log");
        let mut log = BoundedLog::open(&path, 100).unwrap();
        for _ in 0..50 {
            log.write_all(b"0123456789\n").unwrap();
        }
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert!(size(&path) <= 100 && size(&dir.path().join("d.log.1")) <= 100);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_log_that_could_not_be_turned_over_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.log");
        let mut log = BoundedLog::open(&path, 15).unwrap();
        log.write_all(b"0123456789\n").unwrap();
        // As after a turnover in which the new file could not be opened.
        std::fs::rename(&path, dir.path().join("d.log.1")).unwrap();
        log.write_all(b"abcdefghij\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "abcdefghij\n");
    }
}
