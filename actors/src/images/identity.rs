//! What of a system is one machine's own and must not be in an image: every VM is given its own at boot.

use crate::ext4::tarball::Verdict;

/// What becomes of a path of the system that is made into an image.
#[must_use]
pub fn judge(path: &[u8]) -> Verdict {
    match path {
        // Empty, not absent: systemd takes an absent one for a first boot and asks questions.
        b"etc/machine-id" => Verdict::Empty,
        // The build host's, copied in by the builder.
        b"etc/hostname" | b"etc/resolv.conf" => Verdict::Drop,
        b"var/lib/dbus/machine-id" | b"var/lib/systemd/random-seed" | b"var/lib/urandom/random-seed" => Verdict::Drop,
        _ if is_host_key(path) => Verdict::Drop,
        _ => Verdict::Keep,
    }
}

/// `etc/ssh/ssh_host_ed25519_key` and its kin, with `.pub` too.
fn is_host_key(path: &[u8]) -> bool {
    path.strip_prefix(b"etc/ssh/ssh_host_").is_some_and(|rest| {
        let rest = rest.strip_suffix(b".pub").unwrap_or(rest);
        rest.ends_with(b"_key") && !rest.contains(&b'/')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_stripped_and_nothing_else() {
        assert_eq!(judge(b"etc/machine-id"), Verdict::Empty);
        for gone in ["etc/hostname", "etc/resolv.conf", "etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_ed25519_key.pub"]
        {
            assert_eq!(judge(gone.as_bytes()), Verdict::Drop, "{gone}");
        }
        for kept in ["etc/ssh/sshd_config", "etc/ssh/ssh_host_keys.d/x_key", "etc/hosts", "usr/etc/machine-id", ""] {
            assert_eq!(judge(kept.as_bytes()), Verdict::Keep, "{kept}");
        }
    }
}
