//! Process descriptors: a handle on one process that can never come to mean another, for signals and for seeing it end.
//!
//! Owns the two raw system calls; who is signalled, and when, is decided by `actors::vmm::process`.
#![expect(unsafe_code, reason = "pidfd_open and pidfd_send_signal have no wrapper in nix")]

use nix::sys::signal::Signal;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Opens a descriptor of the process with this id. It becomes readable when the process has ended. CLOEXEC, as the kernel
/// makes every pidfd.
///
/// # Errors
/// `ESRCH` where there is no such process, `EMFILE` and the like.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: the call reads its two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(|_| io::Error::other("pidfd_open gave no descriptor"))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to the process; never to another one that got its number later.
///
/// # Errors
/// `ESRCH` where it has ended (and was reaped), `EPERM` where it is somebody else's.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let no_info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: the descriptor is borrowed, so it is open throughout; a null siginfo is allowed and means "as kill(2)".
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as libc::c_int, no_info, 0) };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    fn ended(pidfd: &OwnedFd, timeout_ms: u16) -> bool {
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(timeout_ms)).unwrap() == 1
    }

    #[test]
    fn readable_once_the_process_has_ended() {
        let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
        let pidfd = open(child.id()).unwrap();
        assert!(!ended(&pidfd, 0));
        send_signal(pidfd.as_fd(), Signal::SIGKILL).unwrap();
        assert!(ended(&pidfd, 5000));
        child.wait().unwrap();
        assert_eq!(send_signal(pidfd.as_fd(), Signal::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn no_such_process() {
        assert_eq!(open(u32::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
