//! System calls that neither std nor nix offers safely: the only unsafe code of the agent. No policy.
#![expect(unsafe_code, reason = "raw system calls and what runs between fork and exec")]

use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

// linux/fs.h
nix::ioctl_readwrite!(fifreeze, b'X', 119, libc::c_int);
// asm-generic/ioctls.h
nix::ioctl_write_ptr_bad!(tiocswinsz, libc::TIOCSWINSZ, libc::winsize);
nix::ioctl_read_bad!(fionread, libc::FIONREAD, libc::c_int);
// linux/vm_sockets.h: _IO(7, 0xb9)
nix::ioctl_read_bad!(vm_sockets_local_cid, 0x7b9, libc::c_uint);

/// Turns a system call's -1 into the error it left behind.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Loads a kernel module from an open file.
///
/// # Errors
/// The kernel's; `EEXIST` where the module is there already.
pub fn load_module(file: BorrowedFd<'_>) -> io::Result<()> {
    let parameters: &CStr = c"";
    // SAFETY: the descriptor is open for the whole call, and `parameters` is a NUL-terminated string that outlives it; the
    // kernel copies both and keeps no pointer.
    check(unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) }).map(drop)
}

/// Freezes the file system that `directory` lies on: everything is on the disk, its journal is empty, and writers wait.
///
/// # Errors
/// The kernel's; `EBUSY` where it is frozen already.
pub fn freeze(directory: BorrowedFd<'_>) -> io::Result<()> {
    let mut unused = 0;
    // SAFETY: FIFREEZE takes no argument from memory (the pointer is ignored by the kernel); the descriptor is open.
    unsafe { fifreeze(directory.as_raw_fd(), &raw mut unused) }?;
    Ok(())
}

/// Sets a terminal's size; the kernel sends SIGWINCH to its foreground group.
///
/// # Errors
/// The descriptor is not a terminal.
pub fn set_window_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is a whole winsize that lives through the call, which only reads it.
    unsafe { tiocswinsz(terminal.as_raw_fd(), &raw const size) }?;
    Ok(())
}

/// How many bytes wait in a pipe or terminal.
///
/// # Errors
/// The descriptor is neither.
pub fn bytes_waiting(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count = 0;
    // SAFETY: FIONREAD writes one int, and `count` is one.
    unsafe { fionread(fd.as_raw_fd(), &raw mut count) }?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Opens the other end of a pseudo-terminal without going through a path, which the guest could have replaced.
///
/// # Errors
/// The descriptor is not a pseudo-terminal's master.
pub fn open_terminal_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes its flags by value and returns a new descriptor.
    let fd = check(libc::c_long::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) }))?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives the kernel's random pool 32 bytes and the credit for them.
///
/// # Errors
/// Not root, or `random` is not the random device.
pub fn add_entropy(random: BorrowedFd<'_>, bytes: &[u8; 32]) -> io::Result<()> {
    // linux/random.h: struct rand_pool_info, with its flexible array
    #[repr(C)]
    struct PoolInfo {
        entropy_count: libc::c_int,
        buf_size: libc::c_int,
        buf: [u8; 32],
    }
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    let info = PoolInfo { entropy_count: 256, buf_size: 32, buf: *bytes };
    // SAFETY: `info` has the layout of rand_pool_info with `buf_size` bytes behind it and lives through the call.
    check(libc::c_long::from(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) })).map(drop)
}

/// The context id of this machine, from `/dev/vsock`; `None` where no transport to a host is loaded.
#[must_use]
pub fn vsock_context_id(vsock: BorrowedFd<'_>) -> Option<u32> {
    let mut cid: libc::c_uint = 0;
    // SAFETY: the call writes one unsigned int, and `cid` is one.
    unsafe { vm_sockets_local_cid(vsock.as_raw_fd(), &raw mut cid) }.ok()?;
    // 0 is the hypervisor, 1 local, 2 the host, -1 "any": none of them is a guest.
    (cid > 2 && cid != u32::MAX).then_some(cid)
}

/// Takes over a descriptor that was left open for us across exec.
///
/// # Errors
/// Nothing is open under that number.
pub fn inherit(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD on any number is harmless; it fails where nothing is open.
    check(libc::c_long::from(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }))?;
    // SAFETY: it is open (above), was passed by our parent for this process alone, and each number is taken once, at start.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Lets the program that `command` starts inherit `fd` under its number.
pub fn keep_open(command: &mut Command, fd: BorrowedFd<'_>) {
    let number = fd.as_raw_fd();
    // SAFETY: the closure makes one fcntl call, which is async-signal-safe; the number is valid as the child has a copy of
    // our descriptor table.
    unsafe {
        command.pre_exec(move || check(libc::c_long::from(libc::fcntl(number, libc::F_SETFD, 0))).map(drop));
    }
}

/// Who and where a command is, set between fork and exec.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// `None` leaves everything as the agent has it.
    pub identity: Option<Identity>,
    pub directory: PathBuf,
    /// Standard input is a terminal that becomes the controlling one.
    pub terminal: bool,
}

/// User and groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: Uid,
    pub gid: Gid,
    pub groups: Vec<Gid>,
}

