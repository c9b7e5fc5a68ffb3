//! The two things that need `unsafe`: preparing a child between fork and exec, and reading the time stamp counter.
#![expect(unsafe_code, reason = "pre_exec and rdtsc have no safe form")]

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use tokio::process::Command;

/// Makes the child die with this process, whatever ends it, and inherit `descriptors` under their numbers.
///
/// Must be called, and the command spawned, on the main thread: the kernel sends the signal when the *thread* that forked
/// ends. `descriptors` must stay open until the command has been spawned, so they are taken by reference.
pub fn bind_to_parent(command: &mut Command, descriptors: &[&OwnedFd]) {
    use std::os::fd::AsRawFd;
    let parent = Pid::this();
    let numbers: Vec<RawFd> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
    let prepare = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the line above: then nobody will ever send that signal.
        if getppid() != parent {
            return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
        }
        for number in &numbers {
            // SAFETY: the number was taken from a live `&OwnedFd`; the caller keeps it open until the spawn returns, and this
            // runs in the forked copy of the process, where nothing closes descriptors before exec.
            let descriptor = unsafe { BorrowedFd::borrow_raw(*number) };
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    };
    // SAFETY: the closure makes only the system calls prctl, getppid and fcntl, all async-signal-safe, and allocates nothing:
    // an `io::Error` of an OS code is stored inline, and `numbers` was built before the fork.
    unsafe { command.pre_exec(prepare) };
}

/// Reads the time stamp counter.
#[must_use]
pub fn read_tsc() -> u64 {
    // SAFETY: every x86-64 CPU has rdtsc, and Linux never sets CR4.TSD for a process that did not ask for it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
