//! The actor and what it does to real file systems, judged by e2fsck.

use super::tool::Tools;
use super::{Change, ChangeFiles, Ext4Files, Ext4Path, FileKind, FilesError, ListDirectory, Owner, ReadFile, StatFile};
use super::{operate, plan};
use crate::ext4::disk::create_disk;
use messages::{ErrorKind, WireError};
use nix::fcntl::{FcntlArg, fcntl};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const ME: Owner = Owner { uid: 1000, gid: 4_294_967_294 };

struct Fixture {
    directory: TempDir,
    runtime: Runtime,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let fixture = Self { directory, runtime };
        create_disk(&fixture.directory.path().join("templates"), &fixture.disk(), 64 << 20).unwrap();
        fixture
    }

    /// A name that tools would read as something else.
    fn disk(&self) -> PathBuf {
        self.directory.path().join("-disk?offset=1024 \"x\".ext4")
    }

    fn tools(&self) -> Tools {
        Tools::new(self.runtime.handle().clone())
    }

    fn change(&self, changes: &[Change]) -> Result<Vec<super::FileStat>, FilesError> {
        operate::change(&self.tools(), &self.disk(), changes)
    }

    fn read(&self, text: &str) -> Result<Vec<u8>, FilesError> {
        operate::read(&self.tools(), &self.disk(), &path(text))
    }

    /// What debugfs does on its own, and e2fsck says of it.
    fn debugfs(&self, script: &str) {
        let input = self.directory.path().join("script");
        fs::write(&input, script).unwrap();
        let output = tool("debugfs").args(["-w", "-f"]).arg(input).arg(self.plain()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// The disk by a name that is nothing but a name.
    fn plain(&self) -> PathBuf {
        let link = self.directory.path().join("plain");
        drop(fs::remove_file(&link));
        std::os::unix::fs::symlink(self.disk(), &link).unwrap();
        link
    }

    fn assert_clean(&self) {
        let output = tool("e2fsck").arg("-fn").arg(self.plain()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        // Nothing is left beside it.
        let work = fs::read_dir(self.directory.path()).unwrap().filter_map(Result::ok);
        assert!(!work.into_iter().any(|entry| entry.file_name().to_string_lossy().ends_with(".work")));
    }
}

fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}

fn path(text: &str) -> Ext4Path {
    Ext4Path::parse(text.as_bytes()).unwrap()
}

fn write(text: &str, contents: &[u8]) -> Change {
    Change::WriteFile { path: path(text), owner: ME, mode: 0o4640, contents: contents.to_vec() }
}

fn directory(text: &str) -> Change {
    Change::MakeDirectory { path: path(text), owner: ME, mode: 0o2750 }
}

#[test]
fn what_is_written_is_there_and_nothing_else_has_changed() {
    let fixture = Fixture::new();
    fs::set_permissions(fixture.disk(), fs::Permissions::from_mode(0o600)).unwrap();
    let changes = [
        directory("/upper/home"),
        directory("/upper/home/<2> \u{fc}"),
        write("/upper/home/<2> \u{fc}/-x #1 \\n !ls", b"contents\n"),
        write("/empty", b""),
        write("/zeros", &[0; 300_000]),
        Change::SetOwner { path: path("/work"), owner: ME, mode: None },
        Change::SetOwner { path: path("/docker"), owner: ME, mode: Some(0o711) },
    ];
    let stats = fixture.change(&changes).unwrap();
    assert_eq!(stats.len(), changes.len());
    let odd = &stats[2];
    assert_eq!((odd.kind, odd.mode, odd.uid, odd.gid, odd.size), (FileKind::Regular, 0o4640, 1000, 4_294_967_294, 9));
    assert_eq!((stats[5].mode, stats[5].uid, stats[6].mode), (0o755, 1000, 0o711));
    fixture.assert_clean();
    assert_eq!(fixture.read("/upper/home/<2> \u{fc}/-x #1 \\n !ls").unwrap(), b"contents\n");
    assert_eq!(fixture.read("/empty").unwrap(), b"");
    assert!(fixture.read("/zeros").unwrap() == [0; 300_000]);
    let entries = operate::list(&fixture.tools(), &fixture.disk(), &path("/upper/home")).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].name.to_str(), entries[0].mode), (Some("<2> \u{fc}"), 0o2750));
    let metadata = fs::metadata(fixture.disk()).unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.len()), (0o600, 64 << 20));
    assert!(metadata.blocks() * 512 < 4 << 20, "holes are still holes");
    let stat = operate::stat(&fixture.tools(), &fixture.disk(), &path("/containers")).unwrap();
    assert_eq!((stat.mode, stat.uid), (0o755, 0));
}

#[test]
fn a_file_is_replaced_also_one_with_attributes_and_other_names() {
    let fixture = Fixture::new();
    fixture.change(&[write("/f", &[7; 100_000]), write("/g", b"g")]).unwrap();
    let value = fixture.directory.path().join("value");
    fs::write(&value, [1; 2000]).unwrap();
    fixture.debugfs(&format!("ea_set -f {} /f user.big\nln /g /other\nsif /g links_count 2\n", value.display()));
    fixture.assert_clean();
    fixture.change(&[write("/f", b"new"), write("/g", b"also new")]).unwrap();
    fixture.assert_clean();
    assert_eq!(fixture.read("/f").unwrap(), b"new");
    assert_eq!((fixture.read("/g").unwrap(), fixture.read("/other").unwrap()), (b"also new".to_vec(), b"g".to_vec()));
}

