//! Running commands in VMs.

use crate::case::{Case, Outcome, Stop, check};
use messages::error::ErrorKind;

/// `banger vm run --rm -- uname -a`, as the README has it.
pub(super) fn bare_run(case: &Case<'_>) -> Outcome {
    let done = case.ok(&["vm", "run", "--rm", "--name", &case.vm(), "--", "uname", "-a"])?;
    let kernels: serde_json::Value = serde_json::from_slice(&case.ok(&["kernel", "list", "--json"])?.stdout)?;
    let version = kernels[0]["version"].as_str().unwrap_or("no kernel is listed").to_owned();
    let line = done.out();
    check(line.starts_with("Linux ") && line.contains(&version) && line.lines().count() == 1, || {
        format!("uname printed `{line}`, the kernel's version is {version}")
    })?;
    check(line.split(' ').nth(1) == Some(&case.vm()), || format!("the host name is not the VM's name: {line}"))?;
    case.wait_gone(&case.vm())
}

pub(super) fn exit_status(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    let script = "echo out; echo err >&2; exit 7";
    let done = case.code(7, &["vm", "run", "--name", &vm, "--", "sh", "-c", script])?;
    check(done.out() == "out\n", || format!("stdout is `{}`", done.out()))?;
    check(done.err().lines().any(|line| line == "err"), || format!("stderr is `{}`", done.err()))?;
    for code in [0, 1, 125, 255] {
        case.code(code, &["vm", "exec", &vm, "--", "sh", "-c", &format!("exit {code}")])?;
    }
    // As a shell has it: 127 for what is not there, 126 for what cannot be run.
    for (program, code) in [("no-such-program", 127), ("/etc/passwd", 126)] {
        let done = case.code(code, &["vm", "exec", &vm, "--", program])?;
        check(done.err().contains(program), || format!("does not name `{program}`: {}", done.err()))?;
    }
    // The agent is spared when memory runs out; what it starts is not.
    let preference = case.guest(&vm, "cat /proc/self/oom_score_adj")?;
    check(preference.trim() == "0", || format!("a command's oom_score_adj is {preference}"))?;
    Ok(())
}

pub(super) fn signal_status(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.create(&vm, &[])?;
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("SEGV", 139)] {
        case.code(code, &["vm", "exec", &vm, "--", "sh", "-c", &format!("kill -{signal} $$")])?;
    }
    Ok(())
}

pub(super) fn two_at_once(case: &Case<'_>) -> Outcome {
    let names = [case.vm_named("a"), case.vm_named("b")];
    let script =
        "hostname; cat /etc/machine-id; cat /proc/sys/kernel/random/boot_id; ls /root/only-b 2>/dev/null; true";
    let identities: Vec<Result<Vec<String>, Stop>> = std::thread::scope(|scope| {
        let work = names.each_ref().map(|vm| {
            scope.spawn(move || {
                case.create(vm, &[])?;
                if vm.ends_with("-b") {
                    case.guest(vm, "touch /root/only-b")?;
                }
                Ok(case.guest(vm, script)?.lines().map(ToOwned::to_owned).collect())
            })
        });
        work.into_iter().map(|one| one.join().unwrap_or_else(|_| Err(Stop::Failed("panicked".to_owned())))).collect()
    });
    let [one, other] = [0, 1].map(|index| identities[index].as_ref().map_err(|stop| format!("{stop:?}")));
    let (one, other) = (one.map_err(Stop::Failed)?, other.map_err(Stop::Failed)?);
    check(one.len() == 3 && other.len() == 4, || format!("disks are not apart: {one:?} {other:?}"))?;
    for (index, what) in ["host names", "machine ids", "boot ids"].into_iter().enumerate() {
        check(one[index] != other[index] && !one[index].is_empty(), || format!("{what}: {one:?} {other:?}"))?;
    }
    check(one[0] == names[0] && other[0] == names[1], || format!("host names {one:?} {other:?}"))?;
    let addresses = [case.show(&names[0])?["address"].clone(), case.show(&names[1])?["address"].clone()];
    check(addresses[0].is_string() && addresses[0] != addresses[1], || format!("addresses {addresses:?}"))
}

pub(super) fn detach(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    let script = "while [ ! -e /run/go ]; do sleep 0.2; done; exit 3";
    let arguments = ["vm", "run", "--rm", "--detach", "--wait", "agent", "--name", &vm, "--", "sh", "-c", script];
    let done = case.ok(&arguments)?;
    check(done.out().trim() == vm, || format!("printed `{}` and not the name", done.out().trim()))?;
    let state = case.field(&vm, "state")?;
    check(state.as_ref().is_some_and(|state| state == "running"), || format!("{vm} is {state:?}"))?;
    // With --rm the VM goes when the command does, although nobody is attached.
    case.guest(&vm, "touch /run/go")?;
    case.wait_gone(&vm)
}

pub(super) fn bad_input(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    let refused: [(ErrorKind, &[&str], &str); 9] = [
        (ErrorKind::NotFound, &["vm", "show", "no-such-vm"], "no-such-vm"),
        (ErrorKind::NotFound, &["vm", "create", "--name", &vm, "--image", "debian-bookwrom"], "debian-bookworm"),
        (ErrorKind::NotFound, &["vm", "create", "--name", &vm, "--kernel", "no-such-kernel"], "no-such-kernel"),
        (ErrorKind::Usage, &["vm", "create", "--name", "Not_A_Name"], "Not_A_Name"),
        (ErrorKind::Usage, &["vm", "create", "--name", &vm, "--vcpu", "0"], "0"),
        (ErrorKind::Usage, &["vm", "create", "--name", &vm, "--memory", "1M"], "1"),
        (ErrorKind::Usage, &["vm", "create", "--name", &vm, "--disk-size", "3"], "3"),
        (ErrorKind::Resources, &["vm", "create", "--name", &vm, "--memory", "4T"], "fit this host"),
        (ErrorKind::Usage, &["vm", "create", "--name", &vm, "--net", "moon"], "moon"),
    ];
    for (kind, arguments, names) in refused {
        let done = case.code(i32::from(kind.exit_code()), arguments)?;
        check(done.stdout.is_empty(), || format!("`{arguments:?}` printed to stdout: {}", done.out()))?;
        check(done.err().contains(names), || format!("`{arguments:?}` does not name `{names}`: {}", done.err()))?;
    }
    case.ok(&["vm", "create", "--no-start", "--name", &vm])?;
    case.code(i32::from(ErrorKind::Conflict.exit_code()), &["vm", "create", "--no-start", "--name", &vm])?;
    case.code(i32::from(ErrorKind::WrongState.exit_code()), &["vm", "exec", &vm, "--", "true"])?;
    let listed = case.list()?.len();
    check(listed == 1, || format!("{listed} VMs are left where one was made"))
}
