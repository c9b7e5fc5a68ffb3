//! An instance of banger for one test: own directories, a cleared environment, short socket paths; gone without a trace
//! afterwards, or the test fails.

use crate::binaries::binary;
use crate::output::CommandOutput;
use crate::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Whom the programs run as where the tests run as root, which banger does not: an ordinary id that nobody has.
const ORDINARY: u32 = 48_311;

/// One instance.
#[derive(Debug)]
pub struct TestEnvironment {
    root: TempDir,
}

impl Default for TestEnvironment {
    fn default() -> Self {
        Self::new()
    }
}

impl TestEnvironment {
    /// An empty instance.
    #[must_use]
    pub fn new() -> Self {
        // Not in $TMPDIR: that may be long, and the paths of sockets may not.
        let root = tempfile::Builder::new().prefix("bi").tempdir_in("/tmp").unwrap();
        let environment = Self { root };
        for dir in ["bin", "home", "state", "cache", "run"] {
            fs::create_dir(environment.path(dir)).unwrap();
        }
        environment.give_away();
        environment
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.path().join(relative)
    }

    /// Where `bangerd` listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("run/bangerd.sock")
    }

    /// Writes the config file.
    pub fn config(&self, text: &str) {
        fs::write(self.path("config.toml"), text).unwrap();
        self.give_away();
    }

    /// Makes everything the ordinary user's, where there is one.
    pub fn give_away(&self) {
        if Uid::effective().is_root() {
            fs::set_permissions(self.root.path(), fs::Permissions::from_mode(0o755)).unwrap();
            give(self.root.path());
        }
    }

    /// A program of ours in this environment.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        self.dressed(Command::new(self.program(program)))
    }

    /// Runs a script in bash, where `banger` is a command.
    ///
    /// # Panics
    /// Where there is no bash.
    pub fn bash(&self, script: &str) -> CommandOutput {
        drop(self.program("banger"));
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        let mut bash = self.dressed(Command::new("bash"));
        let output = bash.args(["--noprofile", "--norc", "-c", script]).env("PATH", path).output();
        self.output(output.unwrap())
    }

    /// A program in this environment and nothing of the test's own.
    fn dressed(&self, mut command: Command) -> Command {
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path("home"))
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .env("BANGER_STATE_DIR", self.path("state"))
            .env("BANGER_CACHE_DIR", self.path("cache"))
            .env("BANGER_RUNTIME_DIR", self.path("run"))
            .env("BANGER_CONFIG", self.path("config.toml"))
            .env("BANGER_ROOT_SOCKET", self.path("root.sock"))
            .env("BANGER_LIBEXEC", self.path("bin"))
            .current_dir(self.path("home"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if Uid::effective().is_root() {
            command.uid(ORDINARY).gid(ORDINARY);
        }
        command
    }

    /// A program of ours, where its siblings are too and the ordinary user can start it.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        let here = self.path("bin").join(name);
        if !here.exists() {
            let built = binary(name);
            // Root's home, where the build may be, is closed to others.
            let open = |dir: &Path| dir.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0);
            if !Uid::effective().is_root() || built.ancestors().skip(1).all(open) {
                symlink(&built, &here).unwrap();
            } else {
                fs::copy(&built, &here).unwrap();
            }
        }
        here
    }

    /// Has these programs there for each other to find.
    pub fn programs(&self, names: &[&str]) {
        let paths: Vec<PathBuf> = names.iter().map(|name| self.program(name)).collect();
        assert!(paths.iter().all(|path| path.is_file()), "{paths:?}");
    }

    /// Runs `banger` to its end, its stdin empty.
    pub fn banger<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, arguments: I) -> CommandOutput {
        let output = self.command("banger").args(arguments).output().unwrap();
        self.output(output)
    }

    /// Runs `banger` to its end with this on its stdin.
    pub fn banger_with_stdin(&self, arguments: &[&str], stdin: &[u8]) -> CommandOutput {
        let mut child = self.spawn(self.command("banger").args(arguments).stdin(Stdio::piped()));
        let mut pipe = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                // A command that does not read its stdin is no error.
                pipe.write_all(stdin).ok();
            });
            child.wait_with_output().unwrap()
        });
        self.output(output)
    }

    /// Starts a program that the caller waits for.
    #[must_use]
    pub fn spawn(&self, command: &mut Command) -> Child {
        command.spawn().unwrap()
    }

    /// What a program that was waited for has printed.
    pub fn output(&self, output: std::process::Output) -> CommandOutput {
        CommandOutput::new(output, self.root.path())
    }

    /// Every process that belongs to this instance: its environment or command line names the root. A process of another
    /// user's, or one that ends meanwhile, does not count.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let root = self.root.path().as_os_str().as_encoded_bytes();
        let own = i32::try_from(std::process::id()).unwrap();
        let names_root = |pid: i32, file: &str| {
            fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|text| text.windows(root.len()).any(|part| part == root))
        };
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != own && (names_root(*pid, "cmdline") || names_root(*pid, "environ")))
            .collect()
    }
}

impl Drop for TestEnvironment {
    fn drop(&mut self) {
        let left = self.processes();
        for pid in &left {
            // One that has ended meanwhile is what is wanted.
            kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
        }
        if std::thread::panicking() {
            // What a failed test leaves behind is evidence; what it was is said by the test.
            let log = fs::read_to_string(self.path("state/bangerd.log")).unwrap_or_default();
            #[expect(clippy::print_stderr, reason = "a failed test's own report")]
            if !log.is_empty() {
                eprintln!("bangerd.log:\n{log}");
            }
            return;
        }
        until("the end of what was killed", || self.processes().is_empty().then_some(()));
        assert!(left.is_empty(), "processes outlived the test's own clean-up: {left:?}");
    }
}

fn give(path: &Path) {
    // What a symbolic link leads to is not ours.
    if path.is_symlink() {
        return;
    }
    chown(path, Some(ORDINARY), Some(ORDINARY)).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path());
        }
    }
}
