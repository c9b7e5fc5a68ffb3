//! The user's own ssh and what is built on it, against a guest without a network: everything goes through the VM's socket.

mod editor;

use crate::case::{Case, Outcome, SETTLE, Stop, check};
use crate::command::{Finished, Input, Program};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::chown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// What the user had in the config before: nothing that ssh likes, and it must come back to the byte.
const BEFORE: &[u8] = b"# mine\n\nHost elsewhere\n\tPort 2222";
/// Copied there and back.
const SIZE: usize = 3 << 20;

pub(super) fn ssh(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.create(&vm, &["--net", "none", "--wait", "ssh"])?;
    let shown = case.show(&vm)?;
    check(shown["readiness"] == "ssh", || format!("readiness is {}", shown["readiness"]))?;
    let given = shown["ssh_host_key"]["fingerprint"].as_str().unwrap_or_default().to_owned();
    let own = case.guest(&vm, "ssh-keygen -l -f /run/banger/ssh_host_key_0")?;
    check(own.contains(&given) && given.starts_with("SHA256:"), || format!("`{own}` is not `{given}`"))?;
    let done = case.code(7, &["vm", "ssh", &vm, "--", "echo out; echo err >&2; exit 7"])?;
    check(done.out() == "out\n" && done.err().contains("err"), || format!("{done:?}"))?;
    let done = case.ok(&["vm", "ssh", &vm, "--", "printf", "%s|", "a b", "$HOME"])?;
    check(done.out() == "a b|$HOME|", || done.out())?;
    plain(case, &vm)
}

/// By `ssh NAME.vm`, after `ssh-config --install`.
fn plain(case: &Case<'_>, vm: &str) -> Outcome {
    let home = case.world.base.join("h");
    let config = home.join(".ssh/config");
    write(case, &config, BEFORE)?;
    case.ok(&["ssh-config", "--install"])?;
    case.ok(&["ssh-config", "--install"])?;
    let after = fs::read(&config)?;
    check(after.ends_with(BEFORE) && after.len() > BEFORE.len(), || String::from_utf8_lossy(&after).into_owned())?;
    let host = format!("{vm}.vm");
    let tools = Tools { case, config: config.display().to_string(), host };
    let name = tools.ok(&["ssh", &tools.host, "hostname"])?;
    check(name.out().trim() == vm, || name.out())?;
    files(&tools, &home)?;
    forwards(&tools, &home)?;
    shared(&tools, &home)?;
    others(&tools)?;
    editor::editor(&tools)?;
    case.ok(&["ssh-config", "--uninstall"])?;
    let back = fs::read(&config)?;
    check(back == BEFORE, || String::from_utf8_lossy(&back).into_owned())?;
    fs::remove_file(&config)?;
    // They stay by design; the account of leaks is of the scenario's own.
    for name in ["config", "known_hosts", "known_hosts.lock"] {
        fs::remove_file(case.world.state.join("ssh").join(name))?;
    }
    Ok(())
}

struct Tools<'c, 'w> {
    case: &'c Case<'w>,
    config: String,
    host: String,
}

impl Tools<'_, '_> {
    fn program(&self, words: &[&str]) -> Program {
        let mut argv = vec![words[0].to_owned()];
        if matches!(words[0], "ssh" | "scp" | "sftp") {
            argv.extend(["-F".to_owned(), self.config.clone(), "-o".to_owned(), "BatchMode=yes".to_owned()]);
        }
        argv.extend(words[1..].iter().map(|word| (*word).to_owned()));
        let mut program = Program { argv, ..self.case.world.banger(&[]) };
        program.env.push(("GIT_SSH_COMMAND".to_owned(), format!("ssh -F {} -o BatchMode=yes", self.config)));
        program.env.push(("RSYNC_RSH".to_owned(), format!("ssh -F {} -o BatchMode=yes", self.config)));
        program
    }

    fn ok(&self, words: &[&str]) -> Result<Finished, Stop> {
        let done = self.case.run(self.program(words))?;
        check(done.code() == 0, || format!("`{}`: {}", words.join(" "), done.err()))?;
        Ok(done)
    }

    /// Whether both sides have a program; what is not there is noted, not failed.
    fn both_have(&self, program: &str) -> Result<bool, Stop> {
        let here = self.case.run(self.program(&["sh", "-c", &format!("command -v {program}")]))?.code() == 0;
        let there = self.case.run(self.program(&["ssh", &self.host, &format!("command -v {program}")]))?.code() == 0;
        if !(here && there) {
            self.case.note(format!("  {program} is not tried: here {here}, in the guest {there}"));
        }
        Ok(here && there)
    }
}

fn write(case: &Case<'_>, path: &Path, content: &[u8]) -> Outcome {
    let own = |path: &Path| chown(path, Some(case.world.uid), Some(case.world.uid));
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        fs::create_dir(dir)?;
        own(dir)?;
    }
    fs::write(path, content)?;
    own(path)?;
    Ok(())
}

