//! Decides which VMM this host gets, and says why in one line.
//!
//! Firecracker needs a KVM that really runs guests; whether this one does, only a guest can tell. Its answer is kept for the
//! present boot of the host and the present binary.

use crate::config::VmmSetting;
use crate::host::boot_id;
use actors_sys::kvm_probe::{Unusable, probe};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::spawn_blocking;

/// Firecracker's file name, searched for in `PATH` where the config names none.
const FIRECRACKER: &str = "firecracker";
/// Where the answer is kept, in the cache directory.
const CACHE: &str = "kvm-probe.json";

/// Which VMM it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmmKind {
    Firecracker,
    /// banger-emu over QEMU.
    Emulated,
}

/// The VMM to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmmChoice {
    pub kind: VmmKind,
    pub binary: PathBuf,
    /// One line for the user.
    pub why: String,
}

/// Says why there is no VMM to use.
#[derive(Debug, thiserror::Error)]
pub enum ChooseError {
    #[error("`vmm = \"firecracker\"`, but there is no firecracker in PATH: install it or set `firecracker_bin`")]
    NoFirecracker,
    #[error("cannot run `{}`", path.display())]
    Binary { path: PathBuf, source: io::Error },
}

/// What the choice depends on.
#[derive(Clone, Debug)]
pub struct Candidates {
    pub setting: VmmSetting,
    /// From the config; searched for in `PATH` when absent.
    pub firecracker_bin: Option<PathBuf>,
    /// The banger-emu that belongs to this daemon.
    pub emulator: PathBuf,
    pub cache_dir: PathBuf,
}

/// Chooses. Takes a few milliseconds at most, but where KVM hangs: then a second or two.
///
/// # Errors
/// Where the binary asked for is not there or cannot be run.
pub async fn choose(candidates: Candidates) -> Result<VmmChoice, ChooseError> {
    let chosen =
        spawn_blocking(move || candidates.choose(std::env::var_os("PATH").unwrap_or_default().as_ref(), probe));
    chosen.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

impl Candidates {
    fn choose(
        &self,
        path: &Path,
        probe: impl FnOnce() -> Result<Duration, Unusable>,
    ) -> Result<VmmChoice, ChooseError> {
        match self.setting {
            VmmSetting::Emulated => self.emulated("as configured".to_owned()),
            VmmSetting::Firecracker => {
                // Not probed: who names a VMM may know better, or have named one that needs no KVM.
                let binary = self.firecracker(path).ok_or(ChooseError::NoFirecracker)?;
                runnable(&binary)?;
                let why = format!("`{}`, as configured", binary.display());
                Ok(VmmChoice { kind: VmmKind::Firecracker, binary, why })
            }
            VmmSetting::Auto => self.automatic(path, probe),
        }
    }

    fn automatic(
        &self,
        path: &Path,
        probe: impl FnOnce() -> Result<Duration, Unusable>,
    ) -> Result<VmmChoice, ChooseError> {
        let Some(binary) = self.firecracker(path) else {
            return self.emulated("firecracker is not installed".to_owned());
        };
        if let Err(error) = runnable(&binary) {
            return self.emulated(format!("{error}"));
        }
        match self.verdict(&binary, probe) {
            Verdict::Usable { micros } => {
                let why = format!("`{}`: KVM works (a small guest took {micros} µs)", binary.display());
                Ok(VmmChoice { kind: VmmKind::Firecracker, binary, why })
            }
            Verdict::Unusable { why } => self.emulated(why),
        }
    }

    fn emulated(&self, reason: String) -> Result<VmmChoice, ChooseError> {
        runnable(&self.emulator)?;
        let why = format!("emulation (slower than KVM): {reason}");
        Ok(VmmChoice { kind: VmmKind::Emulated, binary: self.emulator.clone(), why })
    }

    fn firecracker(&self, path: &Path) -> Option<PathBuf> {
        let search =
            || std::env::split_paths(path).map(|dir| dir.join(FIRECRACKER)).find(|file| runnable(file).is_ok());
        self.firecracker_bin.clone().or_else(search)
    }

    fn verdict(&self, binary: &Path, probe: impl FnOnce() -> Result<Duration, Unusable>) -> Verdict {
        let key = Key::of(binary);
        if let Ok(key) = &key
            && let Some(known) = self.remembered(key)
        {
            return known;
        }
        let outcome = probe();
        let lasting = !matches!(&outcome, Err(why) if !why.is_lasting());
        let verdict = match outcome {
            Ok(cost) => Verdict::Usable { micros: u64::try_from(cost.as_micros()).unwrap_or(u64::MAX) },
            Err(why) => Verdict::Unusable { why: why.to_string() },
        };
        // A permission may be granted, a busy host may calm down: those answers are asked for again.
        if lasting && let Err(error) = key.and_then(|key| self.remember(&Answer { key, verdict: verdict.clone() })) {
            tracing::warn!(%error, "cannot keep the answer of the KVM probe");
        }
        verdict
    }

    fn remembered(&self, key: &Key) -> Option<Verdict> {
        let text = std::fs::read(self.cache_dir.join(CACHE)).ok()?;
        let answer: Answer = serde_json::from_slice(&text).ok()?;
        (answer.key == *key).then_some(answer.verdict)
    }

    fn remember(&self, answer: &Answer) -> io::Result<()> {
        std::fs::create_dir_all(&self.cache_dir)?;
        // Never half a file: another daemon may be reading it.
        let mut file = tempfile::NamedTempFile::new_in(&self.cache_dir)?;
        serde_json::to_writer(&mut file, answer)?;
        file.persist(self.cache_dir.join(CACHE))?;
        Ok(())
    }
}

/// One answer of the probe, and what it was the answer for.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    key: Key,
    verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Usable { micros: u64 },
    Unusable { why: String },
}

