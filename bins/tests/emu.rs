//! `banger-emu` from outside: its flags and exit codes, and its API over a real socket. The machine is scripted, or a QEMU
//! that is none; real guests are booted by the smoke tests.
#![expect(clippy::tests_outside_test_module, clippy::unwrap_used, reason = "a test binary is one module of tests")]

use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const EMU: &str = env!("CARGO_BIN_EXE_banger-emu");
const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for a state of the world.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A running banger-emu in a directory of its own.
struct Emu {
    child: Child,
    dir: TempDir,
}

impl Drop for Emu {
    fn drop(&mut self) {
        // It may be gone already; a stopped one dies of SIGKILL as well.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("e").tempdir().unwrap()
}

/// The command, with its log in a file: it would go to stdout.
fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(EMU);
    command.args(["--api-sock", dir.join("a").to_str().unwrap(), "--log-path", dir.join("log").to_str().unwrap()]);
    command.args(arguments).stdin(Stdio::null());
    command
}

fn start_in(dir: TempDir, mut command: Command) -> Emu {
    let child = command.spawn().unwrap();
    let mut emu = Emu { child, dir };
    until("the API answers", || {
        assert!(emu.child.try_wait().unwrap().is_none(), "it ended: {}", emu.log());
        UnixStream::connect(emu.path("a")).ok()
    });
    emu
}

fn scripted(script: &str) -> Emu {
    let dir = directory();
    std::fs::write(dir.path().join("script"), script).unwrap();
    let path = dir.path().join("script");
    let command = command(dir.path(), &["--machine", "scripted", "--script", path.to_str().unwrap(), "--id", "test-1"]);
    start_in(dir, command)
}

impl Emu {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn try_call(&self, method: &str, path: &str, body: &str, patience: Duration) -> std::io::Result<(u16, Value)> {
        let mut stream = UnixStream::connect(self.path("a"))?;
        stream.set_read_timeout(Some(patience))?;
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(format!("{head}{body}").as_bytes())?;
        let mut answer = String::new();
        match stream.read_to_string(&mut answer) {
            // A body over the limit is answered and left unread: the kernel says so after the answer.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset && !answer.is_empty() => {}
            read => drop(read?),
        }
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Ok((status, if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() }))
    }

    fn call(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        self.try_call(method, path, body, DEADLINE).unwrap()
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.call("GET", path, "");
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    fn put(&self, path: &str, body: &Value) {
        let (status, answer) = self.call("PUT", path, &body.to_string());
        assert_eq!((status, answer), (204, Value::Null), "{path}");
    }

    fn fault(&self, method: &str, path: &str, body: &Value) -> String {
        let (status, answer) = self.call(method, path, &body.to_string());
        assert_eq!(status, 400, "{path}: {answer}");
        answer["fault_message"].as_str().unwrap().to_owned()
    }

    fn file(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, "x").unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn boot_source(&self) -> Value {
        json!({"kernel_image_path": self.file("kernel"), "boot_args": "reboot=k panic=1"})
    }

    fn action(kind: &str) -> Value {
        json!({"action_type": kind})
    }

    fn wait(&mut self) -> ExitStatus {
        until("it ends", || self.child.try_wait().unwrap())
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }
}

const POST_BOOT: &str = "The requested operation is not supported after starting the microVM.";
const PRE_BOOT: &str = "The requested operation is not supported before starting the microVM.";

