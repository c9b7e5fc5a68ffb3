//! The link against an agent that behaves, and against guests that do not.

mod bounds;
mod drain;

use super::operation::open_operation_within;
use super::*;
use link::frames::{FrameReader, send_hello, write_frame};
use messages::error::{ErrorKind, WireError};
use messages::frame::{self, GENERATION, Hello, MAGIC};
use messages::guest::{
    AgentFrame, ArgBytes, DaemonFrame, ExecCommand, ExecSpec, GuestAnswer, GuestQuestion, OPERATION_PORT,
    OperationFrame, RunningIdentity,
};
use messages::ids::{BootNonce, OperationId, VmId};
use messages::limits::{GUEST_FRAME_MAX, HELLO_FRAME_MAX};
use messages::vm::Readiness;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

const SHORT: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(10);

struct Host {
    _dir: TempDir,
    path: PathBuf,
    link: AgentLink,
    events: Receiver<LinkEvent>,
}

fn host() -> Host {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock_1024");
    let (link, events) = AgentLink::listen_within(&path, LinkLimits { identify: SHORT, write: SHORT }).unwrap();
    Host { _dir: dir, path, link, events }
}

impl Host {
    async fn event(&mut self) -> LinkEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("the link lives")
    }

    async fn connected(&mut self) -> ConnectionId {
        match self.event().await {
            LinkEvent::Connected { connection, .. } => connection,
            other => panic!("{other:?}"),
        }
    }

    async fn refused(&mut self) -> IdentifyError {
        match self.event().await {
            LinkEvent::Refused { why } => why,
            other => panic!("{other:?}"),
        }
    }

    async fn disconnected(&mut self) -> (ConnectionId, IdentifyError) {
        match self.event().await {
            LinkEvent::Disconnected { connection, why } => (connection, why),
            other => panic!("{other:?}"),
        }
    }
}

