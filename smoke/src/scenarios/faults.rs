//! What dies, and comes back.

use crate::case::{Case, Outcome, SETTLE, Stop, check};
use crate::command::Input;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;

pub(super) fn vmm_killed(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.create(&vm, &[])?;
    case.guest(&vm, "echo kept > /root/mark; sync")?;
    let shown = case.show(&vm)?;
    let (id, pid) = (shown["id"].as_str().unwrap_or_default(), shown["vmm_pid"].as_i64().unwrap_or_default());
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1).map(Pid::from_raw);
    let Some(pid) = pid else { return crate::case::failed(format!("no VMM in {shown}")) };
    let client = case.start(&["vm", "exec", &vm, "--", "sh", "-c", "echo ready; exec sleep 86398"], Input::Null)?;
    client.wait_for_stdout("ready", SETTLE).map_err(Stop::Failed)?;
    kill(pid, Signal::SIGKILL)?;
    // The exec ends with a failure of banger's own, not with a made-up status.
    let done = case.finish(client)?;
    check(done.code() >= 200, || format!("the exec ended with {}", done.code()))?;
    case.wait(SETTLE, "the VM to be known as dead", || {
        let state = case.field(&vm, "state")?;
        let dead = state.as_ref().is_some_and(|state| state == "failed" || state == "stopped");
        Ok(if dead { Ok(()) } else { Err(format!("{state:?}")) })
    })?;
    case.wait(SETTLE, "every process of the VM to be gone", || {
        let left = processes_with(id);
        Ok(if left.is_empty() { Ok(()) } else { Err(left.join("; ")) })
    })?;
    case.ok(&["vm", "start", &vm, "--wait", "agent"])?;
    let mark = case.guest(&vm, "cat /root/mark")?;
    check(mark == "kept", || format!("the mark on the disk is `{mark}`"))
}

/// The command lines of this run's processes that name a VM, but for the daemon's clients.
fn processes_with(id: &str) -> Vec<String> {
    let lines = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        Some(String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?).replace('\0', " "))
    });
    lines.filter(|line| line.contains(id)).collect()
}

pub(super) fn agent_killed(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.create(&vm, &["--wait", "system"])?;
    let boot = case.boot_id(&vm)?;
    let client = case.start(&["vm", "exec", &vm, "--", "sh", "-c", "echo ready; exec sleep 86397"], Input::Null)?;
    client.wait_for_stdout("ready", SETTLE).map_err(Stop::Failed)?;
    // The agent is the parent of what it runs.
    let killed = case.banger(&["vm", "exec", &vm, "--", "sh", "-c", "kill -9 $PPID"])?;
    case.note(format!("the exec that killed the agent ended with {}", killed.code()));
    // Nobody can know how the other command would have ended: it must not look like a success.
    let done = case.finish(client)?;
    check(done.code() != 0, || "an exec whose agent died exited with 0".to_owned())?;
    let after = case.boot_id(&vm)?;
    check(after == boot, || format!("boot {boot} became {after}"))?;
    case.code(7, &["vm", "exec", &vm, "--", "sh", "-c", "exit 7"])?;
    case.ok(&["vm", "stop", &vm])?;
    case.wait_state(&vm, "stopped")
}
