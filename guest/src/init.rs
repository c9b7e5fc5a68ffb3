//! PID 1 of the initramfs: makes the first mounts, starts the keeper, loads modules, waits to be told that the new root stands,
//! moves there, and becomes the image's init, or stays and reaps. Must not do anything that can wait for the host.

use crate::power;
use crate::{modules, sys};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// This program, in the initramfs and wherever its `/proc` is visible.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// Where the agent builds the new root.
pub const NEW_ROOT: &str = "/newroot";
/// A directory of the initramfs with nothing but this program under the name `shutdown`; see [`crate::power`].
pub const SHUTDOWN_DIRECTORY: &str = "/exit";

/// Says which step of PID 1 failed. The kernel panics when PID 1 ends, so these end the machine.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("failed to mount {what}")]
    Mount { what: &'static str, source: io::Error },
    #[error("failed to start the agent's keeper")]
    Keeper(#[source] io::Error),
    #[error("the keeper ended before the new root stood")]
    KeeperGone(#[source] io::Error),
    #[error("failed to move to the new root")]
    Switch(#[source] io::Error),
}

/// Runs as PID 1. Returns only where the machine cannot go on.
///
/// # Errors
/// [`InitError`].
pub fn run() -> Result<Infallible, InitError> {
    mount_kernel_file_systems()?;
    use_console();
    let (ours, theirs) = UnixStream::pair().map_err(InitError::Keeper)?;
    start_keeper(&theirs).map_err(InitError::Keeper)?;
    drop(theirs);
    // The agent starts meanwhile, and waits for the devices that these make.
    for (name, error) in modules::load_all(Path::new(modules::DIRECTORY)) {
        tracing::warn!(%error, name, "a kernel module was not loaded");
    }
    provide_shutdown_program();
    let init = wait_for_root(ours)?;
    match init {
        Some(program) => become_init(&program),
        None => reap(),
    }
}

fn mount_kernel_file_systems() -> Result<(), InitError> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for (what, target, flags) in [
        ("proc", "/proc", quiet),
        ("sysfs", "/sys", quiet),
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC),
    ] {
        let failed = |source: io::Error| InitError::Mount { what, source };
        fs::create_dir_all(target).map_err(failed)?;
        match mount(Some(what), target, Some(what), flags, None::<&str>) {
            // A kernel with CONFIG_DEVTMPFS_MOUNT, or an initramfs that came with one.
            Ok(()) | Err(nix::Error::EBUSY) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
    Ok(())
}

/// An initramfs without a console node starts us without standard streams.
fn use_console() {
    let Ok(console) = OpenOptions::new().read(true).write(true).open("/dev/console") else { return };
    let all = nix::unistd::dup2_stdin(&console)
        .and_then(|()| nix::unistd::dup2_stdout(&console))
        .and_then(|()| nix::unistd::dup2_stderr(&console));
    if let Err(error) = all {
        tracing::warn!(%error, "no console");
    }
}

fn start_keeper(link: &UnixStream) -> io::Result<()> {
    let mut command = Command::new(OWN_PROGRAM);
    // systemd leaves alone what begins with @ when it kills everything at last (its ROOT_STORAGE_DAEMONS document).
    command.arg0("@banger-keeper").arg("--keeper").arg(link.as_raw_fd().to_string());
    sys::keep_open(&mut command, link.as_fd());
    command.spawn().map(drop)
}

fn provide_shutdown_program() {
    let provide = || -> io::Result<()> {
        // systemd-shutdown moves its mounts there, and gives up where one of these is missing.
        for name in ["dev", "proc", "run", "sys", "oldroot"] {
            fs::create_dir_all(Path::new(SHUTDOWN_DIRECTORY).join(name))?;
        }
        fs::hard_link("/init", Path::new(SHUTDOWN_DIRECTORY).join("shutdown"))
    };
    if let Err(error) = provide() {
        tracing::warn!(%error, "the image's init will reset the machine by itself");
    }
}

/// What the agent says once the new root stands: the program of the image's init, or nothing.
fn wait_for_root(mut link: UnixStream) -> Result<Option<PathBuf>, InitError> {
    let mut length = [0; 2];
    link.read_exact(&mut length).map_err(InitError::KeeperGone)?;
    let mut program = vec![0; usize::from(u16::from_le_bytes(length))];
    link.read_exact(&mut program).map_err(InitError::KeeperGone)?;
    switch_root().map_err(InitError::Switch)?;
    link.write_all(&[1]).map_err(InitError::KeeperGone)?;
    Ok((!program.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(&program))))
}

/// The agent's half of [`wait_for_root`]: returns when PID 1 is in the new root.
///
/// # Errors
/// PID 1 is not listening.
pub fn hand_over(link: &OwnedFd, init: Option<&Path>) -> io::Result<()> {
    let mut link = UnixStream::from(link.try_clone()?);
    let program = init.map_or(&[][..], |path| path.as_os_str().as_bytes());
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    link.write_all(&length.to_le_bytes())?;
    link.write_all(program)?;
    link.read_exact(&mut [0])
}

/// The initramfs stays below, with the agent's program and the mounts that the image must not see.
fn switch_root() -> io::Result<()> {
    nix::unistd::chdir(NEW_ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")?;
    Ok(())
}

fn become_init(program: &Path) -> ! {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", "/").env("TERM", "linux");
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let error = command.exec();
    tracing::error!(%error, program = %program.display(), "the image's init did not start: the agent's own stays");
    reap()
}

/// PID 1 of an image without an init: reaps orphans and turns the signals of `reboot` and `poweroff` into words.
fn reap() -> ! {
    let signals = SigSet::all();
    if let Err(error) = signals.thread_block() {
        tracing::warn!(%error, "signals are not taken in turn");
    }
    loop {
        let signal = sys::wait_for_signal();
        match signal {
            Some(libc::SIGCHLD) | None => {
                while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
                {
                }
            }
            Some(number) => {
                if let Some(verb) = power::verb_of_signal(number) {
                    power::tell_agent(verb);
                }
            }
        }
    }
}

/// The program under the name `shutdown`: PID 1 again, started by systemd-shutdown when all else has ended.
pub fn run_shutdown(verb: &str) -> ! {
    power::tell_agent(verb);
    loop {
        // The agent resets the machine; if it does not, tell_agent has.
        std::thread::park();
    }
}

/// What the machine prints last when PID 1 cannot go on.
pub fn give_up(error: &dyn std::error::Error) -> ! {
    let chain: Vec<String> =
        std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
    if let Ok(mut console) = File::options().write(true).open("/dev/console") {
        drop(writeln!(console, "banger-agent: {}", chain.join(": ")));
    }
    power::reset()
}

/// Signals that would end the keeper or the agent by accident do nothing; commands get their defaults back by exec.
pub fn survive_signals() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        if let Err(error) = sys::do_nothing_on(signal) {
            tracing::warn!(%error, %signal, "a signal keeps its effect");
        }
    }
}
