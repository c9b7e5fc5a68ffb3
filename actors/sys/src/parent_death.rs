//! A child that gets a signal when the thread that spawned it ends.
#![expect(unsafe_code, reason = "Command::pre_exec runs code between fork and exec")]

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use std::io;
use std::os::unix::process::{CommandExt, parent_id};
use std::process::Command;

/// Has the child sent `signal` when the *thread* that spawns it ends (prctl(2), `PR_SET_PDEATHSIG`), so that a kill -9 of this
/// process does not leave it running. Spawn it from a thread that outlives it.
pub fn signal_on_parent_death(command: &mut Command, signal: Signal) {
    let parent = std::process::id();
    let hook = move || {
        set_pdeathsig(signal)?;
        // The parent may have died before the request was made: then nobody will send the signal.
        if parent_id() == parent { Ok(()) } else { Err(io::Error::from(Errno::ESRCH)) }
    };
    // SAFETY: between fork and exec only async-signal-safe functions may run, and no memory may be allocated. The hook makes
    // two system calls, prctl and getppid, and its errors are plain numbers.
    unsafe {
        command.pre_exec(hook);
    }
}
