//! When a log grew. A VMM and its guest write without saying when, so the daemon notes a log's length once a second while it
//! grows, in a file beside the log; `vm logs --since` begins where that says.
//!
//! A file of marks is a sequence of 16 bytes each: the time in milliseconds since the Unix epoch, and the log's length in bytes then,
//! both as little-endian `u64`, both ascending. What lies before a mark's length was written before its time. Bounded: a full file
//! loses every second mark, so what is long ago is known less exactly.
//!
//! What is found errs to the early side: too much is printed, never too little. What was written while no daemon ran counts as
//! written when the next one looked.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The bytes of a mark.
const MARK: u64 = 16;
/// More marks than this are thinned: 64 KiB, more than an hour of a log that never rests.
const MARKS_MAX: u64 = 4096;
/// No line of a log is looked for further back than this, in bytes.
const LINE_MAX: u64 = 4096;

/// A log's length at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    at_ms: u64,
    length: u64,
}

impl Mark {
    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.at_ms.to_le_bytes());
        bytes[8..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; 16]) -> Self {
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        Self { at_ms: number(0), length: number(8) }
    }
}

/// Where the marks of a log are.
fn beside(log: &Path) -> PathBuf {
    let mut path = OsString::from(log);
    path.push(".marks");
    path.into()
}

/// Notes how long `log` is, if it has been written to since the last time. `now_ms` is asked after the log was looked at: what is
/// before a mark must not be later than it.
///
/// # Errors
/// Of the file system. A log that is not there is fine.
pub fn note(log: &Path, now_ms: impl FnOnce() -> u64) -> io::Result<()> {
    let Some(metadata) = there(fs::metadata(log))? else { return Ok(()) };
    let (length, written) = (metadata.len(), metadata.modified()?);
    let path = beside(log);
    // The marks carry the log's own time of change: most of the time nothing has to be opened.
    if there(fs::metadata(&path))?.and_then(|marks| marks.modified().ok()) == Some(written) {
        return Ok(());
    }
    let mark = Mark { at_ms: now_ms(), length };
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)?;
    let count = file.metadata()?.len() / MARK;
    match count.checked_sub(1).map(|last| read(&file, last)).transpose()? {
        Some(last) if last.length == length => {}
        // The log began anew.
        Some(last) if last.length > length => {
            file.set_len(0)?;
            file.write_all(&mark.to_bytes())?;
        }
        Some(_) | None if count < MARKS_MAX => {
            // Half a mark, of a daemon that was killed in the middle of it, would put all others out of step.
            file.set_len(count * MARK)?;
            file.write_all(&mark.to_bytes())?;
        }
        Some(_) | None => file = thinned(&file, count, mark, &path)?,
    }
    file.set_modified(written)
}

/// Forgets the marks of a log that begins anew.
///
/// # Errors
/// Of the removal. None is fine.
pub fn forget(log: &Path) -> io::Result<()> {
    there(fs::remove_file(beside(log))).map(drop)
}

/// Where in the log, which is open as `file`, begins what was written since a time; the start of a line, where one is near.
///
/// # Errors
/// Of the file system.
pub fn offset_since(file: &File, log: &Path, since_ms: u64) -> io::Result<u64> {
    let metadata = file.metadata()?;
    let since = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(since_ms));
    if since.is_none_or(|since| metadata.modified().is_ok_and(|written| written < since)) {
        return Ok(metadata.len());
    }
    let Some(marks) = there(File::open(beside(log)))? else { return Ok(0) };
    // Binary search for the first mark that is later: the one before it is where to begin.
    let (mut low, mut high) = (0, marks.metadata()?.len() / MARK);
    while low < high {
        let middle = low.midpoint(high);
        if read(&marks, middle)?.at_ms <= since_ms { low = middle + 1 } else { high = middle }
    }
    let Some(before) = low.checked_sub(1) else { return Ok(0) };
    line_start(file, read(&marks, before)?.length.min(metadata.len()))
}

fn read(marks: &File, index: u64) -> io::Result<Mark> {
    let mut bytes = [0; 16];
    marks.read_exact_at(&mut bytes, index * MARK)?;
    Ok(Mark::from_bytes(bytes))
}

/// Every second mark and the new one, in a file that takes the place of the old one at once.
fn thinned(marks: &File, count: u64, newest: Mark, path: &Path) -> io::Result<File> {
    let mut kept = Vec::new();
    for index in (1..count).step_by(2) {
        kept.extend_from_slice(&read(marks, index)?.to_bytes());
    }
    kept.extend_from_slice(&newest.to_bytes());
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    let mut fresh = tempfile::NamedTempFile::new_in(directory)?;
    fresh.write_all(&kept)?;
    fresh.persist(path).map_err(|error| error.error)
}

