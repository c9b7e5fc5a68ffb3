//! The keeper: starts the agent again whenever it ends. Stays in the initramfs, and does nothing else.

use crate::sys;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

/// An agent that lived shorter than this is started again after a pause, which doubles.
const SHORT_LIFE: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Keeps an agent running for ever. `link` leads to PID 1.
pub fn run(link: &OwnedFd) -> ! {
    let mut pause = FIRST_PAUSE;
    let mut restarts: u32 = 0;
    loop {
        let begun = Instant::now();
        match start(link, restarts).and_then(|mut agent| agent.wait()) {
            Ok(status) => tracing::error!(%status, restarts, "the agent ended and is started again"),
            Err(error) => tracing::error!(%error, "the agent was not started"),
        }
        pause = if begun.elapsed() < SHORT_LIFE { (pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
        std::thread::sleep(pause);
        restarts = restarts.saturating_add(1);
    }
}

fn start(link: &OwnedFd, restarts: u32) -> io::Result<std::process::Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("@banger-agent").arg("--agent").arg(link.as_raw_fd().to_string()).arg(restarts.to_string());
    sys::keep_open(&mut command, link.as_fd());
    command.spawn()
}
