//! A handshake with a guest's SSH server: what readiness `ssh` means. The server is a guest's, so hostile: it is given a
//! deadline by the caller, its key must be the one that the VM was given, and nothing that it says is kept.

use super::ManagedKey;
use super::host_key::public_key;
use messages::error::{ErrorKind, WireError};
use messages::vm::SshPublicKey;
use russh::Disconnect;
use russh::client::{self, Handler};
use russh::keys::{PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Every VM's images have it, and the managed key is in its `authorized_keys`.
const USER: &str = "root";
/// A server that says nothing for so long is not there.
const SILENCE: Duration = Duration::from_secs(30);

/// Says why a guest's SSH does not answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("the guest's SSH server shows a host key that it was not given")]
    WrongHostKey,
    #[error("the guest's SSH server refuses the managed key for `{USER}`")]
    Refused,
    #[error("the SSH key has a passphrase, so the daemon cannot try whether SSH answers")]
    Locked,
    #[error("the SSH handshake with the guest failed")]
    Handshake(#[source] russh::Error),
}

impl ProbeError {
    /// Whether another attempt could end otherwise: an sshd that is just starting may break anything off.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::WrongHostKey | Self::Locked => true,
            Self::Refused | Self::Handshake(_) => false,
        }
    }

    /// As it crosses a socket.
    #[must_use]
    pub fn to_wire(&self) -> WireError {
        let error = WireError::from_error(ErrorKind::Guest, self);
        match self {
            Self::Locked => error.hint("wait for `system`, and connect with `ssh-agent` running"),
            Self::WrongHostKey | Self::Refused | Self::Handshake(_) => error,
        }
    }
}

struct Pinned {
    key: PublicKey,
    /// Set where the server showed another one.
    wrong: Arc<AtomicBool>,
}

impl Handler for Pinned {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let right =
            matches!(shown, PublicKeyOrCertificate::PublicKey { key, .. } if key.key_data() == self.key.key_data());
        self.wrong.store(!right, Ordering::Relaxed);
        Ok(right)
    }
}

/// Connects as `ssh` would, proves who we are, and hangs up. Has no deadline of its own.
///
/// # Errors
/// [`ProbeError`].
pub async fn handshake<S>(stream: S, host: &SshPublicKey, key: ManagedKey) -> Result<(), ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if key.private.is_encrypted() {
        return Err(ProbeError::Locked);
    }
    let config = client::Config { inactivity_timeout: Some(SILENCE), ..client::Config::default() };
    let wrong = Arc::new(AtomicBool::new(false));
    let pinned = Pinned { key: public_key(host), wrong: Arc::clone(&wrong) };
    let failed =
        |error| if wrong.load(Ordering::Relaxed) { ProbeError::WrongHostKey } else { ProbeError::Handshake(error) };
    let mut session = client::connect_stream(Arc::new(config), stream, pinned).await.map_err(failed)?;
    let proof = PrivateKeyWithHashAlg::new(Arc::new(key.private), None);
    let answer = session.authenticate_publickey(USER, proof).await.map_err(ProbeError::Handshake)?;
    // It has answered: whether it also hears our goodbye changes nothing.
    session.disconnect(Disconnect::ByApplication, "", "").await.ok();
    if answer.success() { Ok(()) } else { Err(ProbeError::Refused) }
}

#[cfg(test)]
mod tests {
    use super::super::{HostKey, KeyPlace};
    use super::*;
    use russh::keys::PrivateKey;
    use russh::server::{self, Auth, VerifiedPublicKey};

    struct Server {
        lets_in: PublicKey,
    }

    impl server::Handler for Server {
        type Error = russh::Error;

        async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
            let known = user == USER && key.public_key.key_data() == self.lets_in.key_data();
            Ok(if known { Auth::Accept } else { Auth::reject() })
        }
    }

    fn key() -> ManagedKey {
        let dir = tempfile::tempdir().unwrap();
        KeyPlace { path: dir.path().join("key"), ours: true }.load().unwrap()
    }

    async fn against(
        shows: &HostKey,
        given: &HostKey,
        lets_in: &ManagedKey,
        ours: &ManagedKey,
    ) -> Result<(), ProbeError> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let host = PrivateKey::from_openssh(shows.for_guest().private).unwrap();
        let config = server::Config {
            keys: vec![host],
            auth_rejection_time: std::time::Duration::ZERO,
            ..server::Config::default()
        };
        let handler = Server { lets_in: lets_in.private.public_key().clone() };
        let serving = tokio::spawn(async move { server::run_stream(Arc::new(config), far, handler).await?.await });
        let result = handshake(near, &given.public(), ours.clone()).await;
        // However the server's side ended: it ends.
        drop(tokio::time::timeout(std::time::Duration::from_secs(10), serving).await.expect("it hangs up"));
        result
    }

    #[tokio::test]
    async fn the_given_host_key_and_the_managed_key_make_a_handshake() {
        let (host, other, ours, theirs) = (HostKey::generate().unwrap(), HostKey::generate().unwrap(), key(), key());
        against(&host, &host, &ours, &ours).await.unwrap();
        assert!(matches!(against(&other, &host, &ours, &ours).await, Err(ProbeError::WrongHostKey)));
        assert!(matches!(against(&host, &host, &theirs, &ours).await, Err(ProbeError::Refused)));
    }

    #[tokio::test]
    async fn a_server_of_nonsense_is_an_error() {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        tokio::io::AsyncWriteExt::write_all(&mut far, &[b'x'; 4096]).await.unwrap();
        drop(far);
        let result = handshake(near, &HostKey::generate().unwrap().public(), key()).await;
        assert!(matches!(result, Err(ProbeError::Handshake(_))), "{result:?}");
    }
}