#[test]
fn what_is_refused_changes_nothing() {
    let fixture = Fixture::new();
    fixture.debugfs("symlink /link upper\nsymlink /loop loop\nmknod pipe p\n");
    let before = fs::read(fixture.disk()).unwrap();
    for (change, word) in [
        (write("/link/x", b""), "/link"),
        (write("/link", b""), "/link"),
        (write("/loop/x", b""), "/loop"),
        (write("/pipe", b""), "fifo"),
        (write("/pipe/x", b""), "fifo"),
        (write("/upper", b""), "directory"),
        (write("/nowhere/x", b""), "/nowhere"),
        (directory("/pipe"), "fifo"),
    ] {
        let error = fixture.change(&[directory("/made"), change]).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(fs::read(fixture.disk()).unwrap() == before, "{error}");
    }
    let error = fixture.change(&[write("/large", &vec![1; 70 << 20])]).unwrap_err();
    assert!(matches!(error, FilesError::Full { .. }), "{error}");
    assert_eq!(WireError::from(&error).kind, ErrorKind::Resources);
    assert!(matches!(fixture.read("/link"), Err(FilesError::Symlink { .. })));
    assert!(matches!(fixture.read("/upper"), Err(FilesError::Kind { kind: FileKind::Directory, .. })));
    assert!(matches!(fixture.read("/upper/x"), Err(FilesError::NotFound { path }) if path == "/upper/x"));
    assert!(fs::read(fixture.disk()).unwrap() == before);
    fixture.assert_clean();
}

#[test]
fn a_disk_that_somebody_uses_is_left_alone() {
    let fixture = Fixture::new();
    let user = File::options().read(true).write(true).open(fixture.disk()).unwrap();
    // As QEMU does it: shared, on single bytes (qemu, block/file-posix.c).
    let byte = nix::libc::flock { l_type: 0, l_whence: 0, l_start: 101, l_len: 1, l_pid: 0 };
    fcntl(&user, FcntlArg::F_OFD_SETLK(&byte)).unwrap();
    let error = fixture.change(&[directory("/d")]).unwrap_err();
    assert!(matches!(error, FilesError::InUse { .. }), "{error}");
    assert!(matches!(fixture.read("/f"), Err(FilesError::InUse { .. })));
    drop(user);
    fixture.change(&[directory("/d")]).unwrap();
}

#[test]
fn what_is_no_file_system_is_an_error_and_stays() {
    let fixture = Fixture::new();
    fs::write(fixture.disk(), [9; 100_000]).unwrap();
    let error = fixture.change(&[directory("/d")]).unwrap_err();
    assert!(matches!(error, FilesError::Damaged { .. }), "{error}");
    assert!(matches!(fixture.read("/f"), Err(FilesError::Damaged { .. })));
    assert!(fs::read(fixture.disk()).unwrap() == [9; 100_000]);
    for disk in [Path::new("relative"), fixture.directory.path(), Path::new("/dev/null"), Path::new("/no/such/disk")] {
        let error = operate::stat(&fixture.tools(), disk, &path("/")).unwrap_err();
        assert!(matches!(error, FilesError::Disk { .. }), "{}: {error}", disk.display());
    }
}

#[test]
fn a_journal_is_replayed_before_anything_else() {
    let fixture = Fixture::new();
    // A transaction in the journal that was never checkpointed: `jw` writes the root directory's block there, with a changed
    // byte, and marks the file system as in need of recovery. That is how a VM that was killed leaves its disk.
    let block = root_block(&fixture);
    let mut bytes = vec![0; 4096];
    let disk = File::open(fixture.disk()).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&disk, &mut bytes, block * 4096).unwrap();
    let at = bytes.windows(5).position(|name| name == b"upper").unwrap();
    bytes[at..at + 5].copy_from_slice(b"UPPER");
    let changed = fixture.directory.path().join("block");
    fs::write(&changed, &bytes).unwrap();
    fixture.debugfs(&format!("jo\njw -b {block} {}\njc\n", changed.display()));
    // The directory's checksum does not fit its new name: replaying it is seen, and put right on the way to a change.
    let error = operate::stat(&fixture.tools(), &fixture.disk(), &path("/upper"));
    assert!(error.is_err(), "the journal was not replayed: {error:?}");
}

