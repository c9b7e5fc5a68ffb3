//! A pseudo-terminal with a program on it, for what only happens on a terminal.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::wait::until;

/// The terminal's end that a person would sit at.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    slave: OwnedFd,
    lines: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Terminal {
    /// A terminal of this size.
    ///
    /// # Panics
    /// Where the host gives none.
    #[must_use]
    pub fn new(rows: u16, columns: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).unwrap();
        let master = File::from(pair.master);
        let mut reader = master.try_clone().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = reader.read(&mut buffer) {
                if count == 0 || sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { master, slave: pair.slave, lines, seen: Vec::new() }
    }

    /// Starts a program with the terminal as its three streams.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub fn start(&self, command: &mut Command) -> Child {
        command.stdin(self.stream()).stdout(self.stream()).stderr(self.stream()).spawn().unwrap()
    }

    /// The terminal as one stream of a program.
    ///
    /// # Panics
    /// Where there are no descriptors left.
    #[must_use]
    pub fn stream(&self) -> Stdio {
        Stdio::from(self.slave.try_clone().unwrap())
    }

    /// The line that was typed and that no program has read.
    ///
    /// # Panics
    /// Where there is none in time.
    #[must_use]
    pub fn unread(&self) -> String {
        let mut line = [0; 4096];
        let count = until("a line that nobody has read", || {
            let mut fds = [PollFd::new(self.slave.as_fd(), PollFlags::POLLIN)];
            (poll(&mut fds, PollTimeout::ZERO).unwrap() > 0).then(|| nix::unistd::read(&self.slave, &mut line).unwrap())
        });
        String::from_utf8_lossy(&line[..count]).into_owned()
    }

    /// Types.
    ///
    /// # Panics
    /// Where the terminal is gone.
    pub fn type_text(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until this has been printed; returns all that was seen so far.
    ///
    /// # Panics
    /// Where it is not in time.
    pub fn expect(&mut self, text: &str) -> String {
        let what = format!("`{text}` on the terminal");
        until(&what, || {
            while let Ok(bytes) = self.lines.try_recv() {
                self.seen.extend(bytes);
            }
            let seen = String::from_utf8_lossy(&self.seen).into_owned();
            seen.contains(text).then_some(seen)
        })
    }

    /// Gives it another size; whoever has it as controlling terminal hears of it.
    ///
    /// # Panics
    /// Where `stty` is missing.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = [rows.to_string(), columns.to_string()];
        let status =
            Command::new("stty").args(["rows", &size[0], "cols", &size[1]]).stdin(self.stream()).status().unwrap();
        assert!(status.success());
    }

    /// Whether typed characters are echoed: false in raw mode.
    ///
    /// # Panics
    /// Where the terminal is gone.
    #[must_use]
    pub fn echoes(&self) -> bool {
        let mode = nix::sys::termios::tcgetattr(self.slave.as_fd()).unwrap();
        mode.local_flags.contains(nix::sys::termios::LocalFlags::ECHO)
    }
}
