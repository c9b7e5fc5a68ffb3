//! How VMs go: by `--rm`, by a vanished client, by delete.

use crate::case::{Case, Outcome, SETTLE, check};
use crate::command::Input;
use messages::error::ErrorKind;
use nix::sys::signal::Signal;

pub(super) fn rm(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.ok(&["vm", "run", "--rm", "--wait", "agent", "--name", &vm, "--", "true"])?;
    case.wait_gone(&vm)
}

pub(super) fn rm_after_failure(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.code(9, &["vm", "run", "--rm", "--wait", "agent", "--name", &vm, "--", "sh", "-c", "exit 9"])?;
    case.wait_gone(&vm)?;
    case.code(127, &["vm", "run", "--rm", "--wait", "agent", "--name", &vm, "--", "no-such-program"])?;
    case.wait_gone(&vm)
}

pub(super) fn rm_boot_timeout(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    let code = i32::from(ErrorKind::Timeout.exit_code());
    // No guest is ready after a tenth of a second.
    let done = case.code(code, &["vm", "run", "--rm", "--timeout", "100ms", "--name", &vm, "--", "true"])?;
    check(done.err().contains("banger vm logs"), || format!("does not point to the log: {}", done.err()))?;
    let state = case.field(&vm, "state")?;
    check(state.is_some(), || "the VM is gone, and its log with it".to_owned())?;
    case.ok(&["vm", "logs", &vm])?;
    case.ok(&["vm", "delete", "--force", &vm])?;
    case.wait_gone(&vm)
}

pub(super) fn client_killed(case: &Case<'_>) -> Outcome {
    let (kept, removed) = (case.vm_named("kept"), case.vm_named("rm"));
    let script = "echo ready; exec sleep 86399";
    // --rm: the VM goes with its client.
    let client = case
        .start(&["vm", "run", "--rm", "--wait", "agent", "--name", &removed, "--", "sh", "-c", script], Input::Null)?;
    client.wait_for_stdout("ready", SETTLE).map_err(crate::case::Stop::Failed)?;
    client.signal(Signal::SIGKILL)?;
    case.finish(client)?;
    case.wait_gone(&removed)?;
    // Without: the command goes, the VM stays.
    case.create(&kept, &[])?;
    let client = case.start(&["vm", "exec", &kept, "--", "sh", "-c", script], Input::Null)?;
    client.wait_for_stdout("ready", SETTLE).map_err(crate::case::Stop::Failed)?;
    client.signal(Signal::SIGKILL)?;
    case.finish(client)?;
    case.wait(SETTLE, "the command to be gone", || {
        let left = case.guest(&kept, "pgrep -fx 'sleep 86399' || true")?;
        Ok(if left.is_empty() { Ok(()) } else { Err(left) })
    })?;
    let state = case.field(&kept, "state")?;
    check(state.as_ref().is_some_and(|state| state == "running"), || format!("{kept} is {state:?}"))
}

pub(super) fn delete(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.create(&vm, &[])?;
    let id = case.show(&vm)?["id"].as_str().unwrap_or_default().to_owned();
    let directory = case.world.state.join("vms").join(&id);
    check(!id.is_empty() && directory.is_dir(), || format!("{} is not there", directory.display()))?;
    let done = case.code(i32::from(ErrorKind::WrongState.exit_code()), &["vm", "delete", &vm])?;
    check(done.err().contains("--force"), || format!("does not say how: {}", done.err()))?;
    case.ok(&["vm", "exec", &vm, "--", "true"])?;
    case.ok(&["vm", "delete", "--force", &vm])?;
    check(case.field(&vm, "state")?.is_none(), || format!("{vm} is still listed"))?;
    check(!directory.exists(), || format!("{} is still there", directory.display()))?;
    case.code(i32::from(ErrorKind::NotFound.exit_code()), &["vm", "delete", &vm])?;
    // Stopped ones need no force, and several go at once.
    let two = [case.vm_named("b"), case.vm_named("c")];
    for vm in &two {
        case.ok(&["vm", "create", "--no-start", "--name", vm])?;
    }
    case.ok(&["vm", "delete", &two[0], &two[1]])?;
    let left = case.list()?.len();
    check(left == 0, || format!("{left} VMs are left"))
}
