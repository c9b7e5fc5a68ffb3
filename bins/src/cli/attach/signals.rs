//! What our signals mean to a command in a guest. One thread takes them all; every other thread has them blocked.

use super::sender::{Leave, Sender};
use super::terminal::{RawTerminal, terminal_size};
use messages::guest::OperationFrame;
use nix::sys::signal::{SigSet, Signal};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Two Ctrl-C within this are a wish to leave.
const TWICE: Duration = Duration::from_secs(1);
/// How long a command may take to end after our terminal has gone.
const HANGUP_GRACE: Duration = Duration::from_secs(5);

/// Blocks every signal that the handler takes, for this thread and all that it makes.
pub(super) fn block() -> nix::Result<SigSet> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGWINCH, Signal::SIGCONT]
    {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(set)
}

/// Owns what signals act on.
#[derive(Debug)]
pub(super) struct Handler {
    pub(super) sender: Arc<Sender>,
    /// Our terminal is in raw mode.
    pub(super) raw: bool,
    /// The command has a terminal.
    pub(super) terminal: bool,
}

impl Handler {
    /// Takes signals until the program ends.
    pub(super) fn run(&self, set: &SigSet) {
        let mut interrupted: Option<Instant> = None;
        loop {
            let Ok(signal) = set.wait() else { continue };
            match signal {
                Signal::SIGINT if interrupted.is_some_and(|when| when.elapsed() < TWICE) => {
                    self.sender.leave(Leave::Detached);
                    return;
                }
                Signal::SIGWINCH | Signal::SIGCONT => self.resized(signal),
                Signal::SIGHUP => {
                    self.forward(signal);
                    self.leave_later();
                }
                signal => {
                    if signal == Signal::SIGINT {
                        interrupted = Some(Instant::now());
                    }
                    self.forward(signal);
                }
            }
        }
    }

    fn forward(&self, signal: Signal) {
        // A guest that is gone is the reader's to find out.
        let _sent: bool = self.sender.send(&OperationFrame::Signal(signal as i32));
    }

    fn resized(&self, signal: Signal) {
        // Whoever stopped us (a shell's job control) has put the terminal back as it was.
        if signal == Signal::SIGCONT && self.raw {
            RawTerminal::reenter();
        }
        if self.terminal
            && let Some(size) = terminal_size()
        {
            let _sent: bool = self.sender.resize(size);
        }
    }

    fn leave_later(&self) {
        let sender = Arc::clone(&self.sender);
        let leave = move || {
            std::thread::sleep(HANGUP_GRACE);
            sender.leave(Leave::HungUp);
        };
        if std::thread::Builder::new().name("hangup".to_owned()).spawn(leave).is_err() {
            self.sender.leave(Leave::HungUp);
        }
    }
}
