//! File systems made here, judged by e2fsck and read back by debugfs: neither is ours.

mod attributes;
mod contents;
mod directories;
mod hashes;
mod nodes;
mod random;
mod refused;

use crate::ext4::writer::{Builder, DATA_START, Meta, Options, Run};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;
use uuid::Uuid;

const UUID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
const OPTIONS: Options<'_> = Options { uuid: UUID, label: "sixteen bytes ok" };

fn meta(mode: u16) -> Meta {
    Meta { mode, uid: 0, gid: 0, mtime: (1_600_000_000, 0) }
}

fn builder() -> Builder {
    Builder::new(OPTIONS).unwrap()
}

/// A file to write a file system into, contents first.
struct Disk {
    _directory: TempDir,
    path: PathBuf,
    file: File,
    /// The next free block.
    end: u32,
}

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fs");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        Self { _directory: directory, path, file, end: DATA_START }
    }

    /// Puts contents behind those that are there.
    fn put(&mut self, bytes: &[u8]) -> Run {
        self.file.write_all_at(bytes, u64::from(self.end) * crate::ext4::writer::BLOCK).unwrap();
        self.hole(bytes.len() as u64)
    }

    /// The same of zeros, which take no space.
    fn hole(&mut self, size: u64) -> Run {
        let run = Run::whole(self.end, size);
        self.end += run.blocks;
        run
    }

    /// Finishes it and has it judged.
    fn finish(&self, builder: Builder) -> u64 {
        let length = builder.finish(&self.file, self.end).unwrap();
        assert_eq!(self.file.metadata().unwrap().len(), length);
        clean(&self.path);
        length
    }

    fn ask(&self, requests: &[&[u8]]) -> Vec<String> {
        debugfs(&self.path, requests)
    }

    fn stat(&self, path: &str) -> String {
        self.ask(&[format!("stat \"{path}\"").as_bytes()]).remove(0)
    }

    fn cat(&self, path: &str) -> Vec<u8> {
        let arguments = ["-R", &format!("cat \"{path}\"")];
        tool("debugfs").args(arguments).arg(&self.path).output().unwrap().stdout
    }

    /// What the superblock says, without the groups.
    fn summary(&self) -> String {
        let output = tool("dumpe2fs").arg("-h").arg(&self.path).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    command.env("PATH", search).env("LC_ALL", "C").env("TZ", "UTC");
    command
}

/// Neither errors nor remarks.
fn clean(path: &Path) {
    let output = tool("e2fsck").arg("-fn").arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let heard = String::from_utf8_lossy(&output.stderr);
    let expected = |line: &str| {
        line.starts_with("Pass ")
            || line.starts_with("sixteen_bytes_ok: ") && line.ends_with(" blocks")
            || line.is_empty()
    };
    let quiet = said.lines().all(expected) && heard.lines().all(|line| line.starts_with("e2fsck 1."));
    assert!(output.status.success() && quiet, "{said}{heard}");
}

/// The answers to requests, in their order.
fn debugfs(path: &Path, requests: &[&[u8]]) -> Vec<String> {
    let mut child = tool("debugfs")
        .args(["-f", "-"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = requests.join(&b"\n"[..]);
    lines.push(b'\n');
    let writer = std::thread::spawn(move || stdin.write_all(&lines).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = output.stdout.escape_ascii().to_string().replace("\\n", "\n").replace("\\\"", "\"");
    let answers: Vec<String> =
        text.split("debugfs: ").skip(1).map(|part| part.split_once('\n').unwrap().1.to_owned()).collect();
    assert_eq!(answers.len(), requests.len(), "{text}");
    answers
}
