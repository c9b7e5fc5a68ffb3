//! What a VM's SSH server proves itself with: an ed25519 key made by the daemon and given to the guest at each boot, so that
//! every client on this host knows it before the first connection.

use messages::guest::SshHostKey;
use messages::vm::SshPublicKey;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::public::{Ed25519PublicKey, KeyData};
use russh::keys::ssh_key::{HashAlg, LineEnding, PrivateKey, PublicKey};

/// The length of an ed25519 key's halves, in bytes (RFC 8032).
const HALF: usize = 32;

/// An ed25519 key pair, as it is kept in the store: seed, then public half.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey([u8; 2 * HALF]);

/// The seed is nobody's to read in a log.
impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostKey")
    }
}

/// A bug: every key of 32 bytes has an encoding.
const ENCODES: &str = "an ed25519 key always has its OpenSSH form";

impl HostKey {
    /// Makes a new one.
    ///
    /// # Errors
    /// The kernel gives no entropy.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut seed = [0; HALF];
        getrandom::fill(&mut seed)?;
        Ok(Self(Ed25519Keypair::from_seed(&seed).to_bytes()))
    }

    /// The bytes to keep.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 2 * HALF] {
        &self.0
    }

    /// From what was kept.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 2 * HALF]) -> Self {
        Self(bytes)
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> SshPublicKey {
        let mut public = [0; HALF];
        public.copy_from_slice(&self.0[HALF..]);
        SshPublicKey(public)
    }

    /// Both halves, for the guest.
    #[must_use]
    pub fn for_guest(&self) -> SshHostKey {
        let mut seed = [0; HALF];
        seed.copy_from_slice(&self.0[..HALF]);
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
        let private = PrivateKey::new(pair, "").expect(ENCODES).to_openssh(LineEnding::LF).expect(ENCODES);
        SshHostKey { private: private.to_string(), public: line(&self.public()) }
    }
}

pub(super) fn public_key(key: &SshPublicKey) -> PublicKey {
    PublicKey::from(KeyData::Ed25519(Ed25519PublicKey(key.0)))
}

/// A public key as in `authorized_keys` and `known_hosts`: `ssh-ed25519 AAAA…`, without a comment.
///
/// # Panics
/// Never: every key has its text.
#[must_use]
pub fn line(key: &SshPublicKey) -> String {
    public_key(key).to_openssh().expect(ENCODES)
}

/// A public key as `ssh-keygen -l` prints it: `SHA256:…`.
#[must_use]
pub fn fingerprint(key: &SshPublicKey) -> String {
    public_key(key).fingerprint(HashAlg::Sha256).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_its_bytes_and_both_forms_agree() {
        let key = HostKey::generate().unwrap();
        assert_eq!(HostKey::from_bytes(*key.as_bytes()), key);
        let given = key.for_guest();
        let parsed = PrivateKey::from_openssh(&given.private).unwrap();
        assert_eq!(parsed.public_key().key_data(), public_key(&key.public()).key_data());
        assert_eq!(given.public, line(&key.public()));
        assert!(given.public.starts_with("ssh-ed25519 AAAA") && !given.public.ends_with(' '), "{}", given.public);
        assert!(fingerprint(&key.public()).starts_with("SHA256:"));
        assert_ne!(HostKey::generate().unwrap(), key);
        assert!(!format!("{key:?} {given:?}").contains("PRIVATE"));
    }
}