fn line_start(log: &File, offset: u64) -> io::Result<u64> {
    let from = offset.saturating_sub(LINE_MAX);
    let mut before = vec![0; usize::try_from(offset - from).map_err(io::Error::other)?];
    log.read_exact_at(&mut before, from)?;
    let newline = before.iter().rposition(|byte| *byte == b'\n');
    Ok(newline.map_or(if from == 0 { 0 } else { offset }, |at| from + at as u64 + 1))
}

/// `None` where there is no such file.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log whose clock is the test's: the file system's would be too coarse for what happens within a millisecond.
    struct Log {
        dir: tempfile::TempDir,
    }

    impl Log {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("console.log")
        }

        fn write(&self, text: &str, at_ms: u64) {
            let mut file = OpenOptions::new().append(true).create(true).open(self.path()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms)).unwrap();
        }

        fn note(&self, at_ms: u64) {
            note(&self.path(), || at_ms).unwrap();
        }

        fn since(&self, at_ms: u64) -> String {
            let file = File::open(self.path()).unwrap();
            let offset = offset_since(&file, &self.path(), at_ms).unwrap();
            fs::read_to_string(self.path()).unwrap()[usize::try_from(offset).unwrap()..].to_owned()
        }

        fn marks(&self) -> u64 {
            fs::metadata(beside(&self.path())).unwrap().len() / MARK
        }
    }

    #[test]
    fn what_was_written_since_a_time_is_found() {
        let log = Log::new();
        note(&log.path(), || panic!("there is no log")).unwrap();
        log.write("one\n", 900);
        log.note(1000);
        log.write("two\nthr", 1900);
        log.note(2000);
        note(&log.path(), || panic!("nothing was written")).unwrap();
        log.write("ee\n", 2900);
        log.note(3000);
        assert_eq!(log.marks(), 3);
        assert_eq!(log.since(0), "one\ntwo\nthree\n");
        assert_eq!(log.since(999), "one\ntwo\nthree\n");
        assert_eq!(log.since(1000), "two\nthree\n");
        assert_eq!(log.since(2000), "three\n", "from the start of its line");
        assert_eq!(log.since(2900), "three\n");
        assert_eq!(log.since(2901), "", "the log itself was written last before that");
        assert_eq!(log.since(u64::MAX), "");
        // Not noted yet, or by nobody: shown for every time that it may be later than.
        log.write("four\n", 9000);
        assert_eq!(log.since(5000), "four\n");
    }

    #[test]
    fn without_marks_all_may_be_recent() {
        let log = Log::new();
        log.write("one\n", 1000);
        assert_eq!(log.since(500), "one\n");
        assert_eq!(log.since(1001), "");
        forget(&log.path()).unwrap();
    }

    #[test]
    fn a_log_that_begins_anew_has_new_marks() {
        let log = Log::new();
        log.write("a long line of the boot before\n", 1000);
        log.note(1000);
        fs::write(log.path(), "").unwrap();
        log.write("new\n", 2000);
        log.note(2000);
        assert_eq!((log.marks(), log.since(1500)), (1, "new\n".to_owned()));
        forget(&log.path()).unwrap();
        assert!(!beside(&log.path()).exists());
    }

    #[test]
    fn half_a_mark_spoils_nothing() {
        let log = Log::new();
        log.write("one\n", 1000);
        log.note(1000);
        let mut marks = OpenOptions::new().append(true).open(beside(&log.path())).unwrap();
        marks.write_all(&[1, 2, 3]).unwrap();
        log.write("two\n", 2000);
        log.note(2000);
        assert_eq!((log.marks(), log.since(1000)), (2, "two\n".to_owned()));
    }

    #[test]
    fn marks_are_bounded_and_still_err_to_the_early_side() {
        let log = Log::new();
        for second in 1..=MARKS_MAX * 2 {
            log.write(&format!("{second}\n"), second * 1000);
            log.note(second * 1000);
            assert!(log.marks() <= MARKS_MAX);
        }
        for second in [1, 2, 777, MARKS_MAX, MARKS_MAX * 2 - 1] {
            let found = log.since(second * 1000);
            let first: u64 = found.lines().next().unwrap().parse().unwrap();
            // The line of the next second is always shown; a few of those before it may be.
            assert!((second.saturating_sub(4)..=second + 1).contains(&first), "{second}: {first}");
        }
    }
}
