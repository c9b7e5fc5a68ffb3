//! The end of a guest, on the agent's side: who asked, last words, a settled disk, the reset. Once begun it does not stop.

use super::Machine;
use crate::agent::Agent;
use crate::exec::plan::DEFAULT_PATH;
use crate::power;
use crate::systemd::Init;
use messages::guest::StopKind;
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

/// Left to the host of its own deadline: for the freeze, the last words and the reset.
const MARGIN: Duration = Duration::from_secs(2);
/// Between SIGTERM and SIGKILL for the processes of a guest without an init.
const TERMINATION: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);
/// Between two signals to a systemd that may not have heard the first.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// A disk that takes longer to settle is left to its journal.
const SETTLE: Duration = Duration::from_secs(10);
/// How long systemd's last program may take to hand over to us.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(120);
const VERB_DEADLINE: Duration = Duration::from_secs(1);
/// No verb is longer.
const VERB_MAX: u64 = 64;

/// How much of the host's deadline the image's init gets.
#[must_use]
pub fn own_share(deadline: Duration) -> Duration {
    deadline.saturating_sub(MARGIN.min(deadline / 4))
}

/// The way down.
#[derive(Debug, Default)]
pub struct Ending {
    /// What the daemon asked for; weighs more than the verb that the init uses.
    asked: Mutex<Option<StopKind>>,
    disk: Mutex<Option<OwnedFd>>,
    begun: AtomicBool,
}

impl Ending {
    /// The disk to freeze at the end.
    pub fn keep_disk(&self, disk: OwnedFd) {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = Some(disk);
    }

    /// The daemon wants this.
    pub fn ask(&self, kind: StopKind) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(kind);
    }

    fn asked(&self) -> Option<StopKind> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what still runs, if nobody else has, says so, settles the disk and resets the machine.
    pub async fn finish(&self, agent: &Agent, kind: StopKind, deadline: Duration) {
        if self.begun.swap(true, Ordering::SeqCst) {
            return;
        }
        if !deadline.is_zero() {
            terminate_all(own_share(deadline).min(TERMINATION)).await;
        }
        agent.last_words(kind).await;
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner).take();
        let settled = tokio::task::spawn_blocking(move || power::settle_disk(disk.as_ref().map(|disk| disk.as_fd())));
        if tokio::time::timeout(SETTLE, settled).await.is_err() {
            tracing::warn!("the disk did not settle: its journal will be replayed");
        }
        power::reset()
    }
}

/// Hears the verbs of PID 1, for as long as the guest lives.
pub async fn hear_verbs(agent: Arc<Agent>) {
    let listener = loop {
        match power::listen().and_then(UnixListener::from_std) {
            Ok(listener) => break listener,
            // An agent that was killed a moment ago may still have it.
            Err(_) => tokio::time::sleep(POLL).await,
        }
    };
    loop {
        match listener.accept().await {
            Ok((socket, _)) => drop(tokio::spawn(hear(agent.clone(), socket))),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Ends a guest whose own end hangs: systemd's last program lets processes end for 90 s, then kills them, and then waits for file
/// systems as long as they like.
///
/// It continues all processes after each round of signals, also those that begin with `@` (kill(2) of -1), which is how we learn
/// that it runs.
///
/// # Errors
/// The signal cannot be waited for.
pub async fn watch_shutdown(agent: Arc<Agent>) -> io::Result<()> {
    let mut continued = signal(SignalKind::from_raw(libc::SIGCONT))?;
    loop {
        if continued.recv().await.is_none() {
            return Err(io::Error::other("signals are not told any more"));
        }
        let line = std::fs::read("/proc/1/cmdline").unwrap_or_default();
        let Some(kind) = power::verb_of_shutdown(&line).map(power::kind_of_verb) else { continue };
        tokio::time::sleep(SHUTDOWN_PATIENCE).await;
        tracing::error!("the guest's own shutdown did not come to its end: the machine is reset");
        let Machine::Guest(machine) = agent.machine() else { return Ok(()) };
        let kind = machine.ending().asked().unwrap_or(kind);
        machine.ending().finish(&agent, kind, Duration::ZERO).await;
    }
}

async fn hear(agent: Arc<Agent>, socket: UnixStream) {
    // The name is open to all of the guest.
    if !socket.peer_cred().is_ok_and(|peer| peer.uid() == 0 && peer.pid() == Some(1)) {
        return tracing::warn!("a process that is not PID 1 tried to end the guest");
    }
    let mut verb = String::new();
    let mut line = BufReader::new(socket.take(VERB_MAX));
    if !matches!(tokio::time::timeout(VERB_DEADLINE, line.read_line(&mut verb)).await, Ok(Ok(_))) {
        return;
    }
    let Machine::Guest(machine) = agent.machine() else { return };
    let kind = machine.ending().asked().unwrap_or_else(|| power::kind_of_verb(verb.trim()));
    // systemd has ended everything before it asks; our own PID 1 has ended nothing.
    let grace = match machine.image_init() {
        Some(Init::None) | None => TERMINATION + MARGIN,
        Some(Init::Systemd(_) | Init::Other(_)) => Duration::ZERO,
    };
    machine.ending().finish(&agent, kind, grace).await;
}

/// Tells systemd to reboot, and again: one that has just been started does not hear it yet, and PID 1 drops what it has no
/// handler for. Ends with the guest, or after `patience`.
pub async fn ask_systemd(patience: Duration) {
    let asking = async {
        loop {
            if let Err(error) = crate::sys::signal_process(Pid::from_raw(1), power::systemd_reboot_signal()) {
                tracing::warn!(%error, "systemd was not told to stop");
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    tokio::select! {
        () = asking => {}
        () = tokio::time::sleep(patience) => {}
    }
}

/// Another init's own `reboot`: it kills the agent too before it resets the machine, so the last words come first.
pub async fn run_reboot_program(agent: &Agent, kind: StopKind) {
    agent.last_words(kind).await;
    // The kernel starts us without a PATH, and not every image has it in /bin.
    match tokio::process::Command::new("reboot").env("PATH", DEFAULT_PATH).spawn() {
        Ok(mut child) => drop(child.wait().await),
        Err(error) => tracing::warn!(%error, "the image has an init but no reboot"),
    }
}

/// SIGTERM to every process but ours, SIGKILL to what is left after `grace`.
async fn terminate_all(grace: Duration) {
    let signal_all = |number| {
        let processes = others();
        for process in &processes {
            drop(crate::sys::signal_process(*process, number));
        }
        processes.is_empty()
    };
    signal_all(libc::SIGTERM);
    let ended = async {
        while !others().is_empty() {
            tokio::time::sleep(POLL).await;
        }
    };
    if tokio::time::timeout(grace, ended).await.is_err() {
        signal_all(libc::SIGKILL);
    }
}

/// Every process of the guest that is not PID 1, the kernel's, the agent or its keeper.
fn others() -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != 1)
        .filter(|pid| {
            // The kernel's threads and zombies have no command line; ours begin with @.
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.first().is_some_and(|first| *first != b'@')
        })
        .map(Pid::from_raw)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_init_gets_most_of_the_deadline() {
        assert_eq!(own_share(Duration::from_secs(30)), Duration::from_secs(28));
        assert_eq!(own_share(Duration::from_secs(4)), Duration::from_secs(3));
        assert_eq!(own_share(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn this_process_is_among_the_others_and_the_kernels_are_not() {
        let own = Pid::from_raw(i32::try_from(std::process::id()).unwrap());
        let others = others();
        assert!(others.contains(&own) && !others.contains(&Pid::from_raw(1)));
    }
}
