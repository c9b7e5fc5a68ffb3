//! Stop, start, reboot, kill, and what the console says.

use crate::case::{Case, Outcome, SETTLE, Stop, check};
use crate::command::Input;
use nix::sys::signal::Signal;

pub(super) fn stop_start(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.create(&vm, &["--wait", "system"])?;
    let identity = "hostname; cat /etc/machine-id";
    let before = case.guest(&vm, identity)?;
    let boot = case.boot_id(&vm)?;
    // Not synced by hand: a stop has to do that.
    case.guest(
        &vm,
        "head -c 5000000 /dev/urandom > /root/data; sha256sum /root/data > /root/sum; echo kept > /var/lib/mark",
    )?;
    case.ok(&["vm", "stop", &vm])?;
    case.wait_state(&vm, "stopped")?;
    let shown = case.show(&vm)?;
    check(shown["vmm_pid"].is_null(), || format!("a stopped VM has a VMM: {shown}"))?;
    case.ok(&["vm", "stop", &vm])?;
    case.ok(&["vm", "start", &vm, "--wait", "agent"])?;
    let after = case.guest(&vm, identity)?;
    check(before == after, || format!("identity was {before:?}, is {after:?}"))?;
    case.guest(&vm, "sha256sum -c /root/sum && test \"$(cat /var/lib/mark)\" = kept")?;
    check(case.boot_id(&vm)? != boot, || "the VM was not booted anew".to_owned())
}

pub(super) fn guest_reboot(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.create(&vm, &["--wait", "system"])?;
    let boot = case.boot_id(&vm)?;
    case.guest(&vm, "echo kept > /root/mark")?;
    type_in(case, &vm, "reboot")?;
    case.wait(SETTLE, "another boot", || {
        let done = case.banger(&["vm", "exec", &vm, "--", "cat", "/proc/sys/kernel/random/boot_id"])?;
        let seen = done.out().trim().to_owned();
        Ok(if done.code() == 0 && seen != boot { Ok(()) } else { Err(format!("{} {}", done.code(), done.err())) })
    })?;
    let mark = case.guest(&vm, "cat /root/mark")?;
    check(mark == "kept", || format!("the mark on the disk is `{mark}`"))?;
    case.wait_state(&vm, "running")
}

/// Runs a command that takes the guest down: how it ends itself is nobody's business, but it must end.
fn type_in(case: &Case<'_>, vm: &str, command: &str) -> Outcome {
    case.banger(&["vm", "exec", vm, "--", command]).map(drop)
}

pub(super) fn guest_poweroff(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.create(&vm, &["--wait", "system"])?;
    case.guest(&vm, "echo kept > /root/mark")?;
    type_in(case, &vm, "poweroff")?;
    case.wait_state(&vm, "stopped")?;
    case.ok(&["vm", "start", &vm, "--wait", "agent"])?;
    let mark = case.guest(&vm, "cat /root/mark")?;
    check(mark == "kept", || format!("the mark on the disk is `{mark}`"))
}

pub(super) fn kill(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.create(&vm, &[])?;
    let pid = case.show(&vm)?["vmm_pid"].clone();
    case.guest(&vm, "echo kept > /root/mark; sync")?;
    case.ok(&["vm", "kill", &vm])?;
    case.wait_state(&vm, "stopped")?;
    let process = std::path::PathBuf::from(format!("/proc/{pid}"));
    check(pid.is_u64() && !process.exists(), || format!("the VMM {pid} is still there"))?;
    case.ok(&["vm", "start", &vm, "--wait", "agent"])?;
    let mark = case.guest(&vm, "cat /root/mark")?;
    check(mark == "kept", || format!("the mark on the disk is `{mark}`"))
}

pub(super) fn logs(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.create(&vm, &[])?;
    case.guest(&vm, "echo first-mark > /dev/console")?;
    case.wait(SETTLE, "the first mark in the log", || {
        let done = case.ok(&["vm", "logs", &vm])?;
        Ok(if done.out().contains("first-mark") { Ok(()) } else { Err("no mark".to_owned()) })
    })?;
    let follower = case.start(&["vm", "logs", "--follow", &vm], Input::Null)?;
    follower.wait_for_stdout("first-mark", SETTLE).map_err(Stop::Failed)?;
    case.guest(&vm, "echo second-mark > /dev/console")?;
    follower.wait_for_stdout("second-mark", SETTLE).map_err(Stop::Failed)?;
    // It ends with the VM.
    case.ok(&["vm", "kill", &vm])?;
    let mut follower = follower;
    follower.set_deadline(SETTLE);
    let done = follower.finish()?;
    check(!done.overdue, || "`vm logs --follow` outlives its VM".to_owned())?;
    check(done.status.code() == Some(0), || format!("`vm logs --follow` exited with {}", done.code()))?;
    // The log of a stopped VM can be read too; an interrupted follower leaves nothing.
    let done = case.ok(&["vm", "logs", &vm])?;
    check(done.out().contains("second-mark"), || "the log of the stopped VM lacks the second mark".to_owned())?;
    case.ok(&["vm", "start", &vm, "--wait", "agent"])?;
    let follower = case.start(&["vm", "logs", "--follow", &vm], Input::Null)?;
    follower.signal(Signal::SIGINT)?;
    case.finish(follower).map(drop)
}
