//! Starts a program that outlives us: own session, clean signals, exactly the descriptors and environment it is given.
//!
//! `posix_spawn` rather than fork: it copies no page tables of a large daemon and runs no code of ours in between, so it is
//! fast and safe with any number of threads. What is started, and what becomes of it, is decided by `actors::vmm::process`.
#![expect(unsafe_code, reason = "posix_spawn has no wrapper that makes a session and closes every other descriptor")]

use nix::fcntl::FcntlArg;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The first descriptor that the child does not have: 0 to 2 are its standard streams, 3 is [`Detached::kept`].
const FIRST_CLOSED: i32 = 4;

/// A program to start.
#[derive(Debug)]
pub struct Detached<'a> {
    /// An absolute path: nothing is searched.
    pub program: &'a Path,
    /// Without the program's own name, which is the path.
    pub arguments: &'a [OsString],
    /// The whole environment.
    pub environment: &'a [(OsString, OsString)],
    pub stdin: BorrowedFd<'a>,
    /// Its stdout and its stderr.
    pub output: BorrowedFd<'a>,
    /// Its descriptor 3: a lock that is to live as long as the program does.
    pub kept: BorrowedFd<'a>,
}

impl Detached<'_> {
    /// Starts it in a session and process group of its own, with no signal blocked or ignored, and returns its id. It is a
    /// child of the caller's until it is reaped.
    ///
    /// # Errors
    /// What exec says (`ENOENT`, `EACCES`, `ENOEXEC` …), `EAGAIN` or `ENOMEM`; `InvalidInput` for a NUL in a string.
    pub fn spawn(&self) -> io::Result<u32> {
        let program = c_string(self.program.as_os_str())?;
        let mut argv = vec![program.clone()];
        for argument in self.arguments {
            argv.push(c_string(argument)?);
        }
        let mut envp = Vec::new();
        for (key, value) in self.environment {
            let mut entry = key.clone();
            entry.push("=");
            entry.push(value);
            envp.push(c_string(&entry)?);
        }
        let argv = Pointers::of(&argv);
        let envp = Pointers::of(&envp);
        // A source below FIRST_CLOSED could be overwritten by one of the dup2 before its turn.
        let (stdin, output, kept) = (above(self.stdin)?, above(self.output)?, above(self.kept)?);
        let actions = Actions::new(&[(&stdin, 0), (&output, 1), (&output, 2), (&kept, 3)])?;
        let attributes = Attributes::new()?;
        let mut pid: libc::pid_t = 0;
        // SAFETY: the path is a C string; `actions` and `attributes` were initialised and live until the end of this
        // function; both pointer arrays end in null and point to C strings that are still owned here.
        let failed = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                program.as_ptr(),
                &raw const actions.0,
                &raw const attributes.0,
                argv.0.as_ptr(),
                envp.0.as_ptr(),
            )
        };
        check(failed)?;
        u32::try_from(pid).map_err(|_| io::Error::other("posix_spawn gave no process id"))
    }
}

fn above(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = nix::fcntl::fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(FIRST_CLOSED))?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|nul| io::Error::new(io::ErrorKind::InvalidInput, nul))
}

/// The posix_spawn family returns the error itself.
fn check(error: libc::c_int) -> io::Result<()> {
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// A null-terminated array of pointers into C strings that outlive it.
struct Pointers<'a>(Vec<*mut libc::c_char>, std::marker::PhantomData<&'a [CString]>);

