//! The user's terminal in raw mode, and back on every way out: the end of the attachment, a panic, and signals (which
//! all go to the command, so that the attachment ends before the program does).

use messages::guest::TerminalSize;
use nix::sys::termios::{self, SetArg, Termios};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::{Mutex, Once, PoisonError};

/// How the terminal was, while it is raw. Global because a panic hook has no other way to it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// While it lives, stdin is a terminal in raw mode.
#[derive(Debug)]
pub(super) struct RawTerminal(());

impl RawTerminal {
    /// Puts stdin in raw mode; `None` where it is no terminal.
    pub(super) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        HOOK.call_once(|| {
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                report(panic);
            }));
        });
        let before = termios::tcgetattr(stdin.as_fd())?;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before.clone());
        let guard = Self(());
        set_raw(before)?;
        Ok(Some(guard))
    }

    /// Raw mode again, after somebody else had the terminal.
    pub(super) fn reenter() {
        let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(before) = before {
            // A terminal that has gone needs no mode.
            set_raw(before).ok();
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn set_raw(mut mode: Termios) -> nix::Result<()> {
    termios::cfmakeraw(&mut mode);
    termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &mode)
}

fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // A terminal that has gone needs no mode.
        termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &before).ok();
    }
}

/// The size of the terminal that we have, if we have one that knows its size.
pub(super) fn terminal_size() -> Option<TerminalSize> {
    let known = |term: &console::Term| term.is_term().then(|| term.size_checked()).flatten();
    let (rows, columns) = known(&console::Term::stdout()).or_else(|| known(&console::Term::stderr()))?;
    (rows > 0 && columns > 0).then_some(TerminalSize { rows, columns })
}