fn files(tools: &Tools<'_, '_>, home: &Path) -> Outcome {
    let data: Vec<u8> = (0..SIZE).map(|index| u8::try_from(index * index % 251).unwrap_or(0)).collect();
    let (there, back) = (home.join("there.bin"), home.join("back.bin"));
    write(tools.case, &there, &data)?;
    let (there, back_text) = (there.display().to_string(), back.display().to_string());
    let remote = |name: &str| format!("{}:/root/{name}", tools.host);
    let same = |how: &str| check(fs::read(&back).is_ok_and(|read| read == data), || format!("{how} changed the file"));
    tools.ok(&["scp", "-q", &there, &remote("one")])?;
    tools.ok(&["scp", "-q", &remote("one"), &back_text])?;
    same("scp")?;
    fs::remove_file(&back)?;
    let mut sftp = tools.program(&["sftp", "-b", "-", &tools.host]);
    sftp.input = Input::Bytes(format!("rename /root/one /root/two\nget /root/two {back_text}\n").into_bytes());
    let done = tools.case.run(sftp)?;
    check(done.code() == 0, || done.err())?;
    same("sftp")?;
    fs::remove_file(&back)?;
    if tools.both_have("rsync")? {
        tools.ok(&["rsync", "-a", &there, &remote("three")])?;
        tools.ok(&["rsync", "-a", &remote("three"), &back_text])?;
        same("rsync")?;
        fs::remove_file(&back)?;
    }
    if tools.both_have("git")? {
        let make = "git init -q /root/r && cd /root/r && cp /root/two . && git add . && \
                    git -c user.name=a -c user.email=a@b commit -q -m one && git rev-parse HEAD";
        let commit = tools.ok(&["ssh", &tools.host, make])?.out();
        let clone = home.join("clone").display().to_string();
        tools.ok(&["git", "clone", "-q", &remote("r"), &clone])?;
        let cloned = tools.ok(&["git", "-C", &clone, "rev-parse", "HEAD"])?.out();
        check(commit == cloned && commit.len() > 30, || format!("{commit} and {cloned}"))?;
        fs::remove_dir_all(home.join("clone"))?;
    }
    fs::remove_file(there)?;
    Ok(())
}

/// A port of the guest's here, and one of ours in the guest.
fn forwards(tools: &Tools<'_, '_>, home: &Path) -> Outcome {
    let (near, far) = (home.join("near.sock"), home.join("far.sock"));
    let listener = UnixListener::bind(&far)?;
    chown(&far, Some(tools.case.world.uid), Some(tools.case.world.uid))?;
    let (left, right) = (format!("{}:127.0.0.1:22", near.display()), format!("7766:{}", far.display()));
    let script = "exec 3<>/dev/tcp/127.0.0.1/7766; echo from-guest >&3; cat <&3";
    let remote = format!("bash -c '{script}'; exec sleep 300");
    let words = ["ssh", "-o", "ExitOnForwardFailure=yes", "-L", &left, "-R", &right, &tools.host, &remote];
    tools.case.note(format!("$ {} &", words.join(" ")));
    let running = tools.program(&words).spawn()?;
    listener.set_nonblocking(true)?;
    let mut accepted = None;
    tools.case.wait(SETTLE, "-R", || {
        Ok(listener.accept().map(|(stream, _)| accepted = Some(stream)).map_err(|error| error.to_string()))
    })?;
    let Some(mut stream) = accepted else { return check(false, || "-R brought nobody".to_owned()) };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut said = [0; 11];
    stream.read_exact(&mut said)?;
    drop(stream);
    check(&said == b"from-guest\n", || format!("-R brought {said:?}"))?;
    let mut banner = [0; 8];
    tools.case.wait(SETTLE, "-L", || {
        let read = UnixStream::connect(&near).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.read_exact(&mut banner)
        });
        Ok(read.map_err(|error| error.to_string()))
    })?;
    check(&banner == b"SSH-2.0-", || format!("-L brought {banner:?}"))?;
    running.signal(nix::sys::signal::Signal::SIGTERM)?;
    running.finish()?;
    for socket in [near, far] {
        if socket.exists() {
            fs::remove_file(socket)?;
        }
    }
    Ok(())
}

/// Several sessions over one connection.
fn shared(tools: &Tools<'_, '_>, home: &Path) -> Outcome {
    let path = format!("ControlPath={}", home.join("cm").display());
    tools.ok(&["ssh", "-o", &path, "-o", "ControlMaster=yes", "-o", "ControlPersist=120", "-N", "-f", &tools.host])?;
    let checked = tools.ok(&["ssh", "-o", &path, "-O", "check", &tools.host])?;
    check(checked.err().contains("Master running"), || checked.err())?;
    for _ in 0..5 {
        let done = tools.ok(&["ssh", "-o", &path, &tools.host, "echo shared"])?;
        check(done.out() == "shared\n", || done.out())?;
    }
    tools.ok(&["ssh", "-o", &path, "-O", "exit", &tools.host])?;
    Ok(())
}

/// A user of the guest's own: let in by the key that lets root in, and by keys of that user's.
fn others(tools: &Tools<'_, '_>) -> Outcome {
    tools.ok(&["ssh", &tools.host, "useradd --create-home --shell /bin/bash dev"])?;
    let dev = format!("dev@{}", tools.host);
    let done = tools.ok(&["ssh", &dev, "id -un; pwd; test -r /run/banger/sshd_config || echo private"])?;
    check(done.out() == "dev\n/home/dev\nprivate\n", || done.out())?;
    Ok(())
}
