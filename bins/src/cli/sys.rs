//! The unsafe of the CLI: a child in its own session, and inotify, which nix has not been built with.
#![expect(unsafe_code, reason = "pre_exec and inotify")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `CLOSE_RANGE_CLOEXEC` (linux/close_range.h), in the type that `close_range` takes.
const FROM_EXEC_ON: libc::c_int = 1 << 2;

/// Makes the child the leader of a session of its own, which no terminal's signals reach, with nothing of ours open but its
/// three streams: a script's lock or pipe must not live as long as a daemon.
pub(super) fn own_session(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs between fork and exec and makes two system calls, setsid and close_range, that
    // take no memory and no lock of the parent's. Marking instead of closing leaves std's own descriptor, by which it learns
    // of a failed exec, open until the exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            // Kernels before 5.11 know no such mark: there the descriptors stay, as they always have.
            libc::close_range(3, libc::c_uint::MAX, FROM_EXEC_ON);
            Ok(())
        })
    }
}

/// A descriptor that is readable whenever the file was written to or truncated, whatever its name is by now.
pub(super) fn watch_file(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: takes flags only; the descriptor that it returns is new and owned by nobody else.
    let raw = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` was just made by inotify_init1 and is owned by nobody else.
    let watch = unsafe { OwnedFd::from_raw_fd(raw) };
    let path =
        std::ffi::CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("a path of digits has no NUL");
    // SAFETY: `path` is a NUL-terminated string that outlives the call; `watch` is an open inotify descriptor.
    let added = unsafe { libc::inotify_add_watch(watch.as_raw_fd(), path.as_ptr(), libc::IN_MODIFY) };
    if added < 0 { Err(io::Error::last_os_error()) } else { Ok(watch) }
}

/// Throws away the events of a watch: that there were any is all they say.
pub(super) fn drain(watch: BorrowedFd<'_>) {
    let mut events = [0; 4096];
    while matches!(nix::unistd::read(watch, &mut events), Ok(count) if count > 0) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn a_write_wakes_the_watch() {
        let mut file = tempfile::tempfile().unwrap();
        let watch = watch_file(file.as_fd()).unwrap();
        let wait = |milliseconds: u16| {
            let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(milliseconds)).unwrap()
        };
        assert_eq!(wait(0), 0);
        file.write_all(b"x").unwrap();
        assert_eq!(wait(5000), 1);
        drain(watch.as_fd());
        assert_eq!(wait(0), 0);
    }

    #[test]
    fn a_child_has_nothing_of_ours_open() {
        use nix::fcntl::{FcntlArg, FdFlag, fcntl};
        let file = tempfile::tempfile().unwrap();
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let script = format!("test -e /proc/$$/fd/{}", file.as_raw_fd());
        let open = |command: &mut Command| command.args(["-c", &script]).status().unwrap().success();
        assert!(open(&mut Command::new("sh")), "it is inherited otherwise");
        assert!(!open(own_session(&mut Command::new("sh"))));
    }

    #[test]
    fn a_child_leads_its_own_session() {
        let ours = nix::unistd::getsid(None).unwrap();
        let mut command = Command::new("sh");
        let output = own_session(command.args(["-c", "cut -d' ' -f6 /proc/self/stat"])).output().unwrap();
        let theirs: i32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        assert_ne!(theirs, ours.as_raw());
    }
}