/// The guest's end of a control stream.
struct Agent {
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Agent {
    async fn dial(path: &Path) -> Self {
        let (reader, mut writer) = UnixStream::connect(path).await.unwrap().into_split();
        let mut reader = FrameReader::new(reader, GUEST_FRAME_MAX);
        send_hello(&mut writer).await.unwrap();
        assert_eq!(reader.hello().await.unwrap(), Hello::ours());
        Self { reader, writer }
    }

    async fn identified(path: &Path) -> Self {
        let mut agent = Self::dial(path).await;
        agent.send(&identity(None)).await;
        agent
    }

    async fn send(&mut self, frame: &AgentFrame) {
        write_frame(&mut self.writer, frame, GUEST_FRAME_MAX).await.unwrap();
    }

    async fn receive(&mut self) -> Option<DaemonFrame> {
        timeout(PATIENCE, self.reader.message()).await.expect("a frame in time").unwrap()
    }

    async fn call(&mut self) -> (u32, GuestQuestion) {
        match self.receive().await {
            Some(DaemonFrame::Call { call, question }) => (call, question),
            other => panic!("{other:?}"),
        }
    }
}

fn identity(nonce: Option<u8>) -> AgentFrame {
    let running = nonce.map(|byte| RunningIdentity {
        vm: VmId([1; 8]),
        nonce: BootNonce([byte; 16]),
        readiness: Some(Readiness::Agent),
        warning: None,
        operations: Vec::new(),
    });
    AgentFrame::Identify { running, uptime_us: 5, restarts: 2 }
}

fn ready(warning: &str) -> AgentFrame {
    AgentFrame::Ready { level: Readiness::System, warning: Some(warning.to_owned()), uptime_us: 9 }
}

#[tokio::test]
async fn an_agent_connects_and_frames_go_both_ways() {
    let mut host = host();
    assert_eq!(std::fs::metadata(&host.path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(host.link.connection().is_none());
    let mut agent = Agent::dial(&host.path).await;
    agent.send(&identity(Some(7))).await;
    let connection = match host.event().await {
        LinkEvent::Connected { connection, running: Some(running), uptime_us: 5, restarts: 2 } => {
            assert_eq!(running.nonce, BootNonce([7; 16]));
            connection
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(host.link.connection(), Some(connection));
    host.link.send(connection, &DaemonFrame::Welcome).unwrap();
    assert_eq!(agent.receive().await, Some(DaemonFrame::Welcome));
    agent.send(&ready("degraded\x1b[31m")).await;
    match host.event().await {
        LinkEvent::Frame { connection: from, frame: AgentFrame::Ready { warning: Some(warning), .. } } => {
            assert_eq!((from, warning.as_str()), (connection, "degraded [31m"));
        }
        other => panic!("{other:?}"),
    }
    drop(agent);
    assert!(matches!(host.disconnected().await, (gone, IdentifyError::Closed) if gone == connection));
    assert!(host.link.connection().is_none());
    assert!(matches!(host.link.send(connection, &DaemonFrame::Welcome), Err(CallError::NotConnected)));
}

#[tokio::test]
async fn the_socket_replaces_a_stale_one_and_goes_with_the_link() {
    let Host { _dir, path, link, events } = host();
    drop(link);
    timeout(PATIENCE, async {
        while path.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("the socket goes");
    drop(events);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let (_link, _events) = AgentLink::listen(&path).unwrap();
    UnixStream::connect(&path).await.unwrap();
    let too_long = Path::new("/tmp").join("x".repeat(200));
    assert!(AgentLink::listen(&too_long).is_err());
}

#[tokio::test]
async fn answers_find_their_calls_in_any_order() {
    let mut host = host();
    let mut agent = Agent::identified(&host.path).await;
    host.connected().await;
    let ask = |question| {
        let link = host.link.clone();
        tokio::spawn(async move { link.call(question, PATIENCE).await })
    };
    let stats = ask(GuestQuestion::Stats);
    let (first, _) = agent.call().await;
    let ping = ask(GuestQuestion::Ping);
    let (second, question) = agent.call().await;
    assert_eq!(question, GuestQuestion::Ping);
    // Answers to nothing, and twice, are dropped.
    for call in [second, second, 999] {
        agent.send(&AgentFrame::Answer { call, result: Ok(GuestAnswer::Done) }).await;
    }
    assert_eq!(ping.await.unwrap().unwrap(), GuestAnswer::Done);
    let refusal = WireError::new(ErrorKind::Guest, "no\nstats");
    agent.send(&AgentFrame::Answer { call: first, result: Err(refusal) }).await;
    match stats.await.unwrap() {
        Err(CallError::Guest(error)) => assert_eq!(error.chain, ["no stats"]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn calls_without_an_answer_fail_in_time() {
    let mut host = host();
    let ping = || host.link.call(GuestQuestion::Ping, SHORT);
    assert!(matches!(ping().await, Err(CallError::NotConnected)));
    let mut agent = Agent::identified(&host.path).await;
    host.connected().await;
    let ping = || host.link.call(GuestQuestion::Ping, SHORT);
    assert!(matches!(ping().await, Err(CallError::Timeout { .. })));
    let (late, _) = agent.call().await;
    // The agent goes away while it is asked: told at once, not after the deadline.
    let asked = {
        let link = host.link.clone();
        tokio::spawn(async move { link.call(GuestQuestion::Ping, PATIENCE).await })
    };
    let (second, _) = agent.call().await;
    assert_ne!(late, second);
    agent.send(&AgentFrame::Answer { call: late, result: Ok(GuestAnswer::Done) }).await;
    let start = Instant::now();
    drop(agent);
    assert!(matches!(asked.await.unwrap(), Err(CallError::Disconnected)));
    assert!(start.elapsed() < PATIENCE / 2);
}

#[tokio::test]
async fn there_is_a_limit_to_what_waits_for_an_answer() {
    let mut host = host();
    let mut agent = Agent::identified(&host.path).await;
    host.connected().await;
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let link = host.link.clone();
            tokio::spawn(async move { link.call(GuestQuestion::Ping, PATIENCE).await })
        })
        .collect();
    for _ in 0..64 {
        agent.call().await;
    }
    assert!(matches!(host.link.call(GuestQuestion::Ping, SHORT).await, Err(CallError::Busy)));
    // Callers that give up make room.
    for call in calls {
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
    }
    assert!(matches!(host.link.call(GuestQuestion::Ping, SHORT).await, Err(CallError::Timeout { .. })));
}

#[tokio::test]
async fn the_newest_stream_counts() {
    let mut host = host();
    let mut first = Agent::identified(&host.path).await;
    let old = host.connected().await;
    let asked = {
        let link = host.link.clone();
        tokio::spawn(async move { link.call(GuestQuestion::Ping, PATIENCE).await })
    };
    first.call().await;
    let mut second = Agent::identified(&host.path).await;
    assert!(matches!(host.disconnected().await, (gone, IdentifyError::Replaced) if gone == old));
    let new = host.connected().await;
    assert!(matches!(asked.await.unwrap(), Err(CallError::Disconnected)));
    assert_eq!(first.receive().await, None);
    assert!(matches!(host.link.send(old, &DaemonFrame::Welcome), Err(CallError::NotConnected)));
    host.link.send(new, &DaemonFrame::Welcome).unwrap();
    assert_eq!(second.receive().await, Some(DaemonFrame::Welcome));
    host.link.disconnect();
    assert!(matches!(host.disconnected().await, (gone, IdentifyError::Dropped) if gone == new));
    assert_eq!(second.receive().await, None);
}

/// A dial that says nothing neither replaces the agent nor keeps the next one out.
#[tokio::test]
async fn a_silent_dial_changes_nothing() {
    let mut host = host();
    let mut agent = Agent::identified(&host.path).await;
    let connection = host.connected().await;
    let silent = UnixStream::connect(&host.path).await.unwrap();
    assert!(matches!(host.refused().await, IdentifyError::Silent(_)));
    host.link.send(connection, &DaemonFrame::Welcome).unwrap();
    assert_eq!(agent.receive().await, Some(DaemonFrame::Welcome));
    let _slow = UnixStream::connect(&host.path).await.unwrap();
    let start = Instant::now();
    let _next = Agent::identified(&host.path).await;
    assert!(matches!(host.disconnected().await, (_, IdentifyError::Replaced)));
    host.connected().await;
    assert!(start.elapsed() < SHORT, "waited for the silent one: {:?}", start.elapsed());
    drop(silent);
}

/// One byte at a time never lasts longer than the deadline.
#[tokio::test]
async fn a_slow_dial_is_cut_off() {
    let mut host = host();
    let (_reader, mut writer) = UnixStream::connect(&host.path).await.unwrap().into_split();
    let dripping = tokio::spawn(async move {
        for byte in frame::encode(&Hello::ours(), HELLO_FRAME_MAX).unwrap().into_iter().cycle() {
            if writer.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    });
    assert!(matches!(host.refused().await, IdentifyError::Silent(_)));
    timeout(PATIENCE, dripping).await.expect("its stream is closed").unwrap();
}

#[tokio::test]
async fn what_is_no_agent_is_turned_away() {
    let mut host = host();
    let hello = frame::encode(&Hello::ours(), HELLO_FRAME_MAX).unwrap();
    let other = Hello { magic: MAGIC, generation: GENERATION + 1, build: "9.9.9".into() };
    let after_hello = |bytes: &[u8]| [hello.as_slice(), bytes].concat();
    let garbage: [(&str, Vec<u8>); 8] = [
        ("garbage", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("an oversized hello", u32::MAX.to_le_bytes().to_vec()),
        ("another generation", frame::encode(&other, HELLO_FRAME_MAX).unwrap()),
        ("half a hello", hello[..5].to_vec()),
        ("an oversized frame", after_hello(&u32::MAX.to_le_bytes())),
        ("half a frame", after_hello(&[200, 0, 0, 0, 1, 2])),
        ("a frame that does not decode", after_hello(&[3, 0, 0, 0, 250, 250, 250])),
        ("another frame first", after_hello(&frame::encode(&ready(""), GUEST_FRAME_MAX).unwrap())),
    ];
    for (what, bytes) in garbage {
        let mut stream = UnixStream::connect(&host.path).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let why = host.refused().await;
        match what {
            "another frame first" => assert!(matches!(why, IdentifyError::NotIdentity), "{what}: {why:?}"),
            "another generation" => assert!(why.to_string().contains("9.9.9 (protocol 3)"), "{what}: {why}"),
            _ => assert!(matches!(why, IdentifyError::Read(_)), "{what}: {why:?}"),
        }
    }
    // And the link still works.
    let _agent = Agent::identified(&host.path).await;
    host.connected().await;
}

#[tokio::test]
async fn garbage_after_the_identity_ends_only_that_stream() {
    let mut host = host();
    for bytes in [
        u32::MAX.to_le_bytes().to_vec(),
        vec![3, 0, 0, 0, 250, 250, 250],
        frame::encode(&AgentFrame::BootFailed(many_causes()), GUEST_FRAME_MAX).unwrap(),
    ] {
        let mut agent = Agent::identified(&host.path).await;
        let connection = host.connected().await;
        agent.writer.write_all(&bytes).await.unwrap();
        let (gone, why) = host.disconnected().await;
        assert_eq!(gone, connection);
        assert!(matches!(why, IdentifyError::Read(_) | IdentifyError::List(_)), "{why:?}");
    }
}

fn many_causes() -> WireError {
    WireError { kind: ErrorKind::Guest, chain: vec![String::new(); 1000], hints: Vec::new() }
}

/// A guest that sends as fast as it can is slowed to a rate; nothing piles up here, and the newest dial still gets through.
#[tokio::test]
async fn a_flood_of_frames_is_held_back() {
    let mut host = host();
    let mut agent = Agent::identified(&host.path).await;
    host.connected().await;
    // Nobody takes the events: the guest must be stopped by its own full socket.
    let frame = frame::encode(&ready(&"x".repeat(4000)), GUEST_FRAME_MAX).unwrap();
    let flood = async {
        loop {
            agent.writer.write_all(&frame).await.unwrap();
        }
    };
    assert!(timeout(SHORT, flood).await.is_err());
    // With somebody to take them, at most the burst and a second's worth come in that time.
    let mut taken = 0_u32;
    let start = Instant::now();
    let flood = tokio::spawn(async move { while agent.writer.write_all(&frame).await.is_ok() {} });
    while start.elapsed() < Duration::from_secs(2) {
        match timeout(Duration::from_millis(500), host.events.recv()).await {
            Ok(Some(LinkEvent::Frame { .. })) => taken += 1,
            Ok(other) => panic!("{other:?}"),
            Err(_) => {}
        }
    }
    assert!((100..9000).contains(&taken), "{taken} frames in two seconds");
    let _next = Agent::identified(&host.path).await;
    loop {
        match host.event().await {
            LinkEvent::Frame { .. } => {}
            LinkEvent::Disconnected { why: IdentifyError::Replaced, .. } => break,
            other => panic!("{other:?}"),
        }
    }
    host.connected().await;
    timeout(PATIENCE, flood).await.expect("the flood's stream is closed").unwrap();
}

#[tokio::test]
async fn a_flood_of_dials_is_held_back() {
    let mut host = host();
    let start = Instant::now();
    let mut dials = 0_u32;
    while start.elapsed() < Duration::from_secs(1) {
        match timeout(Duration::from_millis(100), UnixStream::connect(&host.path)).await {
            Ok(Ok(_)) => dials += 1,
            // The backlog is full.
            Ok(Err(_)) | Err(_) => tokio::task::yield_now().await,
        }
    }
    // The burst, the backlog and a second's worth.
    assert!(dials < 60, "{dials} dials in a second");
    // What waits in the backlog is dealt with in time, and an agent gets in.
    let dialling = async {
        loop {
            if let Ok(stream) = UnixStream::connect(&host.path).await {
                break stream;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut stream = timeout(PATIENCE, dialling).await.unwrap();
    send_hello(&mut stream).await.unwrap();
    write_frame(&mut stream, &identity(None), GUEST_FRAME_MAX).await.unwrap();
    loop {
        match host.event().await {
            LinkEvent::Refused { .. } => {}
            LinkEvent::Connected { .. } => break,
            other => panic!("{other:?}"),
        }
    }
}

/// A guest that takes nothing is cut off, and whoever was sending learns it.
#[tokio::test]
async fn a_guest_that_does_not_read_is_cut_off() {
    let mut host = host();
    let agent = Agent::identified(&host.path).await;
    let connection = host.connected().await;
    let ping = DaemonFrame::Call { call: 1, question: GuestQuestion::Ping };
    let sending = async {
        // As long as the writer takes them: what the socket's buffer holds, and then nothing.
        while host.link.send(connection, &ping).is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, sending).await.expect("the sender is told");
    assert!(matches!(host.disconnected().await, (_, IdentifyError::Stalled(_) | IdentifyError::Dropped)));
    assert!(matches!(host.link.send(connection, &ping), Err(CallError::NotConnected)));
    drop(agent);
}

/// Once the boot's nonce is known, a stranger in the guest cannot take the agent's place.
#[tokio::test]
async fn a_pinned_link_lets_nobody_else_in() {
    let mut host = host();
    let mut agent = Agent::identified(&host.path).await;
    let connection = host.connected().await;
    host.link.pin(Some(BootNonce([7; 16])));
    for claim in [None, Some(8)] {
        let mut stranger = Agent::dial(&host.path).await;
        stranger.send(&identity(claim)).await;
        assert!(matches!(host.refused().await, IdentifyError::WrongNonce));
        assert_eq!(stranger.receive().await, None);
    }
    host.link.send(connection, &DaemonFrame::Welcome).unwrap();
    assert_eq!(agent.receive().await, Some(DaemonFrame::Welcome));
    let mut again = Agent::dial(&host.path).await;
    again.send(&identity(Some(7))).await;
    host.disconnected().await;
    host.connected().await;
    host.link.pin(None);
    let _fresh = Agent::identified(&host.path).await;
    host.disconnected().await;
    host.connected().await;
}

fn exec() -> ExecSpec {
    ExecSpec { stdin: true, ..fixtures::exec_spec(&["true"]) }
}

const OPERATION: OperationId = OperationId([3; 8]);

/// A VMM's vsock socket that answers one dial with `answer`, in pieces, and gives the stream back.
fn vmm(answers: Vec<&'static [u8]>) -> (TempDir, PathBuf, tokio::task::JoinHandle<UnixStream>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut command = vec![0; format!("CONNECT {OPERATION_PORT}\n").len()];
        stream.read_exact(&mut command).await.unwrap();
        assert_eq!(command, b"CONNECT 1025\n");
        for answer in answers {
            stream.write_all(answer).await.unwrap();
            tokio::task::yield_now().await;
        }
        stream
    });
    (dir, path, serving)
}

#[tokio::test]
async fn an_operation_is_opened_and_not_a_byte_too_many_is_read() {
    let (_dir, path, serving) = vmm(vec![b"O", b"K 10737", b"41824\nfirst bytes of the agent"]);
    let mut stream = open_operation(&path, OPERATION, &exec()).await.unwrap();
    let mut guest = FrameReader::new(serving.await.unwrap(), GUEST_FRAME_MAX);
    guest.hello().await.unwrap();
    let opened = guest.next().await.unwrap().unwrap();
    let expected = OperationFrame::Open { operation: OPERATION, exec: Box::new(exec()) };
    assert_eq!(frame::decode_borrowed::<OperationFrame<'_>>(opened).unwrap(), expected);
    // The client's own bytes come right behind; what the agent sent early is the client's to read.
    stream.write_all(b"stdin").await.unwrap();
    let mut rest = [0; 5];
    guest.get_mut().read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"stdin");
    let mut first = [0; 24];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"first bytes of the agent");
}

#[tokio::test]
async fn a_dial_that_fails_says_how() {
    let open =
        |path: PathBuf| async move { open_operation_within(&path, OPERATION, &exec(), SHORT).await.unwrap_err() };
    assert!(matches!(open("/nonexistent/v.sock".into()).await, DialError::Connect { .. }));
    // The VMM closes what nobody in the guest takes.
    let (_dir, path, serving) = vmm(vec![]);
    let closing = tokio::spawn(async move { drop(serving.await.unwrap()) });
    let error = open(path).await;
    assert!(matches!(error, DialError::Refused { port: 1025 }), "{error:?}");
    assert_eq!(error.to_wire().kind, ErrorKind::Unavailable);
    closing.await.unwrap();
    for nonsense in ["NO\n", "OK \n", "OK -1\n", "OK 99999999999\n", "\n", "OK 1 2\n", "OK 42949672950000000000000"] {
        let (_dir, path, _serving) = vmm(vec![nonsense.as_bytes()]);
        let error = open(path).await;
        assert!(matches!(error, DialError::Nonsense { .. }), "{nonsense}: {error:?}");
    }
    // Half an answer, and then nothing.
    let (_dir, path, serving) = vmm(vec![b"OK 12"]);
    let start = Instant::now();
    let error = open(path).await;
    assert!(matches!(error, DialError::Timeout { .. }), "{error:?}");
    assert!(start.elapsed() < PATIENCE);
    drop(serving.await.unwrap());
    let huge = ExecSpec { env: vec![("A".into(), "x".repeat(GUEST_FRAME_MAX))], ..exec() };
    let error = open_operation(Path::new("/nonexistent/v.sock"), OPERATION, &huge).await.unwrap_err();
    assert!(matches!(error, DialError::Frame(_)), "{error:?}");
}

#[tokio::test]
async fn many_dials_at_once_outlast_a_full_backlog() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let serving = tokio::spawn(async move {
        for number in 0..300 {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut command = [0; 13];
                stream.read_exact(&mut command).await.unwrap();
                stream.write_all(format!("OK {number}\n").as_bytes()).await.unwrap();
                drop(stream.read_to_end(&mut Vec::new()).await);
            });
        }
    });
    let dials: Vec<_> = (0..300)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move { dial(&path, OPERATION_PORT, PATIENCE).await })
        })
        .collect();
    for dial in dials {
        dial.await.unwrap().unwrap();
    }
    serving.await.unwrap();
}

#[test]
fn a_command_that_no_frame_holds_is_refused_before_anything_is_made_for_it() {
    let exec = |length: usize| ExecSpec::new(ExecCommand::Argv(vec![ArgBytes(vec![b'a'; length])]));
    check_size(&exec(100_000)).unwrap();
    let error = check_size(&exec(300_000)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Usage);
    assert!(error.to_string().contains("256 KiB"), "{error}");
}
