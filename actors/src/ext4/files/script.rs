//! What is said to debugfs, line by line, and which part of its answer belongs to which line. Pure.
//!
//! debugfs prints lines that begin with `#` as they are, so a random word in them parts the answers: what a guest wrote onto
//! its disk before cannot contain it. Lines are parsed by libss, where a quoted word may hold anything but quotes and line
//! ends ([`Ext4Path`] has neither).

use super::{Ext4Path, FilesError};
use std::fmt::Write as _;

/// Commands, each with a place of its own in the answer.
#[derive(Debug)]
pub(super) struct Script {
    text: String,
    mark: String,
    commands: usize,
}

impl Script {
    pub(super) fn new() -> Self {
        let mark = format!("# {}", uuid::Uuid::new_v4().simple());
        Self { text: String::new(), mark, commands: 0 }
    }

    /// A command whose last argument is a path.
    pub(super) fn path(&mut self, command: &str, path: &Ext4Path) {
        self.push(&format!("{command} \"{path}\""));
    }

    /// A command about the path, with more after it.
    pub(super) fn field(&mut self, command: &str, path: &Ext4Path, rest: std::fmt::Arguments<'_>) {
        self.push(&format!("{command} \"{path}\" {rest}"));
    }

    /// Copies a file of the working directory's into the file system. `write` takes a name in debugfs's directory, no path.
    pub(super) fn write(&mut self, source: &str, directory: &Ext4Path, name: &str) {
        self.path("cd", directory);
        self.push(&format!("write {source} \"{name}\""));
    }

    fn push(&mut self, line: &str) {
        writeln!(self.text, "{} {}\n{line}", self.mark, self.commands).expect("a string takes any text");
        self.commands += 1;
    }

    /// All of it, for debugfs's input.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The answers, one for each command, without the command that debugfs repeats before it.
    ///
    /// # Errors
    /// When the marks are not all there, in order.
    pub(super) fn answers<'a>(&self, answer: &'a [u8]) -> Result<Vec<&'a [u8]>, FilesError> {
        let mut rest = answer;
        let mut answers = Vec::with_capacity(self.commands);
        for command in 0..self.commands {
            let mark = format!("{} {command}\n", self.mark);
            let missing = || FilesError::Output { line: format!("no answer to command {command}") };
            let at = find(rest, mark.as_bytes()).ok_or_else(missing)?;
            if command > 0 {
                answers.push(repeated(&rest[..at])?);
            }
            rest = &rest[at + mark.len()..];
        }
        if self.commands > 0 {
            answers.push(repeated(rest)?);
        }
        Ok(answers)
    }
}

/// An answer after the line that repeats its command.
fn repeated(answer: &[u8]) -> Result<&[u8], FilesError> {
    let end = answer.iter().position(|byte| *byte == b'\n').filter(|_| answer.starts_with(b"debugfs: "));
    let end = end.ok_or_else(|| FilesError::Output { line: super::parse::excerpt(answer) })?;
    Ok(&answer[end + 1..])
}

fn find(bytes: &[u8], word: &[u8]) -> Option<usize> {
    // The mark begins a line: candidates are few.
    let starts =
        std::iter::once(0).chain(bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1));
    starts.into_iter().find(|at| bytes[*at..].starts_with(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_own_answer_whatever_a_guest_wrote() {
        let mut script = Script::new();
        let path = Ext4Path::parse(b"/a b").unwrap();
        script.path("stat", &path);
        script.field("sif", &path, format_args!("uid {}", 7));
        assert_eq!(script.text().lines().filter(|line| line.starts_with("# ")).count(), 2);
        assert!(script.text().contains("\nstat \"/a b\"\n") && script.text().ends_with("sif \"/a b\" uid 7\n"));
        let mark = script.text().lines().next().unwrap().strip_suffix(" 0").unwrap();
        let forged = "# 0123456789abcdef0123456789abcdef 1\ndebugfs: sif\nforged\n";
        let answer = format!("{mark} 0\ndebugfs: stat \"/a b\"\nInode\n{forged}{mark} 1\ndebugfs: sif\n");
        let answers = script.answers(answer.as_bytes()).unwrap();
        assert_eq!(answers, [format!("Inode\n{forged}").as_bytes(), b""]);
        for broken in [&answer[..40], "", "debugfs: stat\n"] {
            script.answers(broken.as_bytes()).unwrap_err();
        }
    }
}
