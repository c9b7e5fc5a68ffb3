//! How an editor such as VS Code uses a host: `ssh -T -D PORT HOST bash` with a script on stdin, which starts a server on the
//! guest's loopback; every later connection goes through the SOCKS port. The server outlives the connection that started it.

use super::Tools;
use crate::case::{Outcome, SETTLE, Stop, check, failed};
use crate::command::{Input, Running};
use nix::sys::signal::Signal;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Where the editor's `-D` listens: the network namespace is the run's own.
const SOCKS_PORT: u16 = 7799;
/// Connections at once: an editor has one for each window, and more for its extensions.
const CONNECTIONS: usize = 8;
/// Sent there and back on each.
const SIZE: usize = 1 << 20;
/// A connection that is silent for so long has hung.
const SILENCE: Duration = Duration::from_secs(60);

/// Answers with what it is sent, and says its port as VS Code's server does. Started once; later scripts find it running.
const SCRIPT: &str = r#"
if ! [ -s /root/.editor/port ]; then
  mkdir -p /root/.editor
  cat > /root/.editor/server.py <<'END'
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
server = Server(("127.0.0.1", 0), Echo)
with open("/root/.editor/port.new", "w") as file:
    file.write(str(server.server_address[1]))
import os
os.rename("/root/.editor/port.new", "/root/.editor/port")
server.serve_forever()
END
  nohup python3 /root/.editor/server.py > /root/.editor/log 2>&1 < /dev/null &
  echo $! > /root/.editor/pid
  until [ -s /root/.editor/port ]; do kill -0 $! || { cat /root/.editor/log; exit 1; }; sleep 0.1; done
fi
echo "pid==$(cat /root/.editor/pid)== listeningOn==$(cat /root/.editor/port)=="
echo ready
"#;

pub(super) fn editor(tools: &Tools<'_, '_>) -> Outcome {
    let first = window(tools)?;
    talk(first.port)?;
    let server = first.server.clone();
    first.close()?;
    let second = window(tools)?;
    check(second.server == server, || format!("the server was {server}, then {}", second.server))?;
    talk(second.port)?;
    second.close()
}

struct Window {
    ssh: Running,
    /// The editor keeps the script's stdin open for as long as its window.
    stdin: UnixStream,
    server: String,
    port: u16,
}

/// Opens a window: the script runs, and its server is known.
fn window(tools: &Tools<'_, '_>) -> Result<Window, Stop> {
    let (mut stdin, end) = UnixStream::pair()?;
    let socks = format!("127.0.0.1:{SOCKS_PORT}");
    let words = ["ssh", "-T", "-o", "ExitOnForwardFailure=yes", "-D", &socks, &tools.host, "bash"];
    let mut program = tools.program(&words);
    tools.case.note(format!("$ {} <script &", words.join(" ")));
    program.input = Input::Reader(Box::new(end));
    let ssh = program.spawn()?;
    stdin.write_all(SCRIPT.as_bytes())?;
    if let Err(said) = ssh.wait_for_stdout("==\nready\n", SETTLE) {
        return failed(said);
    }
    let said = ssh.stdout_so_far();
    let field = |name: &str| said.split_once(name).and_then(|(_, rest)| rest.split("==").next()).unwrap_or_default();
    let server = field("pid==").to_owned();
    let Ok(port) = field("listeningOn==").parse() else { return failed(format!("no port in `{said}`")) };
    Ok(Window { ssh, stdin, server, port })
}

impl Window {
    fn close(self) -> Outcome {
        self.ssh.signal(Signal::SIGTERM)?;
        self.stdin.shutdown(Shutdown::Both)?;
        self.ssh.finish()?;
        Ok(())
    }
}

/// Several connections at once through the SOCKS port, each with its own bytes there and back.
fn talk(port: u16) -> Outcome {
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        streams.push(connect(port)?);
    }
    let echoes: Vec<_> = streams
        .into_iter()
        .enumerate()
        .map(|(index, stream)| std::thread::spawn(move || echo(stream, index)))
        .collect();
    for echo in echoes {
        let Ok(same) = echo.join() else { return failed("a connection of the editor's panicked") };
        check(same?, || "a connection of the editor's came back with other bytes".to_owned())?;
    }
    Ok(())
}

fn echo(mut stream: TcpStream, index: usize) -> std::io::Result<bool> {
    let sent: Vec<u8> = (0..SIZE).map(|at| u8::try_from((at * 31 + index) % 251).unwrap_or(0)).collect();
    let mut writer = stream.try_clone()?;
    let copy = sent.clone();
    let writing = std::thread::spawn(move || writer.write_all(&copy).and_then(|()| writer.shutdown(Shutdown::Write)));
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    let written = writing.join().is_ok_and(|written| written.is_ok());
    Ok(written && back == sent)
}

/// By SOCKS 5 without authentication (RFC 1928), with a name: it is the guest that looks it up.
fn connect(port: u16) -> Result<TcpStream, Stop> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, SOCKS_PORT))?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.write_all(&[5, 1, 0])?;
    let mut method = [0; 2];
    stream.read_exact(&mut method)?;
    check(method == [5, 0], || format!("SOCKS answered {method:?}"))?;
    let name = b"localhost";
    let mut request = vec![5, 1, 0, 3, u8::try_from(name.len()).unwrap_or(0)];
    request.extend_from_slice(name);
    request.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&request)?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply)?;
    check(reply[..2] == [5, 0], || format!("SOCKS answered {reply:?}"))?;
    Ok(stream)
}
