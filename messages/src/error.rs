//! The error that crosses a socket: a kind with a stable exit code, the chain of causes, and what to do next.

use crate::limits::ERROR_MESSAGE_MAX;
use serde::{Deserialize, Serialize};

/// What went wrong, as a program sees it. Append only; the exit codes are documented in `docs/errors.md` and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// Flags, names, sizes or config that cannot be right.
    Usage,
    /// No such VM, image or kernel.
    NotFound,
    /// The name is taken, or the object is in use.
    Conflict,
    /// The object is in a state that does not allow this.
    WrongState,
    /// The host cannot hold it: memory, disk, count.
    Resources,
    /// Something of the host is missing or refuses: QEMU, KVM, helper, permissions.
    Host,
    /// The VMM or the guest failed or did not become ready.
    Guest,
    /// It took longer than its deadline.
    Timeout,
    /// The peer speaks another protocol generation, or broke the protocol.
    Protocol,
    /// The daemon is not there, or is going away.
    Unavailable,
    /// Interrupted by the user.
    Cancelled,
    /// Nobody can know whether it happened; reconcile will tell.
    Lost,
    /// A bug of banger's.
    Internal,
    /// A download or a verification failed.
    Download,
}

impl ErrorKind {
    /// Every kind, in wire order.
    pub const ALL: [Self; 14] = [
        Self::Usage,
        Self::NotFound,
        Self::Conflict,
        Self::WrongState,
        Self::Resources,
        Self::Host,
        Self::Guest,
        Self::Timeout,
        Self::Protocol,
        Self::Unavailable,
        Self::Cancelled,
        Self::Lost,
        Self::Internal,
        Self::Download,
    ];

    /// The exit code of a `banger` that failed this way. A command in a guest uses 0 to 125 (and 128 + n for signals), so
    /// ours lie at 200 and up, apart from 2, which is clap's for usage errors.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::NotFound => 201,
            Self::Conflict => 202,
            Self::WrongState => 203,
            Self::Resources => 204,
            Self::Host => 205,
            Self::Guest => 206,
            Self::Timeout => 207,
            Self::Protocol => 208,
            Self::Unavailable => 209,
            Self::Cancelled => 210,
            Self::Lost => 211,
            Self::Internal => 212,
            Self::Download => 213,
        }
    }

    /// The name of this kind in `--json` output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::WrongState => "wrong_state",
            Self::Resources => "resources",
            Self::Host => "host",
            Self::Guest => "guest",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Unavailable => "unavailable",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
            Self::Internal => "internal",
            Self::Download => "download",
        }
    }
}

/// An error as it crosses a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// Decides the exit code.
    pub kind: ErrorKind,
    /// What failed, then why, outermost first; never empty.
    pub chain: Vec<String>,
    /// What to do next; commands in backticks.
    pub hints: Vec<String>,
}

impl WireError {
    /// An error of one sentence.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, chain: vec![cut(message.into())], hints: Vec::new() }
    }

    /// The error and all of its sources.
    #[must_use]
    pub fn from_error(kind: ErrorKind, error: &(dyn std::error::Error + 'static)) -> Self {
        let chain = std::iter::successors(Some(error), |e| e.source()).map(|e| cut(e.to_string())).collect();
        Self { kind, chain, hints: Vec::new() }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(cut(hint.into()));
        self
    }

    /// Puts what was being done in front of the chain.
    #[must_use]
    pub fn context(mut self, message: impl Into<String>) -> Self {
        self.chain.insert(0, cut(message.into()));
        self
    }
}

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.chain.join(": "))
    }
}

impl std::error::Error for WireError {}

fn cut(mut message: String) -> String {
    if message.len() > ERROR_MESSAGE_MAX {
        let end = (0..=ERROR_MESSAGE_MAX).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
        message.truncate(end);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn exit_codes_are_distinct_and_leave_room_for_the_guest() {
        let codes: HashSet<u8> = ErrorKind::ALL.iter().map(|kind| kind.exit_code()).collect();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
        assert!(codes.iter().all(|code| *code == 2 || *code >= 200));
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let error = WireError::new(ErrorKind::Guest, "ü".repeat(ERROR_MESSAGE_MAX));
        assert_eq!(error.chain[0].len(), ERROR_MESSAGE_MAX);
    }
}
