//! How a command of the CLI fails, and how that is said. Decides exit codes; `docs/errors.md` lists them.

use super::printable::brief;
use messages::error::{ErrorKind, WireError};
use messages::frame::FrameError;
use std::io;

/// The exit code after Ctrl-C, as a shell reports it.
pub(super) const INTERRUPTED: u8 = 128 + 2;
/// The exit code of a filter whose reader left, as a shell reports it (128 + SIGPIPE).
pub(super) const BROKEN_PIPE: u8 = 128 + 13;

/// The exit code of a program that the guest does not have, as a shell reports it.
const PROGRAM_NOT_FOUND: u8 = 127;
/// The exit code of a program that the guest has and cannot run, as a shell reports it.
const PROGRAM_NOT_RUN: u8 = 126;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// To be told to the user.
    Error(Box<WireError>),
    /// The guest could not run the program: told like an error, with a shell's exit code.
    NotRun(Box<WireError>),
    /// Nobody reads our stdout any more: leave silently, as a filter does.
    BrokenPipe,
    /// Everything has been said; leave with this code.
    Said(u8),
}

/// What a command comes to: the exit code, or a failure.
pub(super) type Outcome = Result<u8, Failure>;

impl Failure {
    /// An error of one sentence.
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        WireError::new(kind, message).into()
    }

    /// A failed system call, and what it was for.
    pub(super) fn io(kind: ErrorKind, message: impl Into<String>, source: &(dyn std::error::Error + 'static)) -> Self {
        WireError::from_error(kind, source).context(message).into()
    }

    /// An error that needs no words of ours.
    pub(super) fn io_only(kind: ErrorKind, error: &(dyn std::error::Error + 'static)) -> Self {
        WireError::from_error(kind, error).into()
    }

    /// A usage error that clap cannot see.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// Adds what to do next.
    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        match self {
            Self::Error(error) => Self::Error(Box::new(error.hint(hint))),
            Self::NotRun(error) => Self::NotRun(Box::new(error.hint(hint))),
            other => other,
        }
    }

    /// The exit code.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Error(error) if error.kind == ErrorKind::Cancelled => INTERRUPTED,
            Self::Error(error) => error.kind.exit_code(),
            Self::NotRun(error) => match error.kind {
                ErrorKind::NotFound => PROGRAM_NOT_FOUND,
                ErrorKind::Guest => PROGRAM_NOT_RUN,
                other => other.exit_code(),
            },
            Self::BrokenPipe => BROKEN_PIPE,
            Self::Said(code) => *code,
        }
    }

    /// Ctrl-C before any command ran.
    pub(super) fn interrupted(what: &str) -> Self {
        Self::new(ErrorKind::Cancelled, format!("interrupted while waiting for {what}"))
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self::Error(Box::new(error))
    }
}

/// Of writes to stdout.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::BrokenPipe
        } else {
            Self::io(ErrorKind::Host, "failed to write to stdout", &error)
        }
    }
}

/// Names both versions and the way out.
pub(super) fn mismatch(error: &FrameError) -> Option<Failure> {
    let FrameError::Generation { theirs, their_generation, ours, our_generation } = error else { return None };
    let sentence = format!(
        "the running bangerd is {} (protocol {their_generation}), this is banger {ours} (protocol {our_generation})",
        brief(theirs)
    );
    Some(Failure::new(ErrorKind::Protocol, sentence).hint(
        "`banger daemon stop`, then try again: the next command starts the matching daemon, and VMs keep running",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_names_both_versions_and_the_fix() {
        let error = FrameError::Generation {
            theirs: "9.9.9\u{1b}[2J".to_owned(),
            their_generation: 9,
            ours: "0.1.0".to_owned(),
            our_generation: 1,
        };
        let Some(Failure::Error(error)) = mismatch(&error) else { panic!("a mismatch is an error") };
        assert_eq!(error.chain, ["the running bangerd is 9.9.9 [2J (protocol 9), this is banger 0.1.0 (protocol 1)"]);
        assert!(error.hints[0].contains("`banger daemon stop`"));
    }
}
