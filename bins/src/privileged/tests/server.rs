//! The server on a real socket with a double behind it: who is answered, and what a broken peer costs the others.

use super::double::Double;
use crate::privileged::serve::{ServeError, serve};
use link::frames::{FrameReader, send_hello, write_frame};
use messages::ErrorKind;
use messages::frame::{Hello, MAGIC};
use messages::ids::InstanceId;
use messages::limits::{HELLO_FRAME_MAX, PRIVILEGED_FRAME_MAX};
use messages::privileged::{
    PrivilegedOperation, PrivilegedReply, PrivilegedRequest, PrivilegedResponse, Subnet, TapNumber,
};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(20);

pub(super) struct Helper {
    _directory: tempfile::TempDir,
    pub(super) path: PathBuf,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Helper {
    pub(super) fn start(host: &Double, owner_uid: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let host = host.clone();
        let task = tokio::spawn(async move {
            serve(listener, host, owner_uid, async {
                stopped.await.ok();
            })
            .await
        });
        Self { _directory: directory, path, stop, task }
    }

    async fn client(&self) -> Client {
        let (read, write) = UnixStream::connect(&self.path).await.unwrap().into_split();
        Client { reader: FrameReader::new(read, PRIVILEGED_FRAME_MAX), write }
    }

    async fn greeted(&self) -> Client {
        let mut client = self.client().await;
        send_hello(&mut client.write).await.unwrap();
        client.reader.hello().await.unwrap();
        client
    }
}

struct Client {
    reader: FrameReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Client {
    async fn ask(&mut self, number: u64, operation: PrivilegedOperation) -> PrivilegedResponse {
        write_frame(&mut self.write, &PrivilegedRequest { number, operation }, PRIVILEGED_FRAME_MAX).await.unwrap();
        tokio::time::timeout(LIMIT, self.reader.message()).await.unwrap().unwrap().unwrap()
    }

    /// Waits until the server has closed this connection.
    async fn closed(mut self) {
        tokio::time::timeout(LIMIT, async { while matches!(self.reader.next().await, Ok(Some(_))) {} }).await.unwrap();
    }
}

pub(super) fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[tokio::test]
async fn an_owner_is_served() {
    let host = Double::default();
    let helper = Helper::start(&host, own_uid());
    let mut client = helper.greeted().await;
    let status = client.ask(7, PrivilegedOperation::Status).await;
    assert_eq!(status.number, 7);
    assert!(matches!(status.result, Ok(PrivilegedReply::Status { owner_uid, .. }) if owner_uid == own_uid()));
    let subnet = Subnet { gateway: Ipv4Addr::new(8, 8, 8, 8), prefix: 24, ipv6: None };
    let instance = InstanceId([1; 3]);
    let bad = PrivilegedOperation::EnsureBridge { instance, bridge: "bb010101".parse().unwrap(), subnet };
    let refused = client.ask(8, bad).await;
    assert_eq!(refused.result.unwrap_err().kind, ErrorKind::Usage);
    // A refusal does not cost the connection.
    assert!(client.ask(9, PrivilegedOperation::Status).await.result.is_ok());
    helper.stop.send(()).unwrap();
    tokio::time::timeout(LIMIT, helper.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_worker_that_panics_ends_the_helper() {
    let host = Double::default();
    let helper = Helper::start(&host, own_uid());
    let (mut client, bystander) = (helper.greeted().await, helper.greeted().await);
    host.with(|s| s.panics_at = Some("?links"));
    let list = PrivilegedOperation::ListTaps { instance: InstanceId([1; 3]) };
    write_frame(&mut client.write, &PrivilegedRequest { number: 1, operation: list }, PRIVILEGED_FRAME_MAX)
        .await
        .unwrap();
    // Nobody told it to stop, and nobody is left with a connection that answers nothing.
    let ended = tokio::time::timeout(LIMIT, helper.task).await.unwrap().unwrap();
    assert!(matches!(ended, Err(ServeError::Worker(_))), "{ended:?}");
    client.closed().await;
    bystander.closed().await;
    assert!(UnixStream::connect(&helper.path).await.is_err(), "nobody is accepted any more");
}

#[tokio::test]
async fn a_stranger_is_told_why_and_nothing_is_done() {
    // Root is always admitted, so a stranger can only be played by an ordinary user.
    if own_uid() == 0 {
        assert_eq!(crate::privileged::peer::admit(1, 2), crate::privileged::peer::Admission::Refused);
        return;
    }
    let host = Double::default();
    let helper = Helper::start(&host, own_uid() + 1);
    let mut client = helper.greeted().await;
    let refused = client.ask(1, PrivilegedOperation::ListTaps { instance: InstanceId([1; 3]) }).await;
    let error = refused.result.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Host);
    assert!(error.to_string().contains(&own_uid().to_string()), "{error}");
    assert!(host.with(|s| s.calls.is_empty()));
    client.closed().await;
}

/// Root can play others. Who is none has nobody to be.
#[tokio::test]
async fn strangers_do_not_stand_in_the_owners_way() {
    const HOLD: &str = "my @held = map { IO::Socket::UNIX->new($ARGV[0]) || die $! } 1..300; print qq(held\\n); close STDOUT; <STDIN>;";
    if own_uid() != 0 {
        return;
    }
    let helper = Helper::start(&Double::default(), own_uid());
    for path in [&*helper.path, helper.path.parent().unwrap()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mut strangers = tokio::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "perl", "-MIO::Socket::UNIX", "-e", HOLD])
        .arg(&helper.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut said = String::new();
    let held = strangers.stdout.as_mut().unwrap().read_to_string(&mut said);
    tokio::time::timeout(LIMIT, held).await.expect("those that are too many wait").unwrap();
    assert_eq!(said, "held\n");
    let served = async { helper.greeted().await.ask(1, PrivilegedOperation::Status).await };
    assert!(tokio::time::timeout(LIMIT, served).await.unwrap().result.is_ok());
}

#[tokio::test]
async fn a_broken_peer_loses_only_its_own_connection() {
    let helper = Helper::start(&Double::default(), own_uid());
    let mut bystander = helper.greeted().await;

    let mut oversized = helper.greeted().await;
    oversized.write.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    oversized.closed().await;

    let mut unknown = helper.greeted().await;
    unknown.write.write_all(&[2, 0, 0, 0, 1, 99]).await.unwrap();
    unknown.closed().await;

    let mut trailing = helper.greeted().await;
    trailing.write.write_all(&[3, 0, 0, 0, 1, 0, 0]).await.unwrap();
    trailing.closed().await;

    let mut cut = helper.greeted().await;
    cut.write.write_all(&[9, 0, 0, 0, 1]).await.unwrap();
    cut.write.shutdown().await.unwrap();
    cut.closed().await;

    let mut http = helper.client().await;
    http.write.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    http.closed().await;

    let mut future = helper.client().await;
    let hello = Hello { magic: MAGIC, generation: u32::MAX, build: "99".to_owned() };
    write_frame(&mut future.write, &hello, HELLO_FRAME_MAX).await.unwrap();
    future.closed().await;

    assert!(bystander.ask(1, PrivilegedOperation::Status).await.result.is_ok());
}

#[tokio::test]
async fn many_connections_at_once_are_all_answered() {
    let host = Double::default();
    let helper = Helper::start(&host, own_uid());
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..100_u16 {
        let path = helper.path.clone();
        clients.spawn(async move {
            let (read, write) = UnixStream::connect(&path).await.unwrap().into_split();
            let mut client = Client { reader: FrameReader::new(read, PRIVILEGED_FRAME_MAX), write };
            send_hello(&mut client.write).await.unwrap();
            client.reader.hello().await.unwrap();
            let remove = PrivilegedOperation::RemoveTap { instance: InstanceId([1; 3]), tap: TapNumber(number) };
            client.ask(u64::from(number), remove).await
        });
    }
    let answers = tokio::time::timeout(LIMIT, clients.join_all()).await.unwrap();
    assert!(answers.iter().all(|answer| answer.result == Ok(PrivilegedReply::Done)));
    assert_eq!(host.with(|s| s.calls.len()), 100);
}
