//! What our signals mean to a command in a guest. One thread takes them all; every other thread has them blocked. Another one
//! passes them on, which a guest that takes nothing in may hold up for ever: the user can leave meanwhile.

use super::sender::{Leave, Sender};
use super::terminal::{RawTerminal, terminal_size};
use messages::guest::OperationFrame;
use nix::sys::signal::{SigSet, Signal};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Two Ctrl-C within this are a wish to leave, and so are two SIGTERM.
const TWICE: Duration = Duration::from_secs(1);
/// Signals that wait for the guest; more of them would say nothing new.
const WAITING_MAX: usize = 64;
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

/// Lets the calling thread have them again.
pub(super) fn unblock(set: &SigSet) {
    // The set is one that was blocked: there is nothing to refuse.
    set.thread_unblock().ok();
}

/// What the guest is told of a signal.
#[derive(Clone, Copy, Debug)]
enum Note {
    Signal(Signal),
    /// Our terminal has another size, which is asked for when it is told.
    Resized,
}

/// Passes signals on, one after the other, from a thread of its own.
#[derive(Debug)]
struct Forwarder {
    notes: SyncSender<Note>,
    /// How many have not been passed on yet.
    waiting: Arc<AtomicUsize>,
}

impl Forwarder {
    fn start(sender: Arc<Sender>) -> io::Result<Self> {
        let (notes, taken) = sync_channel(WAITING_MAX);
        let waiting = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&waiting);
        std::thread::Builder::new().name("forward".to_owned()).spawn(move || {
            for note in taken {
                // A guest that is gone is the reader's to find out.
                let _sent: bool = match note {
                    Note::Signal(signal) => sender.send(&OperationFrame::Signal(signal as i32)),
                    Note::Resized => terminal_size().is_none_or(|size| sender.resize(size)),
                };
                count.fetch_sub(1, Ordering::SeqCst);
            }
        })?;
        Ok(Self { notes, waiting })
    }

    fn pass_on(&self, note: Note) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        if self.notes.try_send(note).is_err() {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn is_stuck(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }
}

/// Owns what signals act on.
#[derive(Debug)]
pub(super) struct Handler {
    sender: Arc<Sender>,
    forwarder: Forwarder,
    /// Our terminal is in raw mode.
    raw: bool,
    /// The command has a terminal.
    terminal: bool,
}

impl Handler {
    /// One for the command behind `sender`.
    ///
    /// # Errors
    /// There is no other thread to be had.
    pub(super) fn new(sender: Arc<Sender>, raw: bool, terminal: bool) -> io::Result<Self> {
        let forwarder = Forwarder::start(Arc::clone(&sender))?;
        Ok(Self { sender, forwarder, raw, terminal })
    }

    /// Takes signals until the user leaves or the program ends.
    pub(super) fn run(&self, set: &SigSet) {
        let (mut interrupted, mut terminated) = (None, None);
        loop {
            let Ok(signal) = set.wait() else { continue };
            let leave = match signal {
                Signal::SIGINT => self.again(&mut interrupted).then_some(Leave::Detached),
                Signal::SIGTERM => self.again(&mut terminated).then_some(Leave::Terminated),
                _ => None,
            };
            if let Some(why) = leave {
                self.sender.leave(why);
                return;
            }
            match signal {
                Signal::SIGWINCH | Signal::SIGCONT => self.resized(signal),
                Signal::SIGHUP => {
                    self.leave_later();
                    self.forwarder.pass_on(Note::Signal(signal));
                }
                signal => self.forwarder.pass_on(Note::Signal(signal)),
            }
        }
    }

    /// Whether this one comes soon after the last, or while the guest still has not taken that.
    fn again(&self, last: &mut Option<Instant>) -> bool {
        let before = last.replace(Instant::now());
        before.is_some_and(|when| when.elapsed() < TWICE || self.forwarder.is_stuck())
    }

    fn resized(&self, signal: Signal) {
        // Whoever stopped us (a shell's job control) has put the terminal back as it was.
        if signal == Signal::SIGCONT && self.raw {
            RawTerminal::reenter();
        }
        if self.terminal {
            self.forwarder.pass_on(Note::Resized);
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
