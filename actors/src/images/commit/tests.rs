//! What becomes of what guests send, whole and otherwise.

use super::*;
use messages::WireError;
use messages::frame;
use messages::guest::{ExitStatus, OutputFrame};
use messages::limits::GUEST_FRAME_MAX;
use messages::reply::Stage;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

const KEY: &str = "ssh-ed25519 AAAA managed";

fn plan() -> CommitPlan {
    CommitPlan {
        name: "made".parse().unwrap(),
        from: "base".parse().unwrap(),
        kernel: "k".parse().unwrap(),
        config: Some(ImageConfig { cmd: vec!["run".into()], ..ImageConfig::default() }),
        source: "vm:v".into(),
        managed_keys: vec![KEY.into()],
    }
}

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// What becomes of a guest that sends these frames and closes.
fn made(frames: &[OutputFrame<'_>]) -> (tempfile::TempDir, ImageStore, Result<ImageRecord, ImageError>) {
    let directory = tempfile::tempdir().unwrap();
    let store = ImageStore::new(directory.path().join("images"));
    let (mut guest, host) = UnixStream::pair().unwrap();
    let bytes: Vec<u8> = frames.iter().flat_map(|message| frame::encode(message, GUEST_FRAME_MAX).unwrap()).collect();
    let sender = std::thread::spawn(move || drop(guest.write_all(&bytes)));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cancel = Cancel::new();
    let stream = ArchiveStream::new(host.into(), runtime.handle().clone(), cancel.clone()).unwrap();
    let result = commit(&store, &plan(), stream, &cancel, &Reporter::silent(Stage::ImagePull));
    sender.join().unwrap();
    (directory, store, result)
}

fn cat(image: &std::path::Path, path: &str) -> String {
    let output = Command::new("debugfs")
        .args(["-R", &format!("cat {path}")])
        .arg(image)
        .stderr(Stdio::null())
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_the_guest_sends_is_the_image_without_what_is_the_machines_own() {
    let keys = format!("{KEY}\nssh-ed25519 BBBB theirs\n");
    let bytes = archive(&[
        ("./etc/machine-id", "0123"),
        ("./etc/hosts", "127.0.0.1 localhost\n10.0.0.2 v.vm v # banger\n"),
        ("./root/.ssh/authorized_keys", &keys),
        ("./etc/ssh/ssh_host_rsa_key", "secret"),
        ("./srv/data", "kept"),
    ]);
    let (first, rest) = bytes.split_at(700);
    let (_directory, store, result) = made(&[
        OutputFrame::Started { pid: 1 },
        OutputFrame::Stdout(first),
        OutputFrame::Stderr(b"a word on the side"),
        OutputFrame::Stdout(b""),
        OutputFrame::Stdout(rest),
        OutputFrame::Exited(ExitStatus::Code(0)),
    ]);
    let record = result.unwrap();
    assert_eq!((record.source.as_str(), record.config.cmd.as_slice()), ("vm:v", ["run".to_owned()].as_slice()));
    let image = store.rootfs(&record).unwrap();
    assert_eq!(cat(&image, "/srv/data"), "kept");
    assert_eq!(cat(&image, "/etc/machine-id"), "");
    assert_eq!(cat(&image, "/etc/hosts"), "127.0.0.1 localhost\n");
    assert_eq!(cat(&image, "/root/.ssh/authorized_keys"), "ssh-ed25519 BBBB theirs\n");
    assert_eq!(cat(&image, "/etc/ssh/ssh_host_rsa_key"), "");
}

#[test]
fn an_archive_that_does_not_end_well_makes_no_image() {
    let bytes = archive(&[("./srv/data", "x")]);
    let cases: [(&[OutputFrame<'_>], &str); 5] = [
        (&[OutputFrame::Stdout(&bytes[..600])], "closed the connection"),
        (&[OutputFrame::Stdout(&bytes)], "closed the connection"),
        (
            &[
                OutputFrame::Stdout(&bytes),
                OutputFrame::Stderr(b"banger-agent: /srv/x: Input/output error\x1b[2J\n"),
                OutputFrame::Exited(ExitStatus::Code(1)),
            ],
            "/srv/x: Input/output error",
        ),
        (&[OutputFrame::Failed(WireError::new(messages::ErrorKind::Guest, "no"))], "refused"),
        (
            &[
                OutputFrame::Stdout(b"no archive at all, but long enough to be taken for a header"),
                OutputFrame::Exited(ExitStatus::Code(0)),
            ],
            "archive",
        ),
    ];
    for (frames, expected) in cases {
        let (_directory, store, result) = made(frames);
        let error = WireError::from(&result.unwrap_err()).to_string();
        assert!(error.contains(expected) && !error.contains('\x1b'), "{expected}: {error}");
        assert_eq!(std::fs::read_dir(store.directory()).unwrap().count(), 0, "{expected}");
    }
}

#[test]
fn nobody_waiting_ends_it_though_the_guest_is_silent() {
    let directory = tempfile::tempdir().unwrap();
    let store = ImageStore::new(directory.path());
    let (_guest, host) = UnixStream::pair().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    let stream = ArchiveStream::new(host.into(), runtime.handle().clone(), cancel.clone()).unwrap();
    let result = commit(&store, &plan(), stream, &cancel, &Reporter::silent(Stage::ImagePull));
    assert!(matches!(result, Err(ImageError::Cancelled)), "{result:?}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