/// What an answer holds for: this boot of the host, and this very binary.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    boot: String,
    binary: PathBuf,
    size: u64,
    modified: (i64, i64),
}

impl Key {
    fn of(binary: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(binary)?;
        Ok(Self {
            boot: boot_id()?,
            binary: binary.to_owned(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

fn runnable(path: &Path) -> Result<(), ChooseError> {
    let wrong = |source| ChooseError::Binary { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(wrong)?;
    if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        Ok(())
    } else {
        Err(wrong(io::Error::new(io::ErrorKind::PermissionDenied, "not an executable file")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use tempfile::TempDir;

    fn executable(dir: &TempDir, name: &str) -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn candidates(dir: &TempDir, setting: VmmSetting) -> Candidates {
        Candidates {
            setting,
            firecracker_bin: None,
            emulator: executable(dir, "banger-emu"),
            cache_dir: dir.path().join("cache"),
        }
    }

    const FAST: Duration = Duration::from_micros(700);

    #[test]
    fn auto_takes_firecracker_where_kvm_works() {
        let dir = tempfile::tempdir().unwrap();
        let firecracker = executable(&dir, "firecracker");
        let choice = candidates(&dir, VmmSetting::Auto).choose(dir.path(), || Ok(FAST)).unwrap();
        assert_eq!((choice.kind, choice.binary), (VmmKind::Firecracker, firecracker));
        assert!(choice.why.ends_with("firecracker`: KVM works (a small guest took 700 µs)"), "{}", choice.why);
    }

    #[test]
    fn auto_emulates_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let choose = |answer| candidates(&dir, VmmSetting::Auto).choose(dir.path(), || answer).unwrap();
        let choice = choose(Ok(FAST));
        assert_eq!(choice.kind, VmmKind::Emulated);
        assert_eq!(choice.why, "emulation (slower than KVM): firecracker is not installed");
        executable(&dir, "firecracker");
        assert_eq!(choose(Err(Unusable::NoDevice)).why, "emulation (slower than KVM): there is no /dev/kvm");
    }

    #[test]
    fn a_lasting_answer_is_asked_for_once_for_each_binary() {
        let dir = tempfile::tempdir().unwrap();
        let firecracker = executable(&dir, "firecracker");
        let candidates = candidates(&dir, VmmSetting::Auto);
        let asked = Cell::new(0);
        let choose = |answer: Result<Duration, Unusable>| {
            let probe = || {
                asked.set(asked.get() + 1);
                answer
            };
            (candidates.choose(dir.path(), probe).unwrap().kind, asked.get())
        };
        assert_eq!(choose(Err(Unusable::Denied)), (VmmKind::Emulated, 1));
        assert_eq!(choose(Err(Unusable::TimedOut)), (VmmKind::Emulated, 2));
        assert_eq!(choose(Err(Unusable::Ended("Shutdown".into()))), (VmmKind::Emulated, 3));
        assert_eq!(choose(Ok(FAST)), (VmmKind::Emulated, 3));
        std::fs::write(&firecracker, "#!/bin/sh\n# another\n").unwrap();
        assert_eq!(choose(Ok(FAST)), (VmmKind::Firecracker, 4));
        std::fs::write(candidates.cache_dir.join(CACHE), "not json").unwrap();
        assert_eq!(choose(Ok(FAST)), (VmmKind::Firecracker, 5));
    }

    #[test]
    fn what_is_named_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let never = || -> Result<Duration, Unusable> { panic!("not to be asked") };
        let mut named = candidates(&dir, VmmSetting::Firecracker);
        assert!(matches!(named.choose(dir.path(), never), Err(ChooseError::NoFirecracker)));
        named.firecracker_bin = Some(dir.path().join("nowhere"));
        assert!(matches!(named.choose(dir.path(), never), Err(ChooseError::Binary { .. })));
        named.firecracker_bin = Some(executable(&dir, "wrapper"));
        assert_eq!(named.choose(dir.path(), never).unwrap().kind, VmmKind::Firecracker);
        named.setting = VmmSetting::Emulated;
        assert_eq!(named.choose(dir.path(), never).unwrap().kind, VmmKind::Emulated);
        std::fs::set_permissions(&named.emulator, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(named.choose(dir.path(), never), Err(ChooseError::Binary { .. })));
    }
}
