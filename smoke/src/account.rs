//! Counts what a run has: processes, interfaces, mounts, namespaces, sockets, files, nft tables, loop devices.
//!
//! Looks only inside the run's own namespaces and base directory. A leak is what one snapshot has more of than an earlier.

use crate::command::Program;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// How many there are of each thing, by a name that is the same from run to run (no process ids).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    things: BTreeMap<(Kind, String), usize>,
}

/// Kinds of things that can leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Process,
    Namespace,
    Interface,
    Mount,
    Socket,
    File,
    NftTable,
    LoopDevice,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Namespace => "namespace",
            Self::Interface => "interface",
            Self::Mount => "mount",
            Self::Socket => "socket",
            Self::File => "file",
            Self::NftTable => "nft table",
            Self::LoopDevice => "loop device",
        }
    }
}

impl Snapshot {
    /// Looks at everything; files are those under `directories`.
    pub(crate) fn take(directories: &[&Path]) -> Self {
        let mut snapshot = Self::default();
        snapshot.processes();
        for line in fs::read_to_string("/proc/self/net/dev").unwrap_or_default().lines().skip(2) {
            if let Some((name, _)) = line.split_once(':') {
                snapshot.add(Kind::Interface, name.trim());
            }
        }
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
            snapshot.add(Kind::Mount, line.split(' ').nth(4).unwrap_or(line));
        }
        snapshot.sockets();
        for directory in directories {
            snapshot.files(directory);
        }
        let tables = Program::tool(&["nft", "list", "tables"]).run().map(|done| done.out()).unwrap_or_default();
        for table in tables.lines() {
            snapshot.add(Kind::NftTable, table);
        }
        snapshot.loop_devices(directories);
        snapshot
    }

    fn add(&mut self, kind: Kind, name: impl Into<String>) {
        *self.things.entry((kind, name.into())).or_default() += 1;
    }

    fn processes(&mut self) {
        let own = std::process::id();
        let namespaces = |pid: u32| {
            ["mnt", "net", "user", "ipc", "uts", "pid"]
                .into_iter()
                .filter_map(move |kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok())
        };
        let known: Vec<_> = namespaces(own).collect();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // Zombies have no command line, but are leaks all the same: they show by their name.
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ");
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if pid == 1 || pid == own || name.is_empty() {
                continue;
            }
            let shown: String = if line.is_empty() { format!("({})", name.trim()) } else { line };
            self.add(Kind::Process, shown.chars().take(300).collect::<String>());
            for namespace in namespaces(pid).filter(|namespace| !known.contains(namespace)) {
                self.add(Kind::Namespace, format!("{} of {}", namespace.display(), name.trim()));
            }
        }
    }

    fn sockets(&mut self) {
        for line in fs::read_to_string("/proc/self/net/unix").unwrap_or_default().lines().skip(1) {
            // Flags 00010000: it listens.
            let mut words = line.split_whitespace();
            let listens = words.nth(3) == Some("00010000");
            if let (true, Some(path)) = (listens, words.nth(3)) {
                self.add(Kind::Socket, path);
            }
        }
        for table in ["tcp", "tcp6", "udp", "udp6"] {
            for line in fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default().lines().skip(1) {
                let words: Vec<&str> = line.split_whitespace().collect();
                // 0A is LISTEN; 07 is what a bound UDP socket shows.
                if let [_, local, _, "0A" | "07", ..] = words[..] {
                    self.add(Kind::Socket, format!("{table} {local}"));
                }
            }
        }
    }

    fn files(&mut self, directory: &Path) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                self.files(&path);
            }
            let name = path.display().to_string();
            // SQLite makes and removes these two as it likes.
            if kind.is_socket() || !(name.ends_with("-wal") || name.ends_with("-shm") || name.ends_with("-journal")) {
                self.add(Kind::File, name);
            }
        }
    }

    fn loop_devices(&mut self, directories: &[&Path]) {
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            if directories.iter().any(|directory| Path::new(backing.trim()).starts_with(directory)) {
                self.add(Kind::LoopDevice, backing.trim());
            }
        }
    }

    /// What this snapshot has more of than `before`, one line each. `ignored` kinds are left out.
    pub(crate) fn more_than(&self, before: &Self, ignored: &[Kind]) -> Vec<String> {
        let more = |(key, count): (&(Kind, String), &usize)| {
            let was = before.things.get(key).copied().unwrap_or(0);
            (*count > was && !ignored.contains(&key.0)).then(|| match count - was {
                1 => format!("{}: {}", key.0.word(), key.1),
                many => format!("{}: {} ({many} times)", key.0.word(), key.1),
            })
        };
        self.things.iter().filter_map(more).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_process_and_socket_are_leaks() {
        let directory = tempfile::tempdir().unwrap();
        let before = Snapshot::take(&[directory.path()]);
        let socket = directory.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let marker = format!("0.{}", std::process::id());
        let running = Program::tool(&["sh", "-c", "echo up; read line", &marker]);
        let (reader, _writer) = std::io::pipe().unwrap();
        let running = Program { input: crate::command::Input::Reader(Box::new(reader)), ..running }.spawn().unwrap();
        running.wait_for_stdout("up", crate::command::DEADLINE).unwrap();
        let leaks = Snapshot::take(&[directory.path()]).more_than(&before, &[]);
        let shown = socket.display().to_string();
        assert!(leaks.contains(&format!("file: {shown}")), "{leaks:?}");
        assert!(leaks.contains(&format!("socket: {shown}")), "{leaks:?}");
        assert!(leaks.iter().any(|leak| leak.starts_with("process: ") && leak.contains(&marker)), "{leaks:?}");
        running.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
        running.finish().unwrap();
        drop(listener);
    }

    #[test]
    fn counts_matter_and_kinds_can_be_left_out() {
        let (mut one, mut two) = (Snapshot::default(), Snapshot::default());
        one.add(Kind::Process, "x");
        two.add(Kind::Process, "x");
        two.add(Kind::Process, "x");
        two.add(Kind::File, "f");
        assert_eq!(two.more_than(&one, &[]), ["process: x", "file: f"]);
        assert_eq!(two.more_than(&one, &[Kind::File]), ["process: x"]);
        assert!(one.more_than(&two, &[]).is_empty());
    }
}
