//! Feeds our stdin to the command, as far as the guest has granted credit and for as long as somebody wants it: what is typed
//! after the command's end is for whoever reads next.

use super::sender::{CHUNK_HEAD, Sender};
use messages::guest::OperationFrame;
use messages::limits::STREAM_CHUNK_MAX;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, PoisonError};

/// How many bytes may be sent. A guest that grants too much only fills its own memory.
#[derive(Debug)]
pub(super) struct Credit {
    state: Mutex<CreditState>,
    changed: Condvar,
    /// Readable once it is closed.
    closed: EventFd,
}

#[derive(Debug, Default)]
struct CreditState {
    bytes: u64,
    closed: bool,
}

impl Credit {
    /// None yet.
    pub(super) fn new() -> io::Result<Self> {
        let closed = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { state: Mutex::default(), changed: Condvar::new(), closed })
    }

    /// Adds what the guest granted.
    pub(super) fn grant(&self, bytes: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes = state.bytes.saturating_add(u64::from(bytes));
        self.changed.notify_one();
    }

    /// The command reads no more, or has ended. No byte of stdin is read from now on.
    pub(super) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_one();
        // A counter that is full is readable as well.
        self.closed.write(1).ok();
    }

    /// Waits until there is something to read; false once nobody wants it.
    fn wait_for(&self, stream: BorrowedFd<'_>) -> bool {
        let mut fds = [PollFd::new(stream, PollFlags::POLLIN), PollFd::new(self.closed.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                // Whatever else there may be to say of the stream, the read says it.
                Ok(_) => return fds[1].revents().is_some_and(|events| events.is_empty()),
                Err(Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
    }

    /// Waits for credit; `None` once the command reads no more.
    fn available(&self) -> Option<usize> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self
            .changed
            .wait_while(state, |state| state.bytes == 0 && !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        (!state.closed).then(|| usize::try_from(state.bytes).unwrap_or(usize::MAX))
    }

    fn spend(&self, bytes: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes = state.bytes.saturating_sub(bytes as u64);
    }
}

/// Copies stdin until it ends or nobody wants it. Runs in a thread of its own, which the end of the program ends.
pub(super) fn pump(credit: &Credit, sender: &Sender) {
    let stdin = std::io::stdin();
    let stdin = stdin.as_fd();
    // A pipe gives 64 KiB a read unless it is made larger; a limit of the host's or no pipe at all is fine.
    fcntl(stdin, FcntlArg::F_SETPIPE_SZ(1 << 20)).ok();
    let mut buffer = vec![0; CHUNK_HEAD + STREAM_CHUNK_MAX];
    while let Some(available) = credit.available() {
        let room = available.min(STREAM_CHUNK_MAX);
        if !credit.wait_for(stdin) {
            return;
        }
        match nix::unistd::read(stdin, &mut buffer[CHUNK_HEAD..][..room]) {
            // EAGAIN: another program has made it non-blocking, and was faster.
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // An error is an end: what there was has been sent.
            Ok(0) | Err(_) => {
                sender.send(&OperationFrame::StdinEnd);
                return;
            }
            Ok(length) => {
                credit.spend(length);
                if !sender.send_chunk(&mut buffer, length) {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_spent_granted_and_closed() {
        let credit = Credit::new().unwrap();
        credit.grant(10);
        credit.grant(u32::MAX);
        assert_eq!(credit.available(), Some(10 + u32::MAX as usize));
        credit.spend(5);
        assert_eq!(credit.available(), Some(5 + u32::MAX as usize));
        credit.close();
        assert_eq!(credit.available(), None);
    }

    #[test]
    fn what_comes_after_the_end_is_not_waited_for_or_taken() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let credit = Credit::new().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| credit.wait_for(reader.as_fd()));
            credit.close();
            assert!(!waiting.join().unwrap());
        });
        nix::unistd::write(&writer, b"next").unwrap();
        assert!(!credit.wait_for(reader.as_fd()));
        drop(writer);
        let credit = Credit::new().unwrap();
        assert!(credit.wait_for(reader.as_fd()), "an end is something to read");
    }
}