#[test]
fn a_vm_is_configured_started_paused_and_resumed() {
    let emu = scripted("[]");
    let state = |emu: &Emu| emu.get("/")["state"].as_str().unwrap().to_owned();
    assert_eq!(emu.get("/")["id"], "test-1");
    assert_eq!(emu.get("/version"), json!({"firecracker_version": "1.16.1"}));
    assert_eq!(emu.get("/machine-config")["mem_size_mib"], 128);
    emu.put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 256}));
    assert_eq!(emu.call("PATCH", "/machine-config", r#"{"vcpu_count":4}"#).0, 204);
    assert_eq!(emu.get("/machine-config")["vcpu_count"], 4);
    let start = Emu::action("InstanceStart");
    let fault = emu.fault("PUT", "/actions", &start);
    assert_eq!(fault, "Start microvm error: Cannot start microvm without kernel configuration.");
    emu.put("/boot-source", &emu.boot_source());
    let disk = emu.file("disk");
    emu.put(
        "/drives/d",
        &json!({"drive_id": "d", "is_root_device": false, "is_read_only": true, "path_on_host": disk}),
    );
    emu.put("/vsock", &json!({"guest_cid": 3, "uds_path": emu.path("v")}));
    emu.put("/vsock", &json!({"guest_cid": 4, "uds_path": emu.path("v")}));
    emu.put("/entropy", &json!({}));
    emu.put("/serial", &json!({"serial_out_path": emu.path("console"), "rate_limiter": {"size": 9, "refill_time": 1}}));
    emu.put("/metrics", &json!({"metrics_path": emu.path("metrics")}));
    emu.put("/logger", &json!({"level": "Debug", "show_level": true}));
    assert_eq!(state(&emu), "Not started");
    assert_eq!(emu.fault("PATCH", "/vm", &json!({"state": "Paused"})), PRE_BOOT);
    assert_eq!(emu.fault("PUT", "/actions", &Emu::action("SendCtrlAltDel")), PRE_BOOT);
    emu.put("/actions", &start);
    assert_eq!(state(&emu), "Running");
    for (path, body) in [
        ("/actions", start),
        ("/boot-source", emu.boot_source()),
        ("/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 128})),
        ("/vsock", json!({"guest_cid": 3, "uds_path": emu.path("w")})),
        ("/logger", json!({})),
    ] {
        assert_eq!(emu.fault("PUT", path, &body), POST_BOOT, "{path}");
    }
    assert_eq!(emu.call("PATCH", "/vm", r#"{"state":"Paused"}"#).0, 204);
    assert_eq!(state(&emu), "Paused");
    assert_eq!(emu.call("PATCH", "/vm", r#"{"state":"Resumed"}"#).0, 204);
    assert_eq!(state(&emu), "Running");
    emu.put("/actions", &Emu::action("SendCtrlAltDel"));
    emu.put("/actions", &Emu::action("FlushMetrics"));
    let metrics = std::fs::read_to_string(emu.path("metrics")).unwrap();
    let metrics: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert_eq!(metrics["api_requests"]["pause"]["count"], 2, "{metrics}");
    let config = emu.get("/vm/config");
    assert_eq!(config["vsock"]["guest_cid"], 4);
    assert_eq!(config["drives"][0]["drive_id"], "d");
    assert!(emu.log().contains(":ERROR] Received Error: The requested operation"), "{}", emu.log());
}

#[test]
fn bad_requests_are_refused_with_reasons() {
    let emu = scripted("[]");
    let fault = |method: &str, path: &str, body: &str| {
        let (status, answer) = emu.call(method, path, body);
        assert_eq!(status, 400, "{answer}");
        answer["fault_message"].as_str().unwrap().to_owned()
    };
    assert_eq!(fault("GET", "/x", ""), "Invalid request method and/or path: GET /x.");
    assert_eq!(fault("DELETE", "/", ""), "Invalid request method and/or path: DELETE /.");
    assert_eq!(fault("PUT", "/actions", ""), "Empty PUT request.");
    assert!(fault("PUT", "/actions", "{").starts_with("An error occurred when deserializing the json body"));
    assert!(fault("PUT", "/actions", r#"{"action_type":"Reboot"}"#).contains("unknown variant `Reboot`"));
    assert!(fault("PUT", "/vsock", r#"{"guest_cid":3,"uds_path":"v","speed":1}"#).contains("unknown field `speed`"));
    assert!(fault("PUT", "/vsock", r#"{"guest_cid":2,"uds_path":"v"}"#).contains("the guest's CID"));
    assert!(fault("PUT", "/machine-config", r#"{"vcpu_count":0,"mem_size_mib":1}"#).contains("number of vCPUs"));
    assert!(fault("PUT", "/balloon", "{}").contains("the balloon device is not supported by banger-emu"));
    let long = format!(r#"{{"uds_path":"{}"}}"#, "x".repeat(60_000));
    assert!(fault("PUT", "/vsock", &long).contains("larger than the limit of 51200 allowed by server"));
    let long_path = format!(r#"{{"guest_cid":3,"uds_path":"/tmp/{}"}}"#, "x".repeat(120));
    assert!(fault("PUT", "/vsock", &long_path).starts_with("Vsock config error: Cannot create backend"));
}

#[test]
fn a_snapshot_that_cannot_be_loaded_ends_the_process() {
    let mut emu = scripted("[]");
    let load = json!({"snapshot_path": "/n", "mem_file_path": "/n"});
    assert!(emu.fault("PUT", "/snapshot/load", &load).contains("/n"));
    let status = until("the end", || emu.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(1), "{}", emu.log());

    let emu = scripted("[]");
    emu.fault("PUT", "/machine-config", &json!({"vcpu_count": 0, "mem_size_mib": 1}));
    let refused = emu.fault("PUT", "/snapshot/load", &load);
    assert!(refused.contains("not allowed after configuring boot-specific resources"), "{refused}");
    assert_eq!(emu.get("/")["state"], "Not started");
}

#[test]
fn a_script_refuses_delays_and_hangs() {
    let script = r#"[{"at":"boot_source","do":"refuse","times":1},{"at":"drives","do":"late","ms":60},
        {"at":"instance_start","do":"hang"}]"#;
    let emu = scripted(script);
    assert_eq!(emu.fault("PUT", "/boot-source", &emu.boot_source()), "refused by the script at `boot_source`");
    emu.put("/boot-source", &emu.boot_source());
    let disk = json!({"drive_id": "d", "is_root_device": false, "is_read_only": true, "path_on_host": emu.file("d")});
    let began = Instant::now();
    emu.put("/drives/d", &disk);
    assert!(began.elapsed() >= Duration::from_millis(60));
    let start = Emu::action("InstanceStart").to_string();
    let hung = emu.try_call("PUT", "/actions", &start, Duration::from_millis(300)).unwrap_err();
    assert!(matches!(hung.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{hung}");
}

#[test]
fn a_script_kills_before_and_after_the_start() {
    let mut emu = scripted(r#"[{"at":"instance_start","do":"die"}]"#);
    emu.put("/boot-source", &emu.boot_source());
    assert!(emu.try_call("PUT", "/actions", &Emu::action("InstanceStart").to_string(), DEADLINE).is_err());
    assert!(!emu.wait().success());

    let mut emu = scripted("[[fault]]\nat = \"after_start\"\ndo = \"die\"\nms = 20\n");
    emu.put("/boot-source", &emu.boot_source());
    emu.put("/actions", &Emu::action("InstanceStart"));
    assert!(!emu.wait().success());
}

#[test]
fn a_signal_ends_it_and_no_socket_stays() {
    let mut emu = scripted("[]");
    emu.put("/vsock", &json!({"guest_cid": 3, "uds_path": emu.path("v")}));
    assert!(emu.path("v").exists());
    emu.signal("-TERM");
    assert_eq!(emu.wait().code(), Some(143));
    assert!(!emu.path("a").exists() && !emu.path("v").exists());
}

fn run(arguments: &[&str]) -> (Output, TempDir) {
    let dir = directory();
    let output = command(dir.path(), arguments).output().unwrap();
    (output, dir)
}

#[test]
fn flags_and_exit_codes_are_firecrackers() {
    let (output, _) = run(&["--version"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("Firecracker v1.16.1 (banger-emu "), "{text}");
    let code = |arguments: &[&str]| run(arguments).0.status.code();
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["--snapshot-version"]), Some(0));
    assert_eq!(code(&["--nonsense"]), Some(153));
    assert_eq!(code(&["--id", "a_b"]), Some(153));
    assert_eq!(code(&["--enable-pci"]), Some(153));
    assert_eq!(code(&["--config-file", "/nonexistent"]), Some(152));
    assert_eq!(code(&["--api-sock", "/nonexistent/a"]), Some(153), "a flag given twice");
}

#[test]
fn an_api_socket_in_use_is_left_alone() {
    let emu = scripted("[]");
    let output = command(emu.dir.path(), &["--machine", "scripted"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("Failed to open the API socket"), "{text}");
    assert_eq!(emu.get("/")["state"], "Not started");
}

#[test]
fn a_config_file_starts_a_machine() {
    let dir = directory();
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, "x").unwrap();
    let config = dir.path().join("config");
    let json = json!({"boot-source": {"kernel_image_path": kernel}, "drives": [],
        "machine-config": {"vcpu_count": 3, "mem_size_mib": 64}});
    std::fs::write(&config, json.to_string()).unwrap();
    let command_line = command(dir.path(), &["--machine", "scripted", "--config-file", config.to_str().unwrap()]);
    let emu = start_in(dir, command_line);
    assert_eq!(emu.get("/")["state"], "Running");
    assert_eq!(emu.get("/machine-config")["vcpu_count"], 3);

    std::fs::write(&config, json!({"boot-source": {"kernel_image_path": "/nonexistent"}}).to_string()).unwrap();
    let other = directory();
    let output = command(other.path(), &["--machine", "scripted", "--config-file", config.to_str().unwrap()]).output();
    assert_eq!(output.unwrap().status.code(), Some(152));
    assert!(!other.path().join("a").exists());
}

/// A program that stands in for QEMU or the agent.
fn program(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("program");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn with_qemu(qemu: impl FnOnce(&Path) -> PathBuf) -> Emu {
    let dir = directory();
    let mut command = command(dir.path(), &["--accel", "tcg"]);
    command.env("BANGER_QEMU", qemu(dir.path()));
    let emu = start_in(dir, command);
    emu.put("/boot-source", &emu.boot_source());
    emu.put("/vsock", &json!({"guest_cid": 3, "uds_path": emu.path("v")}));
    emu.put("/serial", &json!({"serial_out_path": emu.path("console")}));
    emu
}

#[test]
fn qemus_own_words_reach_the_caller_and_the_next_start_is_a_new_one() {
    let emu = with_qemu(|_| "/nonexistent/qemu".into());
    let start = Emu::action("InstanceStart");
    let fault = emu.fault("PUT", "/actions", &start);
    assert!(fault.starts_with("Start microvm error: cannot run `/nonexistent/qemu`: No such file"), "{fault}");
    assert!(fault.contains("qemu-system-x86"), "{fault}");
    assert_eq!(emu.get("/")["state"], "Not started");

    let emu = with_qemu(|dir| program(dir, "echo 'qemu-system-x86_64: could not open tap' >&2; exit 1"));
    for _ in 0..2 {
        assert_eq!(emu.fault("PUT", "/actions", &start), "Start microvm error: QEMU: could not open tap");
    }
    let left: Vec<_> = std::fs::read_dir(emu.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 6, "{left:?}");
}

/// Whether a process is there and no zombie.
fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[test]
fn qemu_dies_with_a_killed_emu() {
    for signal in ["-KILL", "-TERM"] {
        // A QEMU that never answers its monitor: the start is under way when the end comes.
        let mut emu = with_qemu(|dir| program(dir, &format!("echo $$ >{}/pid; exec sleep 1000", dir.display())));
        let start = Emu::action("InstanceStart").to_string();
        let waiting = emu.try_call("PUT", "/actions", &start, Duration::from_millis(100));
        assert!(waiting.is_err());
        let pid = until("QEMU runs", || {
            let text = std::fs::read_to_string(emu.path("pid")).ok()?;
            text.ends_with('\n').then(|| text.trim().to_owned())
        });
        assert!(is_alive(&pid));
        emu.signal(signal);
        emu.wait();
        until("QEMU is gone", || (!is_alive(&pid)).then_some(()));
    }
}

#[test]
fn an_agent_that_ends_at_once_is_a_fault() {
    let dir = directory();
    let agent = program(dir.path(), "exit 3");
    let command_line = command(dir.path(), &["--machine", "process", "--agent", agent.to_str().unwrap()]);
    let emu = start_in(dir, command_line);
    emu.put("/vsock", &json!({"guest_cid": 3, "uds_path": emu.path("v")}));
    let fault = emu.fault("PUT", "/actions", &Emu::action("InstanceStart"));
    assert_eq!(fault, "Start microvm error: the agent ended at once (exit status: 3)");
    assert!(!emu.path("a.l").exists());
}
