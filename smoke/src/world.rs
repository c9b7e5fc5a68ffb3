//! The inside of a run: directories, the uid, the helper and the way to call `banger`. Made by root in namespaces of its
//! own; `banger` and `bangerd` then run under an ordinary uid, as they would for a developer.

use crate::command::{DEADLINE, POLL, Program, Running};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is tried; all of it must lie beside this program.
const PROGRAMS: [&str; 5] = ["banger", "bangerd", "bangerd-root", "banger-emu", "banger-agent"];
/// The name of the run's user. It is known only in the run's mount namespace.
pub(crate) const USER: &str = "bangersmoke";
/// The first uid, plus the slot: high enough to be nobody's, low enough for 16 bits.
const FIRST_UID: u32 = 61_880;
/// The first subordinate uid: beyond what useradd gives out (`SUB_UID_MAX` is 600,100,000).
const FIRST_SUBUID: u32 = 1_400_000_000;
/// As many as useradd gives.
const SUBUIDS: u32 = 65_536;

/// Everything that a scenario needs to know.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) base: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) cache: PathBuf,
    pub(crate) uid: u32,
    env: Vec<(String, String)>,
    helper: std::sync::Mutex<Option<Running>>,
}

impl World {
    /// Makes the world of a fresh run.
    ///
    /// # Errors
    /// Any step of root's that fails.
    pub(crate) fn open(slot: u8, base: &Path, programs: &Path) -> io::Result<Self> {
        private_etc(base)?;
        let uid = add_slot_user(base, slot)?;
        Self::open_as(uid, base, programs, &base.join("s"), &base.join("c"))
    }

    /// Makes a world whose state and cache lie elsewhere and whose user exists.
    ///
    /// # Errors
    /// Any step of root's that fails.
    pub(crate) fn open_as(uid: u32, base: &Path, programs: &Path, state: &Path, cache: &Path) -> io::Result<Self> {
        let bin = base.join("bin");
        fs::create_dir_all(&bin)?;
        for program in PROGRAMS {
            let source = programs.join(program);
            fs::copy(&source, bin.join(program))
                .map_err(|error| io::Error::new(error.kind(), format!("cannot copy {}: {error}", source.display())))?;
        }
        for directory in [state, cache, &base.join("h"), &base.join("r"), &base.join("l")] {
            fs::create_dir_all(directory)?;
            chown(directory, Some(uid), Some(uid))?;
        }
        fs::set_permissions(base.join("r"), Permissions::from_mode(0o755))?;
        open_tun_to_all()?;
        let path = |name: &str| base.join(name).display().to_string();
        let mut env: Vec<(String, String)> = [
            ("PATH", format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", bin.display())),
            ("HOME", path("h")),
            ("USER", USER.to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
            ("TERM", std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned())),
            ("BANGER_STATE_DIR", state.display().to_string()),
            ("BANGER_CACHE_DIR", cache.display().to_string()),
            ("BANGER_RUNTIME_DIR", path("r")),
            ("BANGER_CONFIG", path("config.toml")),
            ("BANGER_ROOT_SOCKET", path("r/root.sock")),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
        // Downloads go where the caller's go, and so do the counters of `make coverage`.
        let passed = |key: &str| {
            let key = key.to_ascii_lowercase();
            key.ends_with("_proxy")
                || ["llvm_profile_file", "npm_config_registry", "ssl_cert_file"].contains(&key.as_str())
        };
        env.extend(std::env::vars().filter(|(key, _)| passed(key)));
        let world = Self {
            base: base.to_owned(),
            state: state.to_owned(),
            cache: cache.to_owned(),
            uid,
            env,
            helper: std::sync::Mutex::new(None),
        };
        world.configure("")?;
        Ok(world)
    }

    /// Writes the config file.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn configure(&self, text: &str) -> io::Result<()> {
        fs::write(self.base.join("config.toml"), text)
    }

    /// `program` of this build, under the ordinary uid.
    pub(crate) fn program(&self, program: &str, arguments: &[&str]) -> Program {
        let mut argv = vec![self.base.join("bin").join(program).display().to_string()];
        argv.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        Program {
            argv,
            env: self.env.clone(),
            user: Some((self.uid, self.uid)),
            directory: Some(self.base.join("h")),
            input: crate::command::Input::Null,
            deadline: DEADLINE,
        }
    }

    /// The command line tool.
    pub(crate) fn banger(&self, arguments: &[&str]) -> Program {
        self.program("banger", arguments)
    }

    /// A second instance beside this one: same user, programs and helper, but a state directory, socket and config of its
    /// own. Images and kernels are shared by hard links.
    ///
    /// # Errors
    /// A directory or file that cannot be made.
    pub(crate) fn beside(&self, name: &str, config: &str) -> io::Result<Self> {
        let state = self.base.join(name);
        fs::create_dir_all(&state)?;
        for shared in ["images", "kernels"] {
            let from = self.state.join(shared).display().to_string();
            let done = Program::tool(&["cp", "-al", &from, &state.display().to_string()]).run()?;
            if done.code() != 0 {
                return Err(io::Error::other(done.err()));
            }
        }
        chown(&state, Some(self.uid), Some(self.uid))?;
        let own_config = self.base.join(format!("{name}.toml"));
        fs::write(&own_config, config)?;
        let mut env = self.env.clone();
        for (key, value) in &mut env {
            match key.as_str() {
                "BANGER_STATE_DIR" | "BANGER_RUNTIME_DIR" => *value = state.display().to_string(),
                "BANGER_CONFIG" => *value = own_config.display().to_string(),
                _ => {}
            }
        }
        let cache = self.cache.clone();
        Ok(Self { base: self.base.clone(), state, cache, uid: self.uid, env, helper: std::sync::Mutex::new(None) })
    }

    /// Starts `bangerd-root` for the run's uid and waits until it takes connections.
    ///
    /// # Errors
    /// It cannot be started, or does not listen.
    pub(crate) fn start_helper(&self) -> io::Result<()> {
        let socket = self.base.join("r/root.sock");
        let mut program = self.program("bangerd-root", &[]);
        program.argv.extend(["--foreground", "--owner", &self.uid.to_string(), "--socket"].map(ToOwned::to_owned));
        program.argv.push(socket.display().to_string());
        program.user = None;
        program.deadline = Duration::MAX / 4;
        let mut running = program.spawn()?;
        let started = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if !running.is_alive() || started.elapsed() > Duration::from_secs(20) {
                drop(running.signal(nix::sys::signal::Signal::SIGKILL));
                running.set_deadline(Duration::ZERO);
                return Err(io::Error::other(format!("bangerd-root does not listen: {}", running.finish()?.err())));
            }
            std::thread::sleep(POLL);
        }
        *self.helper.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(running);
        Ok(())
    }

