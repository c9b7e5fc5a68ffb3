//! Scripted faults, for tests of whoever drives this: hang, refuse, die or answer late at a named moment.
//!
//! A script is a JSON list, or TOML with `[[fault]]` tables:
//! `[{"at": "instance_start", "do": "late", "ms": 200}, {"at": "connect", "do": "refuse", "times": 3}]`

use crate::emu::phase::Operation;
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// When a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Before the API socket exists.
    Launch,
    /// An API call, before it is carried out. `resume` of a snapshot load is not looked at.
    Operation(Operation),
    /// After a started instance has been answered.
    AfterStart,
    /// A `CONNECT` on the vsock socket.
    Connect,
    /// A stream that the guest opens.
    GuestConnect,
}

impl Moment {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "launch" => Self::Launch,
            "after_start" => Self::AfterStart,
            "connect" => Self::Connect,
            "guest_connect" => Self::GuestConnect,
            name => Self::Operation(Operation::ALL.into_iter().find(|operation| operation.as_str() == name)?),
        })
    }

    /// The name that scripts use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Launch => "launch",
            Self::Operation(operation) => operation.as_str(),
            Self::AfterStart => "after_start",
            Self::Connect => "connect",
            Self::GuestConnect => "guest_connect",
        }
    }
}

/// What happens then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Never answers. After the start: the process stops as by SIGSTOP, while the guest runs on.
    Hang,
    /// Answers that it won't.
    Refuse,
    /// The whole process dies by SIGKILL, after `ms` where given.
    Die,
    /// Goes on after `ms`.
    Late,
}

/// What a caller has to do about a fault; `die` never gets here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Proceed,
    Refuse,
}

/// Says why a script cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    #[error("cannot read the script")]
    Read(#[source] std::io::Error),
    #[error("the script is neither a JSON list nor TOML with `[[fault]]` tables")]
    Syntax(#[source] toml::de::Error),
    #[error("the script is not a JSON list of faults")]
    Json(#[source] serde_json::Error),
    #[error("the script names an unknown moment `{0}`")]
    UnknownMoment(String),
    #[error("`late` at `{0}` needs `ms`")]
    LateWithoutTime(String),
    #[error("nothing can be refused at `{0}`")]
    Unrefusable(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    at: String,
    #[serde(rename = "do")]
    action: Action,
    ms: Option<u64>,
    times: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    #[serde(default)]
    fault: Vec<Entry>,
}

#[derive(Debug)]
struct Fault {
    at: Moment,
    action: Action,
    delay: Duration,
    /// How often it still strikes; [`ALWAYS`] never runs out.
    left: AtomicU32,
}

const ALWAYS: u32 = u32::MAX;

impl Fault {
    /// Whether it strikes now; counts.
    fn strikes(&self, moment: Moment) -> bool {
        let count = |left| match left {
            ALWAYS => Some(ALWAYS),
            left => u32::checked_sub(left, 1),
        };
        // One thread: the order is the program's own.
        self.at.as_str() == moment.as_str()
            && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_ok()
    }
}

/// A script; empty by default. Cheap to clone, and the clones share their counts.
#[derive(Clone, Debug, Default)]
pub struct Script {
    faults: Arc<Vec<Fault>>,
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub fn load(path: &Path) -> Result<Self, ScriptError> {
        Self::parse(&std::fs::read_to_string(path).map_err(ScriptError::Read)?)
    }

    /// Parses a script.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        let entries: Vec<Entry> = if text.trim_start().starts_with("[{") || text.trim() == "[]" {
            serde_json::from_str(text).map_err(ScriptError::Json)?
        } else {
            toml::from_str::<Tables>(text).map_err(ScriptError::Syntax)?.fault
        };
        let faults = entries.into_iter().map(Self::fault).collect::<Result<_, _>>()?;
        Ok(Self { faults: Arc::new(faults) })
    }

    fn fault(entry: Entry) -> Result<Fault, ScriptError> {
        let Some(at) = Moment::parse(&entry.at) else {
            return Err(ScriptError::UnknownMoment(entry.at));
        };
        if entry.action == Action::Late && entry.ms.is_none() {
            return Err(ScriptError::LateWithoutTime(entry.at));
        }
        if entry.action == Action::Refuse && matches!(at, Moment::Launch | Moment::AfterStart) {
            return Err(ScriptError::Unrefusable(entry.at));
        }
        let delay = Duration::from_millis(entry.ms.unwrap_or(0));
        Ok(Fault { at, action: entry.action, delay, left: AtomicU32::new(entry.times.unwrap_or(ALWAYS)) })
    }

    /// Lives through `moment`: waits, hangs or dies as the script says, or tells the caller to go on or to refuse.
    pub async fn play(&self, moment: Moment) -> Verdict {
        let Some(fault) = self.faults.iter().find(|fault| fault.strikes(moment)) else {
            return Verdict::Proceed;
        };
        tracing::warn!(at = moment.as_str(), action = ?fault.action, "a scripted fault");
        match fault.action {
            Action::Late => {
                tokio::time::sleep(fault.delay).await;
                Verdict::Proceed
            }
            Action::Refuse => Verdict::Refuse,
            Action::Hang => {
                // Between calls there is nothing to leave unanswered: the process itself stops.
                if moment == Moment::AfterStart
                    && let Err(error) = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP)
                {
                    tracing::error!(%error, "cannot hang");
                }
                std::future::pending().await
            }
            Action::Die => {
                tokio::time::sleep(fault.delay).await;
                // As a crash: nothing is cleaned up. The process cannot outlive this, so its own pid is the right one.
                if nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).is_err() {
                    std::process::abort();
                }
                std::future::pending().await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn faults_strike_as_often_as_they_say() {
        let script = Script::parse(r#"[{"at":"drives","do":"refuse","times":2},{"at":"pause","do":"late","ms":50}]"#);
        let script = script.unwrap();
        let drives = Moment::Operation(Operation::Drives);
        assert_eq!(script.play(drives).await, Verdict::Refuse);
        assert_eq!(script.clone().play(drives).await, Verdict::Refuse);
        assert_eq!(script.play(drives).await, Verdict::Proceed);
        let before = std::time::Instant::now();
        assert_eq!(script.play(Moment::Operation(Operation::Pause)).await, Verdict::Proceed);
        assert!(before.elapsed().as_millis() >= 50);
    }

    #[tokio::test]
    async fn a_hang_never_ends_and_a_load_is_one_moment_however_it_resumes() {
        let script = Script::parse("[[fault]]\nat = \"snapshot_load\"\ndo = \"hang\"\n").unwrap();
        let moment = Moment::Operation(Operation::SnapshotLoad { resume: true });
        // Nothing could wake it: it waits for no timer and no descriptor.
        assert!(script.play(moment).now_or_never().is_none());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let error = |text: &str| Script::parse(text).unwrap_err().to_string();
        assert_eq!(error(r#"[{"at":"lunch","do":"die"}]"#), "the script names an unknown moment `lunch`");
        assert_eq!(error(r#"[{"at":"pause","do":"late"}]"#), "`late` at `pause` needs `ms`");
        assert_eq!(error(r#"[{"at":"launch","do":"refuse"}]"#), "nothing can be refused at `launch`");
        assert!(Script::parse("[]").unwrap().faults.is_empty());
    }
}
