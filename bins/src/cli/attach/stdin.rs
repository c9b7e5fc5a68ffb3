//! Feeds our stdin to the command, as far as the guest has granted credit.

use super::sender::{CHUNK_HEAD, Sender};
use messages::guest::OperationFrame;
use messages::limits::STREAM_CHUNK_MAX;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, PoisonError};

/// How many bytes may be sent. A guest that grants too much only fills its own memory.
#[derive(Debug, Default)]
pub(super) struct Credit {
    state: Mutex<CreditState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct CreditState {
    bytes: u64,
    closed: bool,
}

impl Credit {
    /// Adds what the guest granted.
    pub(super) fn grant(&self, bytes: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes = state.bytes.saturating_add(u64::from(bytes));
        self.changed.notify_one();
    }

    /// The command reads no more.
    pub(super) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_one();
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
        match read(stdin, &mut buffer[CHUNK_HEAD..][..room]) {
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

/// Reads from a stream that another program may have made non-blocking.
fn read(stream: BorrowedFd<'_>, target: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match nix::unistd::read(stream, target) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(stream, PollFlags::POLLIN)];
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_spent_granted_and_closed() {
        let credit = Credit::default();
        credit.grant(10);
        credit.grant(u32::MAX);
        assert_eq!(credit.available(), Some(10 + u32::MAX as usize));
        credit.spend(5);
        assert_eq!(credit.available(), Some(5 + u32::MAX as usize));
        credit.close();
        assert_eq!(credit.available(), None);
    }
}
