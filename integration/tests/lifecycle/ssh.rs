//! SSH to the process machine: its server is the agent's own, so every byte is banger's and the user's `ssh`'s.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use integration::machines::Machine;
use integration::{CommandOutput, TestEnvironment};
use nix::unistd::Uid;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Whether this host has OpenSSH's client. A test that cannot run says so.
fn has_ssh() -> bool {
    let found = Path::new("/usr/bin/ssh").exists();
    #[expect(clippy::print_stderr, reason = "a skipped test says why")]
    if !found {
        eprintln!("skipped: there is no `ssh` on this host");
    }
    found
}

/// `ssh` runs for nobody whom the password database does not know, and the tests' ordinary user is such a one: it gets a line
/// there, in a mount namespace of this command's own.
fn known(environment: &TestEnvironment, program: &str, arguments: &[&str]) -> Command {
    let mut plain = environment.command("banger");
    let ours = program == "banger";
    let program = if ours { environment.program("banger") } else { program.into() };
    if !Uid::effective().is_root() {
        if ours {
            plain.args(arguments);
            return plain;
        }
        let mut command = Command::new(&program);
        command.args(arguments);
        return with_environment_of(&plain, command);
    }
    let (passwd, home) = (environment.path("passwd"), environment.path("home"));
    let id = fs::metadata(&home).map(|home| std::os::unix::fs::MetadataExt::uid(&home)).unwrap();
    fs::write(&passwd, format!("root:x:0:0::/root:/bin/sh\ntester:x:{id}:{id}::{}:/bin/sh\n", home.display())).unwrap();
    let script = "mount --bind \"$1\" /etc/passwd && shift && exec setpriv --reuid \"$1\" --regid \"$1\" --clear-groups \"${@:2}\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", script, "bash"]).arg(&passwd).arg(id.to_string()).arg(&program);
    command.args(arguments);
    with_environment_of(&plain, command)
}

fn with_environment_of(plain: &Command, mut command: Command) -> Command {
    command.env_clear();
    for (name, value) in plain.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command.current_dir(plain.get_current_dir().unwrap()).stdin(Stdio::null());
    command
}

fn run(environment: &TestEnvironment, program: &str, arguments: &[&str], stdin: &[u8]) -> CommandOutput {
    let mut command = known(environment, program, arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut pipe, stdin).ok());
        child.wait_with_output().unwrap()
    });
    environment.output(output)
}

#[test]
fn ready_ssh_is_a_handshake_of_the_daemons_own() {
    let environment = TestEnvironment::with_machine(Machine::Process);
    environment.line("vm create --name box --net none --wait ssh").success();
    assert_eq!(environment.vm("box", "readiness"), "ssh");
    let key = environment.vm("box", "ssh_host_key");
    assert!(key["fingerprint"].as_str().unwrap().starts_with("SHA256:"), "{key}");
    let file = environment.path("state/ssh/id_ed25519");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    environment.line("vm restart box --wait ssh").success();
    assert_eq!(environment.vm("box", "ssh_host_key"), key, "the host key stays");
    environment.line("vm rename box other").success();
    assert_eq!(environment.vm("other", "ssh_host_key"), key);
    environment.finish();
}

#[test]
fn a_command_has_its_streams_and_status() {
    if !has_ssh() {
        return;
    }
    let environment = TestEnvironment::with_machine(Machine::Process);
    environment.line("vm create --name box --net none").success();
    let done = run(&environment, "banger", &["vm", "ssh", "box", "--", "echo hi; echo err >&2; exit 7"], b"");
    assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (7, "hi\n", "err\n"));
    let done = run(&environment, "banger", &["vm", "ssh", "box", "--", "printf", "%s|", "a b", "$HOME"], b"");
    assert_eq!((done.code, done.stdout.as_str()), (0, "a b|$HOME|"), "{done:?}");
    let data: Vec<u8> = (0..3_000_000_u32).map(|index| u8::try_from(index * 7 % 251).unwrap()).collect();
    let done = run(&environment, "banger", &["vm", "ssh", "box", "--", "wc", "-c"], &data);
    assert_eq!((done.code, done.stdout.trim()), (0, "3000000"), "{done:?}");
    // More than all windows and queues together, both ways at once.
    let much = data.repeat(10);
    let much = String::from_utf8(much.iter().map(|byte| b'a' + byte % 26).collect()).unwrap();
    let done = run(&environment, "banger", &["vm", "ssh", "box", "--", "cat"], much.as_bytes());
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout == much, "{} bytes came back", done.stdout.len());
    // A command that does not read: the client waits, and is not answered by a stalled connection.
    let done = run(&environment, "banger", &["vm", "ssh", "box", "--", "sleep 1; echo unread"], much.as_bytes());
    assert_eq!((done.code, done.stdout.as_str()), (0, "unread\n"), "{}", done.stderr);
    let done = run(&environment, "banger", &["vm", "ssh", "box", "--", "kill -TERM $$"], b"");
    assert_eq!(done.code, 255, "ssh's own status for a signal: {done:?}");
    let done = run(&environment, "banger", &["vm", "ssh", "box"], b"echo from-a-shell; exit 3\n");
    assert_eq!((done.code, done.stdout.lines().last()), (3, Some("from-a-shell")), "{done:?}");
    environment.finish();
}