/// Which step between fork and exec failed, as the offset that is added to the error number. Plain errors are exec's own.
pub const DIRECTORY_FAILED: i32 = 10_000;
/// Changing the user failed.
pub const IDENTITY_FAILED: i32 = 20_000;

fn marked(offset: i32) -> impl Fn(nix::Error) -> io::Error {
    move |error| io::Error::from_raw_os_error(offset + error as i32)
}

/// The agent is spared when memory runs out; what it starts is not, or a command that eats all memory would see everything else in
/// the guest killed before it. Makes only system calls. A failure costs no more than that.
fn forgo_memory_preference() {
    // SAFETY: both strings live for ever, and the descriptor is this function's own.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, c"0".as_ptr().cast(), 1);
            libc::close(file);
        }
    }
}

/// How many descriptors a process may ask for, and how many it has until then: what systemd gives to sessions
/// (`DefaultLimitNOFILE` in systemd-system.conf(5)).
const DESCRIPTORS: u64 = 524_288;
const DESCRIPTORS_USUAL: u64 = 1024;

/// Lets this process have as many descriptors as hundreds of commands at once need: each takes a handful.
pub fn raise_descriptor_limit() {
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Makes `command` a session of its own with these credentials.
pub fn become_session(command: &mut Command, credentials: Credentials) {
    let directory = std::ffi::CString::new(credentials.directory.into_os_string().into_encoded_bytes())
        .unwrap_or_else(|_| c"/".to_owned());
    // SAFETY: the closure runs in the forked child and makes only system calls: it allocates nothing and takes no lock; all
    // of its data was made before the fork and belongs to it.
    unsafe {
        command.pre_exec(move || {
            // Its own session and process group, so that signals reach all of it and nothing else.
            check(libc::c_long::from(libc::setsid()))?;
            if credentials.identity.is_some() {
                forgo_memory_preference();
                // The kernel's own hard limit is 4096, too low for many a server. As root still, who may raise it.
                setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS_USUAL, DESCRIPTORS).ok();
            }
            if credentials.terminal {
                check(libc::c_long::from(libc::ioctl(0, libc::TIOCSCTTY, 0)))?;
            }
            if let Some(Identity { uid, gid, groups }) = &credentials.identity {
                nix::unistd::setgroups(groups).map_err(marked(IDENTITY_FAILED))?;
                nix::unistd::setresgid(*gid, *gid, *gid).map_err(marked(IDENTITY_FAILED))?;
                nix::unistd::setresuid(*uid, *uid, *uid).map_err(marked(IDENTITY_FAILED))?;
            }
            // After the change of user: it must be allowed to go there.
            nix::unistd::chdir(directory.as_c_str()).map_err(marked(DIRECTORY_FAILED))?;
            Ok(())
        });
    }
}

/// Ends this process at once, running no destructor: for PID 1's last resort and for the process machine's end.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Makes reads and writes return at once where they would wait.
///
/// # Errors
/// The kernel's.
pub fn set_nonblocking<F: AsFd>(fd: F) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Sends a signal of any number, real-time ones too, to a process group.
///
/// # Errors
/// No such group, or not allowed.
pub fn signal_group(group: nix::unistd::Pid, number: i32) -> io::Result<()> {
    // SAFETY: killpg has no memory arguments.
    check(libc::c_long::from(unsafe { libc::killpg(group.as_raw(), number) })).map(drop)
}

/// Sends a signal of any number, real-time ones too, to a process.
///
/// # Errors
/// No such process, or not allowed.
pub fn signal_process(process: nix::unistd::Pid, number: i32) -> io::Result<()> {
    // SAFETY: kill has no memory arguments.
    check(libc::c_long::from(unsafe { libc::kill(process.as_raw(), number) })).map(drop)
}

/// Watches a descriptor for readiness.
///
/// # Errors
/// It cannot be polled.
pub fn watch(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd returns the same open descriptor for as long as it lives, and the AsyncFd owns it.
    Ok(unsafe { tokio::io::unix::AsyncFd::register(fd) }?)
}

/// Waits for any blocked signal; `None` where the wait was interrupted.
#[must_use]
pub fn wait_for_signal() -> Option<i32> {
    let mut number: libc::c_int = 0;
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset writes the whole set; sigwait only reads it and writes one int.
    let failed = unsafe {
        libc::sigfillset(set.as_mut_ptr());
        libc::sigwait(set.as_ptr(), &raw mut number)
    };
    (failed == 0).then_some(number)
}

extern "C" fn nothing(_: libc::c_int) {}

/// Gives a signal a handler that does nothing. Unlike an ignored signal it has its default again after exec.
///
/// # Errors
/// The signal cannot be caught.
pub fn do_nothing_on(signal: nix::sys::signal::Signal) -> io::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler touches nothing, so it is safe in every context.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}

/// Mixes what was added to the pool into what is handed out, at once: after a fork two guests must differ.
///
/// # Errors
/// Not root.
pub fn reseed(random: BorrowedFd<'_>) -> io::Result<()> {
    // linux/random.h: _IO('R', 7)
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    // SAFETY: the call has no memory argument.
    check(libc::c_long::from(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) })).map(drop)
}
