//! The key that opens every VM: `ssh_key_path`, or one of the daemon's own that is made when it is absent. Read anew at each
//! boot of a VM, so that a mended key needs no restart of the daemon. Never writes outside of the state directory.

use crate::config::Config;
use crate::paths::Paths;
use messages::error::{ErrorKind, WireError};
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{self, LineEnding, PrivateKey};
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What others may do with a private key: nothing. `ssh` itself refuses such files, and would only say so to the user.
const OTHERS: u32 = 0o077;
/// No key file is longer: an RSA key of 16,384 bits takes a fifth of it.
const KEY_FILE_MAX: u64 = 64 << 10;
/// What the managed key calls itself.
const COMMENT: &str = "banger";

/// Says why there is no key to open VMs with.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the SSH key `{}` does not exist (`ssh_key_path` in the config)", path.display())]
    Absent { path: PathBuf },
    #[error("the SSH key `{}` can be used by others (mode {mode:04o}): run `chmod 600 {}`", path.display(), path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("the SSH key `{}` cannot be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is not a private key in OpenSSH's format", path.display())]
    Format {
        path: PathBuf,
        #[source]
        source: ssh_key::Error,
    },
    #[error("failed to write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the kernel gives no entropy for a key: {0}")]
    Entropy(getrandom::Error),
}

impl From<KeyError> for WireError {
    fn from(error: KeyError) -> Self {
        let wire = Self::from_error(ErrorKind::Host, &error);
        match error {
            KeyError::Absent { .. } => {
                wire.hint("make it with `ssh-keygen`, or leave `ssh_key_path` out: then banger makes one")
            }
            KeyError::Format { path, .. } => {
                wire.hint(format!("`ssh-keygen -p -f {}` rewrites an older format", path.display()))
            }
            KeyError::Open { .. } | KeyError::Read { .. } | KeyError::Write { .. } | KeyError::Entropy(_) => wire,
        }
    }
}

/// Where the key is, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPlace {
    pub path: PathBuf,
    /// Ours is made when it is absent; the user's is not.
    pub ours: bool,
}

impl KeyPlace {
    /// As the config has it, else in the state directory.
    #[must_use]
    pub fn new(config: &Config, paths: &Paths) -> Self {
        match &config.ssh_key_path {
            Some(path) => Self { path: path.clone(), ours: false },
            None => Self { path: paths.ssh_dir().join("id_ed25519"), ours: true },
        }
    }

    /// Reads the key; makes it first where it is ours and absent. Blocks for a moment.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load(&self) -> Result<ManagedKey, KeyError> {
        match self.read() {
            Err(KeyError::Absent { .. }) if self.ours => {
                self.make()?;
                self.read()
            }
            result => result,
        }
    }

    fn read(&self) -> Result<ManagedKey, KeyError> {
        let path = &self.path;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => KeyError::Absent { path: path.clone() },
            _ => KeyError::Read { path: path.clone(), source },
        };
        // A fifo in its place must not hold us for ever.
        let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & OTHERS != 0 {
            return Err(KeyError::Open { path: path.clone(), mode });
        }
        let mut text = String::new();
        file.take(KEY_FILE_MAX).read_to_string(&mut text).map_err(failed)?;
        let private =
            PrivateKey::from_openssh(&text).map_err(|source| KeyError::Format { path: path.clone(), source })?;
        let public = private.public_key().to_openssh();
        let public = public.map_err(|source| KeyError::Format { path: path.clone(), source })?;
        Ok(ManagedKey { private, public })
    }

    /// Of two that make it at once, one wins, and both read the same.
    fn make(&self) -> Result<(), KeyError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(KeyError::Entropy)?;
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed));
        let encoded = PrivateKey::new(pair, COMMENT)
            .and_then(|key| Ok((key.to_openssh(LineEnding::LF)?, key.public_key().to_openssh()?)));
        let (private, public) = encoded.map_err(|source| KeyError::Format { path: self.path.clone(), source })?;
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| KeyError::Write { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed(dir))?;
        let named = |suffix: &str| {
            let mut name = self.path.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        let draft = named(&format!(".{}", hex::encode(seed_name()?)));
        write_new(&draft, private.as_bytes(), 0o600).map_err(failed(&draft))?;
        let linked = fs::hard_link(&draft, &self.path);
        fs::remove_file(&draft).map_err(failed(&draft))?;
        match linked {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            linked => linked.map_err(failed(&self.path))?,
        }
        let beside = named(".pub");
        fs::write(&beside, format!("{public}\n")).map_err(failed(&beside))
    }
}

/// Eight random bytes, for a name that nobody else has.
fn seed_name() -> Result<[u8; 8], KeyError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(KeyError::Entropy)?;
    Ok(bytes)
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// The key, read.
#[derive(Clone, Debug)]
pub struct ManagedKey {
    /// May still be locked by a passphrase.
    pub private: PrivateKey,
    /// A line for `authorized_keys`.
    pub public: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;

    fn place(dir: &Path, ours: bool) -> KeyPlace {
        KeyPlace { path: dir.join("ssh/id_ed25519"), ours }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn ours_is_made_once_with_closed_modes_and_its_public_half_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path(), true);
        let made = place.load().unwrap();
        assert_eq!((mode(&place.path), mode(&dir.path().join("ssh"))), (0o600, 0o700));
        assert_eq!(place.load().unwrap().public, made.public);
        assert!(made.public.starts_with("ssh-ed25519 AAAA") && made.public.ends_with(" banger"), "{}", made.public);
        assert_eq!(fs::read_to_string(dir.path().join("ssh/id_ed25519.pub")).unwrap(), made.public.clone() + "\n");
        assert_eq!(fs::read_dir(dir.path().join("ssh")).unwrap().count(), 2, "no draft is left");
    }

    #[test]
    fn many_that_make_it_at_once_have_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path(), true);
        let keys: Vec<String> = std::thread::scope(|scope| {
            let load = || place.load().unwrap().public;
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn open_modes_are_refused_with_the_command_that_mends_them() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path(), true);
        place.load().unwrap();
        for open in [0o644, 0o640, 0o606] {
            fs::set_permissions(&place.path, Permissions::from_mode(open)).unwrap();
            let error = WireError::from(place.load().unwrap_err());
            let expected = format!("(mode {open:04o}): run `chmod 600 {}`", place.path.display());
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }

    #[test]
    fn a_given_key_is_never_made_and_never_changed() {
        let dir = tempfile::tempdir().unwrap();
        let given = place(dir.path(), false);
        assert!(matches!(given.load(), Err(KeyError::Absent { .. })));
        assert!(!dir.path().join("ssh").exists());
        place(dir.path(), true).load().unwrap();
        fs::remove_file(dir.path().join("ssh/id_ed25519.pub")).unwrap();
        assert!(given.load().unwrap().public.starts_with("ssh-ed25519 "), "the public half is derived");
        assert!(!dir.path().join("ssh/id_ed25519.pub").exists());
        fs::write(&given.path, "-----BEGIN RSA PRIVATE KEY-----\nnonsense\n").unwrap();
        assert!(matches!(given.load(), Err(KeyError::Format { .. })));
        fs::remove_file(&given.path).unwrap();
        fs::create_dir(&given.path).unwrap();
        assert!(matches!(given.load(), Err(KeyError::Read { .. } | KeyError::Open { .. })));
    }
}
