//! The end of a guest: how it is asked for, and the reset that always comes last.
//!
//! Whoever ends the machine, the last program to run as PID 1 tells the agent the verb, over an abstract socket that survives
//! every change of root:
//! * systemd: `systemd-shutdown` has stopped everything (but the agent, whose name begins with `@`) and runs
//!   `/run/initramfs/shutdown VERB`, which is this program again (systemd's INITRD_INTERFACE document);
//! * no init: PID 1 is this program and gets the signals that `reboot` and `poweroff` send.
//!
//! The agent then reports the kind, freezes the disk and resets the machine. A power-off would leave Firecracker running.

use messages::guest::StopKind;
use nix::sys::reboot::{RebootMode, reboot};
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

const SOCKET_NAME: &[u8] = b"banger-shutdown";
/// How long PID 1 leaves the last steps to the agent: a freeze may have much to write.
const AGENT_GRACE: Duration = Duration::from_secs(20);
/// How long the last sync of PID 1 may take.
const LAST_SYNC: Duration = Duration::from_secs(10);
/// How long other file systems than the disk's may take to be written out before it is frozen.
const FIRST_SYNC: Duration = Duration::from_secs(5);
/// How long PID 1 looks for an agent that the keeper may just be starting again.
const AGENT_SEARCH: Duration = Duration::from_secs(2);

/// What a program like systemd-shutdown calls it.
#[must_use]
pub fn kind_of_verb(verb: &str) -> StopKind {
    match verb {
        "poweroff" | "halt" => StopKind::Halt,
        _ => StopKind::Reboot,
    }
}

/// What systemd's last program is about to do, as its command line tells: `systemd-shutdown VERB …`. `None`: that is not what runs.
#[must_use]
pub fn verb_of_shutdown(command_line: &[u8]) -> Option<&str> {
    let mut words = command_line.split(|byte| *byte == 0);
    let program = words.next()?.rsplit(|byte| *byte == b'/').next()?;
    let verb = std::str::from_utf8(words.next()?).ok().filter(|verb| !verb.is_empty())?;
    (program == b"systemd-shutdown").then_some(verb)
}

/// What a signal to PID 1 means: those of busybox' and systemd's programs.
#[must_use]
pub fn verb_of_signal(number: i32) -> Option<&'static str> {
    let real_time = number - libc::SIGRTMIN();
    match number {
        libc::SIGTERM | libc::SIGINT => Some("reboot"),
        libc::SIGUSR1 | libc::SIGUSR2 | libc::SIGPWR => Some("poweroff"),
        _ if real_time == 5 => Some("reboot"),
        _ if real_time == 3 || real_time == 4 => Some("poweroff"),
        _ => None,
    }
}

/// The signal to systemd that begins an orderly reboot (systemd(1), SIGRTMIN+5).
#[must_use]
pub fn systemd_reboot_signal() -> i32 {
    libc::SIGRTMIN() + 5
}

fn address() -> SocketAddr {
    SocketAddr::from_abstract_name(SOCKET_NAME).expect("the name is short")
}

/// Where the agent hears the verb.
///
/// # Errors
/// Somebody else listens there.
pub fn listen() -> io::Result<UnixListener> {
    let listener = UnixListener::bind_addr(&address())?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Called by PID 1: hands the verb to the agent, which resets the machine; does so itself where the agent does not.
pub fn tell_agent(verb: &str) {
    let mut waited = Duration::ZERO;
    let step = Duration::from_millis(20);
    let connected = loop {
        match UnixStream::connect_addr(&address()) {
            Ok(socket) => break Some(socket),
            Err(_) if waited < AGENT_SEARCH => {
                std::thread::sleep(step);
                waited += step;
            }
            Err(_) => break None,
        }
    };
    if let Some(mut socket) = connected
        && writeln!(socket, "{verb}").is_ok()
    {
        std::thread::sleep(AGENT_GRACE);
    }
    sync_for(LAST_SYNC);
    reset()
}

/// An agent that froze the disk and died before the reset has left something that nobody can write to any more, a server of files
/// may be gone: a sync then never ends, and the machine must.
fn sync_for(patience: Duration) {
    let (done, synced) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        nix::unistd::sync();
        drop(done);
    });
    // Nothing is ever sent: it ends with the sync, or with the time.
    synced.recv_timeout(patience).ok();
}

/// Resets the machine at once.
pub fn reset() -> ! {
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    tracing::error!(%error, "the kernel refuses to reset the machine");
    crate::sys::exit_now(1)
}

/// Everything on the disk, in a consistent file system. Blocks.
pub fn settle_disk(disk: Option<BorrowedFd<'_>>) {
    // What else is mounted may lie on the disk. The freeze itself writes out what the disk's own file system holds.
    sync_for(FIRST_SYNC);
    if let Some(Err(error)) = disk.map(crate::sys::freeze) {
        tracing::warn!(%error, "the disk was not frozen: its journal will be replayed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_and_signals_say_what_comes_next() {
        assert_eq!(kind_of_verb("poweroff"), StopKind::Halt);
        assert_eq!(kind_of_verb("halt"), StopKind::Halt);
        assert_eq!(kind_of_verb("reboot"), StopKind::Reboot);
        assert_eq!(kind_of_verb("kexec"), StopKind::Reboot);
        assert_eq!(verb_of_signal(libc::SIGTERM), Some("reboot"));
        assert_eq!(verb_of_signal(libc::SIGUSR2), Some("poweroff"));
        assert_eq!(verb_of_signal(systemd_reboot_signal()), Some("reboot"));
        assert_eq!(verb_of_signal(libc::SIGWINCH), None);
    }

    #[test]
    fn the_last_program_of_systemd_says_what_it_does() {
        let line = b"/usr/lib/systemd/systemd-shutdown\0poweroff\0--timeout\090000000us\0";
        assert_eq!(verb_of_shutdown(line), Some("poweroff"));
        assert_eq!(verb_of_shutdown(b"/usr/lib/systemd/systemd-shutdown\0"), None);
        assert_eq!(verb_of_shutdown(b"/sbin/init\0splash\0"), None);
        assert_eq!(verb_of_shutdown(b""), None);
    }
}
