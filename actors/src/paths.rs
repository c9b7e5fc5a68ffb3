//! Every path of one instance, and the environment variables that move them. Makes and opens nothing.

use messages::ids::{InstanceId, VmId};
use messages::limits::SOCKET_PATH_MAX;
use sha2::{Digest as _, Sha256};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Overrides the state directory; makes a second instance.
pub const STATE_DIR_ENV: &str = "BANGER_STATE_DIR";
/// Overrides the cache directory.
pub const CACHE_DIR_ENV: &str = "BANGER_CACHE_DIR";
/// Overrides the directory of `bangerd.sock`.
pub const RUNTIME_DIR_ENV: &str = "BANGER_RUNTIME_DIR";
/// Overrides the config file.
pub const CONFIG_ENV: &str = "BANGER_CONFIG";
/// Overrides the socket of `bangerd-root`.
pub const ROOT_SOCKET_ENV: &str = "BANGER_ROOT_SOCKET";
/// Overrides where `banger-emu` and `banger-agent` are looked for.
pub const LIBEXEC_ENV: &str = "BANGER_LIBEXEC";
/// Where `bangerd-root` listens unless told otherwise.
pub const DEFAULT_ROOT_SOCKET: &str = "/run/banger-root/bangerd-root.sock";
/// The longest suffix that a VM's sockets get: `v.sock_1024`.
const LONGEST_VM_SOCKET: &str = "v.sock_1024";

/// Says why there are no usable paths.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    #[error("the home directory is unknown: set HOME, or BANGER_STATE_DIR and BANGER_CACHE_DIR")]
    NoHome,
    #[error("`{}` is not an absolute path ({variable})", path.display())]
    Relative { variable: &'static str, path: PathBuf },
    #[error(
        "the socket path `{}` has {length} bytes and the kernel takes {SOCKET_PATH_MAX}: choose a shorter {variable}",
        path.display()
    )]
    SocketTooLong { path: PathBuf, length: usize, variable: &'static str },
}

/// Every path of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    pub config_file: PathBuf,
    pub state_dir: PathBuf,
    pub cache_dir: PathBuf,
    /// Holds `bangerd.sock`.
    pub runtime_dir: PathBuf,
    pub root_socket: PathBuf,
    /// Where `banger-emu` and `banger-agent` are looked for first.
    pub libexec: Option<PathBuf>,
    /// The owner of this instance.
    pub uid: u32,
}

impl Paths {
    /// The paths of the calling user.
    ///
    /// # Errors
    /// [`PathsError`].
    pub fn from_env() -> Result<Self, PathsError> {
        Self::resolve(nix::unistd::Uid::effective().as_raw(), |name| std::env::var_os(name).map(PathBuf::from))
    }

