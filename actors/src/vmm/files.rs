//! The files of one VM's directory that the VMM and the daemon share, and the bound on their paths.

use messages::guest::CONTROL_PORT;
use messages::ids::VmId;
use messages::limits::SOCKET_PATH_MAX;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The directory's path is too long for the sockets in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the socket path `{}` has {length} bytes, and the kernel takes {SOCKET_PATH_MAX}: use a shorter state directory",
    path.display()
)]
pub struct PathTooLong {
    pub path: PathBuf,
    pub length: usize,
}

/// One VM's directory, all of whose socket paths fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmFiles {
    vm: VmId,
    dir: PathBuf,
}

impl VmFiles {
    /// The files of `vm` in `dir`, which is named by the VM's id.
    ///
    /// # Errors
    /// Where the longest of the sockets' paths is over the kernel's limit.
    pub fn new(vm: VmId, dir: impl Into<PathBuf>) -> Result<Self, PathTooLong> {
        let files = Self { vm, dir: dir.into() };
        let path = files.agent_socket();
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX { Err(PathTooLong { path, length }) } else { Ok(files) }
    }

    /// Whose they are.
    #[must_use]
    pub const fn vm(&self) -> VmId {
        self.vm
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the VMM listens for its API. Gone when the VMM is.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.dir.join("api.sock")
    }

    /// Where the VMM listens for streams into the guest. Gone when the VMM is.
    #[must_use]
    pub fn vsock(&self) -> PathBuf {
        self.dir.join("v.sock")
    }

    /// Where the daemon listens for the agent: the guest's dials to [`CONTROL_PORT`] arrive here.
    #[must_use]
    pub fn agent_socket(&self) -> PathBuf {
        guest_dialled(&self.vsock(), CONTROL_PORT)
    }

    /// The guest's serial console.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// The console of the boot before.
    #[must_use]
    pub fn previous_console(&self) -> PathBuf {
        self.dir.join("console.log.1")
    }

    /// What the VMM itself writes.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("vmm.log")
    }

    /// Locked by the VMM for as long as it lives.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.dir.join("vmm.lock")
    }
}

/// The host's socket for what a guest dials on `port`: `<uds_path>_<port>`, as Firecracker has it.
#[must_use]
pub fn guest_dialled(vsock: &Path, port: u32) -> PathBuf {
    let mut path = OsString::from(vsock);
    path.push(format!("_{port}"));
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_socket_path_decides() {
        let fits = format!("/{}", "d".repeat(SOCKET_PATH_MAX - "//v.sock_1024".len()));
        let files = VmFiles::new(VmId([1; 8]), &fits).unwrap();
        assert_eq!(files.agent_socket().as_os_str().len(), SOCKET_PATH_MAX);
        let error = VmFiles::new(VmId([1; 8]), format!("{fits}d")).unwrap_err();
        assert_eq!(error.length, SOCKET_PATH_MAX + 1);
    }
}