impl<'a> Pointers<'a> {
    fn of(strings: &'a [CString]) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr().cast_mut());
        Self(pointers.chain(std::iter::once(std::ptr::null_mut())).collect(), std::marker::PhantomData)
    }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new(descriptors: &[(&OwnedFd, i32)]) -> io::Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: the call initialises what it is pointed to, or fails.
        check(unsafe { libc::posix_spawn_file_actions_init(raw.as_mut_ptr()) })?;
        // SAFETY: initialised just above.
        let mut actions = Self(unsafe { raw.assume_init() });
        for (source, target) in descriptors {
            // SAFETY: `actions` is initialised; the source is open until after the spawn. dup2 clears CLOEXEC on the target.
            check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut actions.0, source.as_raw_fd(), *target) })?;
        }
        // SAFETY: `actions` is initialised.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(&raw mut actions.0, FIRST_CLOSED) })?;
        Ok(actions)
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, and destroyed only here.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: the call initialises what it is pointed to, or fails.
        check(unsafe { libc::posix_spawnattr_init(raw.as_mut_ptr()) })?;
        // SAFETY: initialised just above.
        let mut attributes = Self(unsafe { raw.assume_init() });
        // A session has a new process group too. Rust ignores SIGPIPE and tokio's threads may block signals: the program
        // gets none of that.
        let flags =
            libc::POSIX_SPAWN_SETSID | c_short(libc::POSIX_SPAWN_SETSIGMASK) | c_short(libc::POSIX_SPAWN_SETSIGDEF);
        let (mut none, mut all) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: both calls initialise the set they are pointed to and cannot fail on a valid pointer; after them both
        // sets are initialised, as is `attributes`.
        unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigfillset(all.as_mut_ptr());
            check(libc::posix_spawnattr_setsigmask(&raw mut attributes.0, none.as_ptr()))?;
            check(libc::posix_spawnattr_setsigdefault(&raw mut attributes.0, all.as_ptr()))?;
            check(libc::posix_spawnattr_setflags(&raw mut attributes.0, flags))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, and destroyed only here.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

/// The flags are small constants that libc declares as int.
fn c_short(flag: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(flag).expect("posix_spawn's flags fit a short")
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;
    use std::fs::File;
    use std::os::fd::AsFd;

    fn run(script: &str) -> (String, WaitStatus) {
        let (null, lock) = (File::open("/dev/null").unwrap(), tempfile());
        let output = tempfile();
        let spawn = Detached {
            program: Path::new("/bin/sh"),
            arguments: &["-c".into(), script.into()],
            environment: &[("ONLY".into(), "this one".into())],
            stdin: null.as_fd(),
            output: output.as_fd(),
            kept: lock.as_fd(),
        };
        let pid = spawn.spawn().unwrap();
        let status = waitpid(Pid::from_raw(pid.cast_signed()), None).unwrap();
        let path = format!("/proc/self/fd/{}", output.as_raw_fd());
        (std::fs::read_to_string(path).unwrap(), status)
    }

    fn tempfile() -> File {
        let name = format!("detached-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    #[test]
    fn the_child_has_its_four_descriptors_and_nothing_else() {
        let leaked = nix::fcntl::fcntl(tempfile(), nix::fcntl::FcntlArg::F_DUPFD(40)).unwrap();
        let (text, _) = run("(for fd in /proc/$$/fd/*; do echo ${fd##*/}; done); :");
        nix::unistd::close(leaked).unwrap();
        // A subshell looks at its parent, which waits: its own look would list the directory it reads, and a pipeline its pipe.
        assert_eq!(text, "0\n1\n2\n3\n");
    }

    #[test]
    fn the_child_leads_its_own_session_with_clean_signals_and_environment() {
        let (text, _) = run(
            "read -r pid name state parent group session rest </proc/$$/stat; [ $group = $$ ] && [ $session = $$ ] && echo own; \
             echo $ONLY; echo ${HOME-none}; while read -r key value; do case $key in SigBlk:|SigIgn:) echo $value;; esac; done </proc/$$/status",
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["own", "this one", "none"]);
        // glibc leaves its own two (32 and 33, unusable by programs) ignored in what it spawns.
        let signals = lines[3..].iter().map(|line| u64::from_str_radix(line, 16).unwrap() & !(0b11 << 31));
        assert_eq!(signals.collect::<Vec<u64>>(), [0, 0]);
    }

    #[test]
    fn a_missing_program_is_told_at_once() {
        let null = File::open("/dev/null").unwrap();
        let spawn = Detached {
            program: Path::new("/nonexistent/vmm"),
            arguments: &[],
            environment: &[],
            stdin: null.as_fd(),
            output: null.as_fd(),
            kept: null.as_fd(),
        };
        assert_eq!(spawn.spawn().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