/// Where the root directory's only block is.
fn root_block(fixture: &Fixture) -> u64 {
    let output = tool("debugfs").args(["-R", "bmap / 0"]).arg(fixture.plain()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn a_kill_in_the_middle_leaves_the_disk_as_it_was() {
    let fixture = Fixture::new();
    let before = fs::read(fixture.disk()).unwrap();
    // What a claim leaves behind that never came to its end.
    let mut work = fixture.disk().into_os_string();
    work.push(".work");
    fs::create_dir(&work).unwrap();
    fs::write(Path::new(&work).join("disk"), b"half a copy").unwrap();
    assert!(fs::read(fixture.disk()).unwrap() == before);
    fixture.change(&[write("/f", b"x")]).unwrap();
    fixture.assert_clean();
    assert_eq!(fixture.read("/f").unwrap(), b"x");
}

#[test]
fn messages_to_one_disk_are_done_in_their_order_and_others_beside_them() {
    let fixture = Fixture::new();
    let other = fixture.directory.path().join("other.ext4");
    create_disk(&fixture.directory.path().join("templates"), &other, 64 << 20).unwrap();
    let (disk, handle) = (fixture.disk(), fixture.runtime.handle().clone());
    actix::System::new().block_on(async move {
        let files = actix::Supervisor::start(move |_| Ext4Files::new(handle));
        let mut changes = Vec::new();
        for round in 0..4_u8 {
            for disk in [&disk, &other] {
                let change = ChangeFiles { disk: disk.clone(), changes: vec![write("/f", &[round; 10])] };
                changes.push(files.send(change));
            }
        }
        for change in futures::future::join_all(changes).await {
            change.unwrap().unwrap();
        }
        for disk in [&disk, &other] {
            let read = ReadFile { disk: disk.clone(), path: path("/f") };
            assert_eq!(files.send(read).await.unwrap().unwrap(), [3; 10]);
            let stat = StatFile { disk: disk.clone(), path: path("/f") };
            assert_eq!(files.send(stat).await.unwrap().unwrap().size, 10);
            let list = ListDirectory { disk: disk.clone(), path: path("/") };
            assert!(files.send(list).await.unwrap().unwrap().iter().any(|entry| entry.name == "f"));
        }
        let missing = ReadFile { disk, path: path("/nowhere") };
        let error = files.send(missing).await.unwrap().unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
    });
    fixture.assert_clean();
}

/// Names that shells, libss or debugfs might read as something else.
fn name() -> impl Strategy<Value = String> {
    let odd = prop::sample::select(vec![
        "<2>",
        "-r",
        "#x",
        "!ls",
        "a b",
        "\\",
        "'",
        "$HOME",
        "..x",
        ";rm",
        "x\u{2028}y",
        "%s",
    ]);
    let any = "[^/\"\\p{C}\\s]([^/\"\\p{C}]{0,20}[^/\"\\p{C}\\s])?";
    prop_oneof![odd.prop_map(str::to_owned), any.prop_filter("no name", |name| name != "." && name != "..")]
}

fn contents() -> impl Strategy<Value = Vec<u8>> {
    let noise = prop::collection::vec(any::<u8>(), 0..10_000);
    let holes = (any::<u8>(), 0..60_000_usize)
        .prop_map(|(byte, zeros)| [vec![byte; 5000], vec![0; zeros], vec![byte; 5]].concat());
    prop_oneof![noise, holes]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn any_files_are_read_back_as_they_were_written(
        rounds in prop::collection::vec(
            prop::collection::vec((prop::collection::vec(name(), 1..4), any::<u32>(), any::<u32>(), 0_u16..0o10_000, contents()), 1..8),
            1..3,
        ),
    ) {
        let fixture = Fixture::new();
        let mut written: BTreeMap<Ext4Path, (Owner, u16, Vec<u8>)> = BTreeMap::new();
        for round in rounds {
            let mut changes = Vec::new();
            for (names, uid, gid, mode, contents) in round {
                let mut text = "/files".to_owned();
                // A directory's names end otherwise than a file's: neither is ever in the other's place.
                let (file, directories) = names.split_last().unwrap();
                for part in std::iter::once(None).chain(directories.iter().map(Some)) {
                    text.extend(part.map(|name| format!("/{name}.d")));
                    changes.push(directory(&text));
                }
                let (path, owner) = (path(&format!("{text}/{file}.f")), Owner { uid, gid });
                changes.push(Change::WriteFile { path: path.clone(), owner, mode, contents: contents.clone() });
                written.insert(path, (owner, mode, contents));
            }
            fixture.change(&changes).unwrap();
        }
        fixture.assert_clean();
        for (path, (owner, mode, contents)) in &written {
            let stat = operate::stat(&fixture.tools(), &fixture.disk(), path).unwrap();
            prop_assert_eq!((stat.uid, stat.gid, stat.mode, stat.size), (owner.uid, owner.gid, *mode, contents.len() as u64));
            prop_assert!(&operate::read(&fixture.tools(), &fixture.disk(), path).unwrap() == contents, "{}", path);
        }
    }
}

#[test]
fn a_file_that_is_too_large_to_be_read_is_refused_before_it_is_read() {
    let fixture = Fixture::new();
    fixture.change(&[write("/f", b"x")]).unwrap();
    fixture.debugfs("sif /f size 17179869184\n");
    let error = fixture.read("/f").unwrap_err();
    assert!(matches!(error, FilesError::TooLarge { size: 17_179_869_184, limit: plan::CONTENTS_MAX, .. }), "{error}");
}
