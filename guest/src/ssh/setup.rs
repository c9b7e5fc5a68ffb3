//! What a server of ours is told by the agent before its connection begins: who it is, whom it lets in, and where commands
//! run.

use crate::exec::plan::Place;
use crate::exec::session::World;
use crate::identity::RUNTIME_DIRECTORY;
use messages::guest::BootSpec;
use messages::image::ImageConfig;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::PathBuf;

/// Everything that a server has to know.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Private, in OpenSSH's format.
    pub host_keys: Vec<String>,
    /// Lines of `authorized_keys`.
    pub authorized_keys: Vec<String>,
    pub config: ImageConfig,
    /// The process machine's directory; a guest has none.
    pub directory: Option<PathBuf>,
}

/// Keys are nobody's to read in a log.
impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Setup")
    }
}

/// The keys of a boot spec, for a machine that has no files for them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys {
    host: Vec<String>,
    authorized: Vec<String>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// Those of a boot spec.
    #[must_use]
    pub fn of(spec: &BootSpec) -> Self {
        let host = spec.ssh_host_keys.iter().map(|key| key.private.clone()).collect();
        Self { host, authorized: spec.authorized_keys.clone() }
    }
}

impl Setup {
    /// From the files that the identity was written into, or from the spec where there are none. A guest's own additions to
    /// its `authorized_keys` count, as with sshd.
    ///
    /// # Errors
    /// There is no host key to be had.
    pub fn gather(world: &World) -> io::Result<Self> {
        let (keys, directory) = match &world.place {
            Place::Guest => {
                let host = fs::read_to_string(format!("{RUNTIME_DIRECTORY}/ssh_host_key_0"))?;
                let authorized = fs::read("/root/.ssh/authorized_keys").unwrap_or_default();
                let authorized = String::from_utf8_lossy(&authorized).lines().map(str::to_owned).collect();
                (Keys { host: vec![host], authorized }, None)
            }
            Place::Process { directory } => (world.keys.clone(), Some(directory.clone())),
        };
        Ok(Self { host_keys: keys.host, authorized_keys: keys.authorized, config: world.config.clone(), directory })
    }

    /// Where commands run.
    #[must_use]
    pub fn world(&self) -> World {
        let place = match &self.directory {
            Some(directory) => Place::Process { directory: directory.clone() },
            None => Place::Guest,
        };
        World { place, config: self.config.clone(), keys: Keys::default() }
    }
}
