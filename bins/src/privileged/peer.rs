//! Who may speak: decided by the kernel's word on the peer (`SO_PEERCRED`), before a byte of the peer's is read.

use messages::error::{ErrorKind, WireError};

/// What a peer is told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Admitted,
    Refused,
}

/// Admits the owner, and root: root could be the owner at will, and needs `Status` to stop this process.
#[must_use]
pub(super) fn admit(peer_uid: u32, owner_uid: u32) -> Admission {
    if peer_uid == owner_uid || peer_uid == 0 { Admission::Admitted } else { Admission::Refused }
}

/// What a refused peer is told, in answer to anything.
#[must_use]
pub(super) fn refusal(peer_uid: u32, owner_uid: u32) -> WireError {
    WireError::new(ErrorKind::Host, format!("the network helper serves uid {owner_uid}, and you are uid {peer_uid}"))
        .hint("run your own at another BANGER_ROOT_SOCKET, set for it and for the daemon, or use `--net none`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_and_root_are_admitted() {
        assert_eq!(admit(1000, 1000), Admission::Admitted);
        assert_eq!(admit(0, 1000), Admission::Admitted);
        assert_eq!(admit(1001, 1000), Admission::Refused);
    }
}