    /// The paths of `uid`, whose environment is `variable`. Empty variables count as unset, as the XDG specification has it.
    ///
    /// # Errors
    /// [`PathsError`].
    pub fn resolve(uid: u32, variable: impl Fn(&str) -> Option<PathBuf>) -> Result<Self, PathsError> {
        let get = |name: &'static str| match variable(name).filter(|path| !path.as_os_str().is_empty()) {
            Some(path) if path.is_absolute() => Ok(Some(path)),
            Some(path) => Err(PathsError::Relative { variable: name, path }),
            None => Ok(None),
        };
        // A relative XDG variable is to be ignored, says the XDG Base Directory Specification.
        let xdg = |name: &str, under_home: &str| {
            variable(name)
                .filter(|path| path.is_absolute())
                .or_else(|| variable("HOME").filter(|home| home.is_absolute()).map(|home| home.join(under_home)))
                .map(|base| base.join("banger"))
                .ok_or(PathsError::NoHome)
        };
        let own_state = get(STATE_DIR_ENV)?;
        let state_dir = own_state.clone().map_or_else(|| xdg("XDG_STATE_HOME", ".local/state"), Ok)?;
        let runtime_dir = match (get(RUNTIME_DIR_ENV)?, own_state) {
            (Some(dir), _) => dir,
            // A second instance must not take the first one's socket.
            (None, Some(state)) => state,
            (None, None) => variable("XDG_RUNTIME_DIR")
                .filter(|path| path.is_absolute())
                .map_or_else(|| state_dir.clone(), |dir| dir.join("banger")),
        };
        Ok(Self {
            config_file: match get(CONFIG_ENV)? {
                Some(file) => file,
                None => xdg("XDG_CONFIG_HOME", ".config")
                    .map_or_else(|_| state_dir.join("config.toml"), |dir| dir.join("config.toml")),
            },
            cache_dir: match get(CACHE_DIR_ENV)? {
                Some(dir) => dir,
                None => xdg("XDG_CACHE_HOME", ".cache")?,
            },
            root_socket: get(ROOT_SOCKET_ENV)?.unwrap_or_else(|| PathBuf::from(DEFAULT_ROOT_SOCKET)),
            libexec: get(LIBEXEC_ENV)?,
            state_dir,
            runtime_dir,
            uid,
        })
    }

    /// The same paths with another state directory, which then also holds the socket unless [`RUNTIME_DIR_ENV`] is set.
    #[must_use]
    pub fn with_state_dir(mut self, state_dir: PathBuf) -> Self {
        if std::env::var_os(RUNTIME_DIR_ENV).is_none() {
            self.runtime_dir.clone_from(&state_dir);
        }
        self.state_dir = state_dir;
        self
    }

    /// Refuses paths whose sockets the kernel would refuse later, in the middle of something.
    ///
    /// # Errors
    /// [`PathsError::SocketTooLong`].
    pub fn check_sockets(&self) -> Result<(), PathsError> {
        let checks = [
            (self.socket(), if self.runtime_dir == self.state_dir { STATE_DIR_ENV } else { RUNTIME_DIR_ENV }),
            (self.vm_dir(VmId([0; 8])).join(LONGEST_VM_SOCKET), STATE_DIR_ENV),
            (self.root_socket.clone(), ROOT_SOCKET_ENV),
        ];
        checks.into_iter().try_for_each(|(path, variable)| {
            let length = path.as_os_str().len();
            if length > SOCKET_PATH_MAX { Err(PathsError::SocketTooLong { path, length, variable }) } else { Ok(()) }
        })
    }

    /// Which instance this is: the same for the same owner and state directory, for ever, so that what an instance left
    /// behind in the kernel is found again even when its database is lost.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        let mut hash = Sha256::new();
        hash.update(self.uid.to_le_bytes());
        hash.update(self.state_dir.as_os_str().as_bytes());
        let digest = hash.finalize();
        InstanceId([digest[0], digest[1], digest[2]])
    }

    /// Where `bangerd` listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.runtime_dir.join("bangerd.sock")
    }

    /// Held by `flock` for the life of a daemon.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.state_dir.join("daemon.lock")
    }

    /// The daemon's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.state_dir.join("bangerd.log")
    }

    /// The SQLite file.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state_dir.join("banger.db")
    }

    /// One directory per VM.
    #[must_use]
    pub fn vms_dir(&self) -> PathBuf {
        self.state_dir.join("vms")
    }

    /// Sockets, disk and logs of one VM.
    #[must_use]
    pub fn vm_dir(&self, vm: VmId) -> PathBuf {
        self.vms_dir().join(vm.to_string())
    }

    /// One directory per image.
    #[must_use]
    pub fn images_dir(&self) -> PathBuf {
        self.state_dir.join("images")
    }

    /// One directory per kernel.
    #[must_use]
    pub fn kernels_dir(&self) -> PathBuf {
        self.state_dir.join("kernels")
    }

    /// Blobs of container images, by digest.
    #[must_use]
    pub fn blobs_dir(&self) -> PathBuf {
        self.cache_dir.join("blobs").join("sha256")
    }

    /// The last good copies of catalogs on the web.
    #[must_use]
    pub fn catalogs_dir(&self) -> PathBuf {
        self.cache_dir.join("catalogs")
    }

    /// Templates of writable disks, one per size.
    #[must_use]
    pub fn templates_dir(&self) -> PathBuf {
        self.cache_dir.join("templates")
    }

    /// Managed SSH keys.
    #[must_use]
    pub fn ssh_dir(&self) -> PathBuf {
        self.state_dir.join("ssh")
    }

    /// Finds one of our helper programs: in [`LIBEXEC_ENV`], beside this program, or in `../lib/banger` of it.
    #[must_use]
    pub fn helper_program(&self, name: &str) -> Option<PathBuf> {
        let own = std::env::current_exe().ok();
        let beside = own.as_deref().and_then(Path::parent);
        let candidates = [
            self.libexec.clone(),
            beside.map(Path::to_path_buf),
            beside.and_then(Path::parent).map(|prefix| prefix.join("lib/banger")),
        ];
        candidates.into_iter().flatten().map(|dir| dir.join(name)).find(|path| path.is_file())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(variables: &[(&str, &str)]) -> Result<Paths, PathsError> {
        Paths::resolve(1000, |name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v)))
    }

    #[test]
    fn xdg_directories_are_honoured_and_home_is_the_fallback() {
        let paths =
            resolve(&[("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/1000"), ("XDG_CACHE_HOME", "")]).unwrap();
        assert_eq!(paths.state_dir, Path::new("/home/u/.local/state/banger"));
        assert_eq!(paths.cache_dir, Path::new("/home/u/.cache/banger"));
        assert_eq!(paths.config_file, Path::new("/home/u/.config/banger/config.toml"));
        assert_eq!(paths.socket(), Path::new("/run/user/1000/banger/bangerd.sock"));
    }

    #[test]
    fn another_state_dir_is_another_instance_with_its_own_socket() {
        let base = [("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/1000")];
        let second = resolve(&[&base[..], &[("BANGER_STATE_DIR", "/tmp/s")]].concat()).unwrap();
        assert_eq!(second.socket(), Path::new("/tmp/s/bangerd.sock"));
        assert_ne!(second.instance(), resolve(&base).unwrap().instance());
    }

    #[test]
    fn bad_paths_are_refused_in_words() {
        assert!(matches!(resolve(&[]), Err(PathsError::NoHome)));
        assert!(matches!(resolve(&[("HOME", "/h"), ("BANGER_STATE_DIR", "rel")]), Err(PathsError::Relative { .. })));
        let long = format!("/{}", "x".repeat(90));
        let error = resolve(&[("HOME", "/h"), ("BANGER_STATE_DIR", &long)]).unwrap().check_sockets().unwrap_err();
        assert!(error.to_string().contains("the kernel takes 107"), "{error}");
    }
}
