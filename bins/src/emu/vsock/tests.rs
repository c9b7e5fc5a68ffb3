//! The protocol, against a fake guest on the other end of a real link.

use super::*;
use link::mux::{self, Attach, Mux, MuxStream};
use std::future::Future;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

const DEADLINE: Duration = Duration::from_secs(20);
/// A guest's port that sends everything back.
const ECHO: u32 = 7;
/// A guest's port that says one thing and leaves.
const GREETER: u32 = 8;

struct Host {
    dir: tempfile::TempDir,
    metrics: Metrics,
    /// The guest's way to open streams.
    guest: MuxHandle,
    handle: MuxHandle,
    server: tokio::task::JoinHandle<()>,
    /// The guest's end of the port goes with it.
    guest_driver: tokio::task::JoinHandle<()>,
}

impl Host {
    fn path(&self) -> PathBuf {
        self.dir.path().join("v")
    }

    /// Connects and sends a request; the answer is for the caller to read.
    async fn dial(&self, request: &str) -> BufReader<UnixStream> {
        let mut stream = UnixStream::connect(self.path()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        BufReader::new(stream)
    }

    async fn connect(&self, port: u32) -> BufReader<UnixStream> {
        let mut stream = self.dial(&format!("CONNECT {port}\n")).await;
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let number = line.strip_prefix("OK ").unwrap().trim_end();
        assert!(number.parse::<u32>().unwrap() >= FIRST_LOCAL_PORT, "{line}");
        stream
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("the deadline has passed")
}

async fn host(script: &str) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let socket = Arc::new(SocketFile::bind(&dir.path().join("v")).unwrap());
    let (host_io, guest_io) = UnixStream::pair().unwrap();
    let Mux { handle, listener, driver } = mux::host(host_io, Attach::Fresh);
    tokio::spawn(driver.run());
    let metrics = Metrics::default();
    let script = Script::parse(script).unwrap();
    let server = tokio::spawn(serve(socket, handle.clone(), listener, script, metrics.clone()));
    let Mux { handle: guest, mut listener, driver } = mux::guest(guest_io, Attach::Fresh);
    let guest_driver = tokio::spawn(async move { drop(driver.run().await) });
    tokio::spawn(async move {
        while let Some(incoming) = listener.accept().await {
            tokio::spawn(guest_service(incoming));
        }
    });
    // The first open waits for nothing: until the guest has said hello, there is nobody.
    within(async {
        while handle.open(GREETER).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    Host { dir, metrics, guest, handle, server, guest_driver }
}

async fn guest_service(incoming: Incoming) {
    match incoming.port {
        ECHO => {
            let (mut reader, mut writer) = tokio::io::split(incoming.accept().await.unwrap());
            // The host may hang up at any time.
            drop(tokio::io::copy(&mut reader, &mut writer).await);
            drop(writer.shutdown().await);
        }
        GREETER => {
            let mut stream = incoming.accept().await.unwrap();
            drop(stream.write_all(b"hello").await);
            drop(stream.shutdown().await);
        }
        _ => incoming.refuse().await,
    }
}

#[tokio::test]
async fn bytes_go_both_ways_and_ends_are_passed_on() {
    let host = host("[]").await;
    let mut stream = host.connect(ECHO).await;
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"ping");
    stream.shutdown().await.unwrap();
    assert_eq!(within(stream.read(&mut answer)).await.unwrap(), 0);

    let mut text = String::new();
    within(host.connect(GREETER).await.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "hello");
}

#[tokio::test]
async fn what_is_sent_with_the_request_is_not_lost() {
    let host = host("[]").await;
    let mut stream = host.dial(&format!("CONNECT {ECHO}\nearly bird")).await;
    let mut line = String::new();
    within(stream.read_line(&mut line)).await.unwrap();
    let mut answer = [0; 10];
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"early bird");
}

#[tokio::test]
async fn refusals_are_closed_connections() {
    let host = host(r#"[{"at":"connect","do":"refuse","times":1}]"#).await;
    for request in [&format!("CONNECT {ECHO}\n"), "CONNECT 99\n", "HELLO\n", "CONNECT x\n", &"C".repeat(99)] {
        let mut stream = host.dial(request).await;
        let mut text = String::new();
        // A reset is a refusal as well: bytes that nobody read were still there.
        let read = within(stream.read_to_string(&mut text)).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{request}: {text}");
    }
    let mut stream = host.connect(ECHO).await;
    stream.write_all(b"x").await.unwrap();
    within(stream.read_exact(&mut [0])).await.unwrap();
}

#[tokio::test]
async fn a_megabyte_or_more_survives_in_both_directions() {
    let host = host("[]").await;
    let stream = host.connect(ECHO).await.into_inner();
    let data: Vec<u8> = (0..8_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut reader, mut writer) = stream.into_split();
    let sent = data.clone();
    tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    within(reader.read_to_end(&mut back)).await.unwrap();
    assert!(back == data, "{} bytes came back of {}", back.len(), data.len());
}

#[tokio::test]
async fn hundreds_of_streams_at_once() {
    let host = Arc::new(host("[]").await);
    let mut streams = JoinSet::new();
    for number in 0..400_u32 {
        let host = host.clone();
        streams.spawn(async move {
            let mut stream = host.connect(ECHO).await;
            let message = number.to_le_bytes();
            stream.write_all(&message).await.unwrap();
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, message);
            stream
        });
    }
    // All are held until all have been answered.
    assert_eq!(within(streams.join_all()).await.len(), 400);
}

#[tokio::test]
async fn a_silent_client_does_not_stand_in_anybodys_way() {
    let host = host("[]").await;
    let silent: Vec<_> = futures::future::join_all((0..50).map(|_| host.dial("CONN"))).await;
    within(host.connect(ECHO)).await;
    drop(silent);
}

#[tokio::test]
async fn the_guest_reaches_listeners_and_only_those() {
    let host = host(r#"[{"at":"guest_connect","do":"refuse","times":1}]"#).await;
    let mut path = OsString::from(host.path());
    path.push("_1024");
    let listener = UnixListener::bind(&path).unwrap();
    assert!(within(host.guest.open(1024)).await.is_err(), "the script refuses the first");
    assert!(within(host.guest.open(1)).await.is_err(), "nobody listens");
    let (stream, accepted) = tokio::join!(within(host.guest.open(1024)), within(listener.accept()));
    let (mut stream, (mut accepted, _)): (MuxStream, _) = (stream.unwrap(), accepted.unwrap());
    stream.write_all(b"up").await.unwrap();
    let mut bytes = [0; 2];
    within(accepted.read_exact(&mut bytes)).await.unwrap();
    accepted.write_all(&bytes).await.unwrap();
    within(stream.read_exact(&mut bytes)).await.unwrap();
    drop(accepted);
    assert_eq!(within(stream.read(&mut bytes)).await.unwrap_or(0), 0);
}

/// A client that leaves while the guest still talks has been heard to its last word.
#[tokio::test]
async fn what_a_client_said_before_it_went_is_brought_though_the_guest_talks() {
    // More than the link takes at once (256 KiB): the rest is in the relay's hands or the socket when the client goes.
    const WORDS: usize = 320 << 10;
    let host = host("[]").await;
    let mut path = OsString::from(host.path());
    path.push("_1024");
    let listener = UnixListener::bind(&path).unwrap();
    let (stream, accepted) = tokio::join!(within(host.guest.open(1024)), within(listener.accept()));
    let (stream, (mut client, _)): (MuxStream, _) = (stream.unwrap(), accepted.unwrap());
    let (mut reader, mut writer) = tokio::io::split(stream);
    let talking = tokio::spawn(async move { while writer.write_all(&[b'y'; 4096]).await.is_ok() {} });
    within(client.write_all(&vec![7; WORDS])).await.unwrap();
    drop(client);
    // The relay's turn, many times: only now does the guest begin to listen.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    let mut heard = Vec::new();
    drop(within(reader.read_to_end(&mut heard)).await);
    assert_eq!(heard.len(), WORDS);
    talking.abort();
}

/// A machine that ends takes nothing along that its guest said, however slowly a client reads; clients that say nothing do not
/// keep it.
#[tokio::test]
async fn last_words_outlive_the_machine() {
    // More than a socket takes (net.core.wmem_default, 208 KiB), so that it cannot all have been passed on before the end; and
    // no more than the link lets a guest say at once.
    const WORDS: usize = 256 << 10;
    let host = host("[]").await;
    let listen = |port: u32| {
        let mut path = OsString::from(host.path());
        path.push(format!("_{port}"));
        UnixListener::bind(&path).unwrap()
    };
    let (slow, quick) = (listen(1024), listen(1025));
    let idle = host.connect(ECHO).await;
    let (words, slow) = tokio::join!(within(host.guest.open(1024)), within(slow.accept()));
    let (mut words, (mut slow, _)) = (words.unwrap(), slow.unwrap());
    within(words.write_all(&vec![7; WORDS])).await.unwrap();
    // One connection carries both, in order: when this has come, so has all of the other.
    let (marker, quick) = tokio::join!(within(host.guest.open(1025)), within(quick.accept()));
    let (mut marker, (mut quick, _)) = (marker.unwrap(), quick.unwrap());
    within(marker.write_all(b"!")).await.unwrap();
    within(quick.read_exact(&mut [0])).await.unwrap();
    host.guest_driver.abort();
    within(async { while host.handle.open(GREETER).await.is_ok() {} }).await;
    let mut heard = Vec::new();
    // The machine's end may look like a broken connection, but only behind the last byte.
    drop(within(slow.read_to_end(&mut heard)).await);
    assert_eq!(heard.len(), WORDS);
    within(host.server).await.unwrap();
    drop((idle, quick));
}

#[tokio::test]
async fn the_end_of_the_service_ends_every_stream_and_removes_the_socket() {
    let host = host("[]").await;
    let mut stream = host.connect(ECHO).await;
    host.server.abort();
    assert_eq!(within(stream.read(&mut [0])).await.unwrap_or(0), 0);
    within(async {
        while host.path().exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(host.metrics);
}
