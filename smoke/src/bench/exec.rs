//! `vm exec VM -- true` against `ssh` to the sshd of the same guest: a fresh connection, and one that is kept open.

use super::figures::{Figure, Goal, median, ms};
use super::{RUNS, time};
use crate::case::{Case, Outcome, SETTLE, Stop, check};
use crate::command::Program;

/// An sshd of the bench's own, for the image's may be socket-activated or bound to other keys. Its directory comes last: systemd
/// takes it away where the image's sshd ends.
const START_SSHD: &str = "systemctl stop ssh.service 2>/dev/null; mkdir -p -m 700 /root/.ssh && cat > /root/.ssh/bench_keys && \
    ssh-keygen -q -A && mkdir -p /run/sshd && /usr/sbin/sshd -p 2222 -o AuthorizedKeysFile=.ssh/bench_keys -o PermitRootLogin=prohibit-password";

pub(super) fn measure(case: &Case<'_>) -> Result<Vec<Figure>, Stop> {
    let vm = case.vm();
    case.create(&vm, &["--wait", "system"])?;
    let ssh = Ssh::open(case, &vm)?;
    let run = |arguments: &[&str]| time(&case.world.banger(arguments)).map(ms);
    let exec = ["vm", "exec", &vm, "--", "true"];
    let (mut ours, mut fresh, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    run(&exec)?;
    for _ in 0..RUNS {
        ours.push(run(&exec)?);
        fresh.push(ms(time(&ssh.fresh)?));
        kept.push(ms(time(&ssh.kept)?));
    }
    ssh.close()?;
    let figure = |name: &str, baseline: &[f64], goal| Figure {
        name: name.to_owned(),
        measured: median(&ours),
        baseline: median(baseline),
        goal: Goal::AtMost(goal),
        runs: RUNS,
        remark: String::new(),
    };
    Ok(vec![
        figure("exec true against a fresh ssh (ms)", &fresh, 0.1),
        figure("exec true against ssh over a ControlMaster (ms)", &kept, 1.0),
    ])
}

/// Two ways to run `true` over SSH in a guest.
struct Ssh {
    fresh: Program,
    kept: Program,
    stop: Program,
}

impl Ssh {
    fn open(case: &Case<'_>, vm: &str) -> Result<Self, Stop> {
        let directory = case.world.base.join("ssh");
        std::fs::create_dir_all(&directory)?;
        let path = |name: &str| directory.join(name).display().to_string();
        let key = path("key");
        must(Program::tool(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &key]))?;
        let mut program = case.world.banger(&["vm", "exec", vm, "--", "sh", "-c", START_SSHD]);
        program.input = crate::command::Input::Bytes(std::fs::read(path("key.pub"))?);
        let started = case.run(program)?;
        check(started.code() == 0, || format!("sshd does not start: {}", started.err()))?;
        let shown = case.show(vm)?;
        let address = shown["address"].as_str().unwrap_or_default();
        let login = format!("root@{address}");
        let control = format!("ControlPath={}", path("master"));
        let base = [
            "ssh",
            "-F",
            "none",
            "-q",
            "-p",
            "2222",
            "-i",
            &key,
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
        ];
        let with = |more: &[&str]| Program::tool(&[&base[..], more].concat());
        let ssh = Self {
            fresh: with(&["-o", "ControlPath=none", &login, "true"]),
            kept: with(&["-o", &control, &login, "true"]),
            stop: with(&["-o", &control, "-O", "exit", &login]),
        };
        case.wait(SETTLE, "sshd to answer", || {
            let done = with(&["-o", "ControlPath=none", "-o", "ConnectTimeout=5", &login, "true"]).run()?;
            Ok(if done.code() == 0 { Ok(()) } else { Err(format!("{} {}", done.code(), done.err())) })
        })?;
        must(with(&["-o", &control, "-o", "ControlMaster=yes", "-f", "-N", &login]))?;
        must(with(&["-o", &control, "-O", "check", &login]))?;
        Ok(ssh)
    }

    fn close(self) -> Outcome {
        must(self.stop)
    }
}

fn must(program: Program) -> Outcome {
    let shown = program.argv.join(" ");
    let done = program.run()?;
    check(done.code() == 0, || format!("`{shown}` exited with {}: {}", done.code(), done.err()))
}