#[test]
fn the_included_config_serves_ssh_scp_and_sftp_and_a_name_used_again() {
    if !has_ssh() {
        return;
    }
    let environment = TestEnvironment::with_machine(Machine::Process);
    assert_eq!(environment.line("ssh-config").success(), "Include \"$ROOT/state/ssh/config\"\n");
    let config = environment.path("state/ssh/config").display().to_string();
    let flags = ["-F", &config, "-o", "BatchMode=yes"];
    let ssh =
        |program: &str, more: &[&str], stdin: &[u8]| run(&environment, program, &[&flags[..], more].concat(), stdin);
    for round in ["first", "second"] {
        environment.line("vm create --name box --net none").success();
        let done = ssh("ssh", &["box.vm", "echo", round], b"");
        assert_eq!((done.code, done.stdout.trim()), (0, round), "{done:?}");
        environment.line("vm delete --force box").success();
    }
    environment.line("vm create --name box --net none").success();
    let (there, back) = (environment.path("home/there"), environment.path("home/back"));
    fs::write(&there, vec![b'x'; 700_000]).unwrap();
    environment.give_away();
    let (there, back) = (there.display().to_string(), back.display().to_string());
    ssh("scp", &["-q", &there, "box.vm:copied"], b"").success();
    ssh("sftp", &["-b", "-", "box.vm"], format!("ls -l\nget copied {back}\nrm copied\n").as_bytes()).success();
    assert_eq!(fs::read(&back).unwrap(), fs::read(&there).unwrap());
    let path = format!("ControlPath={}", environment.path("home/cm").display());
    let master = ["-o", &path, "-o", "ControlMaster=yes", "-o", "ControlPersist=60", "-N", "-f", "box.vm"];
    let mut command = known(&environment, "ssh", &[&flags[..], &master].concat());
    // Its descendant keeps what it was given.
    assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    for _ in 0..3 {
        assert_eq!(ssh("ssh", &["-o", &path, "box.vm", "echo shared"], b"").success(), "shared\n");
    }
    ssh("ssh", &["-o", &path, "-O", "exit", "box.vm"], b"").success();
    environment.finish();
}

#[test]
fn what_cannot_be_is_said_in_one_sentence() {
    let environment = TestEnvironment::with_machine(Machine::Process);
    environment.line("vm create --name box --net none").success();
    let mut command = environment.command("banger");
    let done = environment.output(command.args(["vm", "ssh", "box"]).env("PATH", "/nonexistent").output().unwrap());
    let said = done.failure(205);
    assert!(said.contains("there is no `ssh` on the PATH"), "{said}");
    environment.line("vm stop box").success();
    let done = environment.line("vm ssh box");
    let said = done.failure(203);
    assert!(said.contains("VM box is stopped"), "{said}");
    let key = environment.path("state/ssh/id_ed25519");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let done = environment.line("vm start box");
    let said = done.failure(205);
    assert!(said.contains("run `chmod 600 "), "{said}");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    environment.line("vm start box --wait ssh").success();
    environment.finish();
}

#[test]
fn the_users_config_comes_back_to_the_byte() {
    let environment = TestEnvironment::new();
    let config = environment.path("home/.ssh/config");
    environment.line("ssh-config --install").success();
    assert!(fs::read_to_string(&config).unwrap().contains("\nInclude \""));
    environment.line("ssh-config --uninstall").success();
    assert!(!config.exists());
    let before = b"Host *\n\tNoSuchKeyword \"unclosed\xff\r\nno newline at the end";
    fs::write(&config, before).unwrap();
    environment.give_away();
    environment.line("ssh-config --install").success();
    environment.line("ssh-config --install").success();
    assert!(fs::read(&config).unwrap().ends_with(before));
    environment.line("ssh-config --uninstall").success();
    assert_eq!(fs::read(&config).unwrap(), before);
    fs::set_permissions(&config, Permissions::from_mode(0o400)).unwrap();
    let done = environment.line("ssh-config --install");
    let said = done.failure(205);
    assert!(said.contains("is read-only (mode 0400)"), "{said}");
    assert_eq!(fs::read(&config).unwrap(), before);
}