    /// Ends the helper, and gives what it said.
    ///
    /// # Errors
    /// It cannot be signalled.
    pub(crate) fn stop_helper(&self) -> io::Result<String> {
        let Some(mut running) = self.helper.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() else {
            return Ok(String::new());
        };
        if running.is_alive() {
            running.signal(nix::sys::signal::Signal::SIGTERM)?;
        }
        running.set_deadline(Duration::from_secs(10));
        Ok(running.finish()?.err())
    }

    /// The directories whose files are counted.
    pub(crate) fn counted(&self) -> [PathBuf; 3] {
        [self.state.clone(), self.base.join("r"), self.base.join("c")]
    }

    /// The process id of this instance's daemon, or none.
    pub(crate) fn daemon_pid(&self) -> Option<u32> {
        let own = self.base.join("bin/bangerd");
        let state = format!("BANGER_STATE_DIR={}", self.state.display());
        fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let ours = fs::read_link(entry.path().join("exe")).ok()? == own
                && fs::read(entry.path().join("environ"))
                    .ok()?
                    .split(|byte| *byte == 0)
                    .any(|var| var == state.as_bytes());
            ours.then_some(pid)
        })
    }
}

/// Gives this mount namespace an /etc of its own. The whole directory, because a mount over a single file vanishes as soon as
/// somebody outside replaces that file, as useradd does.
///
/// # Errors
/// It cannot be copied or mounted.
pub(crate) fn private_etc(base: &Path) -> io::Result<()> {
    let own = base.join("etc");
    let done = Program::tool(&["cp", "-a", "/etc/.", &own.display().to_string()]).run()?;
    if done.code() != 0 {
        return Err(io::Error::other(format!("cannot copy /etc: {}", done.err())));
    }
    nix::mount::mount(Some(&own), "/etc", None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)?;
    // A resolver on the host's loopback cannot be reached from a namespace: systemd-resolved's upstreams take its place.
    let upstreams = fs::read_to_string("/run/systemd/resolve/resolv.conf").unwrap_or_default();
    if fs::read_to_string("/etc/resolv.conf").unwrap_or_default().contains("nameserver 127.") && !upstreams.is_empty() {
        fs::remove_file("/etc/resolv.conf")?;
        fs::write("/etc/resolv.conf", upstreams)?;
    }
    Ok(())
}

/// Makes the slot's user known, with subordinate ids, in this mount namespace only, and gives its uid. Needs
/// [`private_etc`].
///
/// # Errors
/// A file of /etc cannot be written.
pub(crate) fn add_slot_user(base: &Path, slot: u8) -> io::Result<u32> {
    let (uid, home) = (FIRST_UID + u32::from(slot), base.join("h"));
    add_line("passwd", &format!("{USER}:x:{uid}:{uid}:banger smoke:{}:/bin/sh\n", home.display()))?;
    add_line("group", &format!("{USER}:x:{uid}:\n"))?;
    add_subordinates(USER, slot)?;
    Ok(uid)
}

/// Gives a user the slot's subordinate ids, in this mount namespace only. Needs [`private_etc`].
///
/// # Errors
/// A file of /etc cannot be written.
pub(crate) fn add_subordinates(name: &str, slot: u8) -> io::Result<()> {
    let line = format!("{name}:{}:{SUBUIDS}\n", FIRST_SUBUID + u32::from(slot) * SUBUIDS);
    add_line("subuid", &line)?;
    add_line("subgid", &line)
}

fn add_line(file: &str, line: &str) -> io::Result<()> {
    let path = Path::new("/etc").join(file);
    let mut text = fs::read_to_string(&path).unwrap_or_default();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    fs::write(path, text + line)
}

/// The node is open to everyone on a stock system, but not everywhere.
fn open_tun_to_all() -> io::Result<()> {
    let node = Path::new("/dev/net/tun");
    if node.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o666 == 0o666) {
        return Ok(());
    }
    drop(Program::tool(&["modprobe", "tun"]).run());
    fs::create_dir_all("/dev/net")?;
    nix::mount::mount(Some("tmpfs"), "/dev/net", Some("tmpfs"), nix::mount::MsFlags::empty(), Some("mode=755"))?;
    // 10:200, from the kernel's list of devices (Documentation/admin-guide/devices.txt).
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(node, kind, mode, nix::sys::stat::makedev(10, 200))?;
    fs::set_permissions(node, Permissions::from_mode(0o666))
}
