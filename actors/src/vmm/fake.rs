//! A Firecracker API server for tests, by hand, so that it can also misbehave: at one call, in one way.

use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Hang,
    Refuse,
    /// The process ends, or in process the connection.
    Die,
    /// The answer comes a second late.
    Late,
    Garbage,
    /// An answer that claims to be short and is endless.
    Flood,
    /// A refusal with terminal escapes in it.
    Escapes,
    /// Half an answer, then the end.
    Half,
}

impl Fault {
    pub(crate) const ALL: [Self; 8] =
        [Self::Hang, Self::Refuse, Self::Die, Self::Late, Self::Garbage, Self::Flood, Self::Escapes, Self::Half];

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| format!("{fault:?}") == text)
    }
}

/// One request as it came.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) body: serde_json::Value,
    /// Which connection, counted from 0.
    pub(crate) connection: usize,
}

/// The server and what it has seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake {
    pub(crate) fault: Option<(String, Fault)>,
    pub(crate) seen: Arc<Mutex<Vec<Request>>>,
    /// Whether a fault ends the process instead of the connection.
    pub(crate) is_process: bool,
    /// Whether the connection is closed after each answer.
    pub(crate) hang_up: bool,
}

impl Fake {
    pub(crate) fn with_fault(line: &str, fault: Fault) -> Self {
        Self { fault: Some((line.to_owned(), fault)), ..Self::default() }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|request| request.line.clone()).collect()
    }

    /// Serves for as long as the runtime lives.
    pub(crate) fn listen(&self, socket: &Path) {
        let listener = UnixListener::bind(socket).unwrap();
        tokio::spawn(self.clone().serve(listener));
    }

    async fn serve(self, listener: UnixListener) {
        for connection in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let fake = self.clone();
            tokio::spawn(async move { drop(fake.converse(stream, connection).await) });
        }
    }

    async fn converse(self, stream: UnixStream, connection: usize) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        while let Some((line, body)) = read_request(&mut stream).await? {
            let body = serde_json::from_slice(&body).unwrap_or_default();
            self.seen.lock().unwrap().push(Request { line: line.clone(), body, connection });
            let fault = self.fault.as_ref().filter(|(at, _)| *at == line).map(|(_, fault)| *fault);
            match fault {
                None => stream.write_all(answer(&line).as_bytes()).await?,
                Some(fault) => self.fail(fault, &line, &mut stream).await?,
            }
            if self.hang_up {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn fail(&self, fault: Fault, line: &str, stream: &mut BufReader<UnixStream>) -> std::io::Result<()> {
        match fault {
            Fault::Hang => std::future::pending().await,
            Fault::Die if self.is_process => die(7),
            Fault::Die => Err(std::io::Error::other("died")),
            Fault::Refuse => stream.write_all(fault_answer("the request was refused").as_bytes()).await,
            Fault::Escapes => stream.write_all(fault_answer("bad \\u001b[2J\\nthing").as_bytes()).await,
            Fault::Late => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                stream.write_all(answer(line).as_bytes()).await
            }
            Fault::Garbage => stream.write_all(b"\x00\x01 this is not HTTP\r\n\r\n").await,
            Fault::Half => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"half").await?;
                Err(std::io::Error::other("half"))
            }
            Fault::Flood => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
                loop {
                    stream.write_all(format!("1000\r\n{}\r\n", "x".repeat(0x1000)).as_bytes()).await?;
                }
            }
        }
    }
}

fn fault_answer(message: &str) -> String {
    let body = format!("{{\"fault_message\":\"{message}\"}}");
    format!("HTTP/1.1 400 \r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn answer(line: &str) -> String {
    let body = match line {
        "GET /" => r#"{"id":"0101","state":"Not started","vmm_version":"1.16.1","app_name":"Firecracker"}"#,
        "GET /version" => r#"{"firecracker_version":"1.16.1"}"#,
        _ => return "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n".to_owned(),
    };
    format!("HTTP/1.1 200 \r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

async fn read_request(stream: &mut BufReader<UnixStream>) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut first = String::new();
    if stream.read_line(&mut first).await? == 0 {
        return Ok(None);
    }
    let mut length = 0;
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await?;
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some((first.trim_end_matches(" HTTP/1.1\r\n").to_owned(), body)))
}

/// What a fake VMM process is told, through a variable that a VMM is passed.
const FAULT_VARIABLE: &str = "BANGER_EMU_TEST_FAULT";
const ARGUMENTS_VARIABLE: &str = "BANGER_EMU_TEST_ARGUMENTS";

/// Writes a program that becomes the fake VMM below: this very test binary, started at [`fake_vmm`].
pub(crate) fn fake_program(dir: &Path, fault: &str) -> PathBuf {
    let script = format!(
        "#!/bin/sh\n{ARGUMENTS_VARIABLE}=\"$*\" {FAULT_VARIABLE}='{fault}' exec '{}' --exact vmm::fake::fake_vmm --ignored --nocapture\n",
        std::env::current_exe().unwrap().display()
    );
    let path = dir.join("fake-vmm");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}

#[expect(clippy::exit, reason = "a VMM that dies does not unwind")]
fn die(code: i32) -> ! {
    std::process::exit(code)
}

/// The fake VMM's process. Faults before it listens: `exit` ends it, `deaf` never listens, `late` listens after a while,
/// `helper` leaves a child behind that holds what it inherited.
#[test]
#[ignore = "no test: the process that other tests start as their VMM"]
fn fake_vmm() {
    let Ok(arguments) = std::env::var(ARGUMENTS_VARIABLE) else { return };
    let words: Vec<&str> = arguments.split(' ').collect();
    let socket = Path::new(words[words.iter().position(|word| *word == "--api-sock").unwrap() + 1]);
    let fault = std::env::var(FAULT_VARIABLE).unwrap_or_default();
    println!("fake VMM: {arguments}");
    match fault.as_str() {
        "exit" => {
            println!("fake VMM: no such device");
            die(3);
        }
        "deaf" => loop {
            std::thread::park();
        },
        "late" => std::thread::sleep(Duration::from_millis(300)),
        "helper" => drop(Command::new("sleep").arg("1000").spawn().unwrap()),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = StdListener::bind(socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let fault = fault.split_once('=').map(|(at, fault)| (at.to_owned(), Fault::parse(fault).unwrap()));
        let fake = Fake { fault, is_process: true, ..Fake::default() };
        fake.serve(UnixListener::from_std(listener).unwrap()).await;
    });
}
