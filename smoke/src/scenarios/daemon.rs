//! The daemon may die at any moment.

use crate::case::{Case, Outcome, SETTLE, Stop, check};
use crate::command::Input;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(super) fn killed(case: &Case<'_>) -> Outcome {
    let vm = case.vm();
    case.create(&vm, &["--wait", "system"])?;
    let before = case.show(&vm)?;
    let boot = case.boot_id(&vm)?;
    let script = "echo ready; while [ ! -e /run/go ]; do sleep 0.2; done; echo end; exit 5";
    let client = case.start(&["vm", "exec", &vm, "--", "sh", "-c", script], Input::Null)?;
    client.wait_for_stdout("ready", SETTLE).map_err(Stop::Failed)?;
    let Some(pid) = case.world.daemon_pid() else { return crate::case::failed("there is no daemon") };
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    case.wait(SETTLE, "the daemon to be gone", || {
        Ok(match case.world.daemon_pid() {
            Some(now) if now == pid => Err(format!("{pid} is there")),
            _ => Ok(()),
        })
    })?;
    // The next call starts another daemon, which takes up the VM as it is.
    case.guest(&vm, "touch /run/go")?;
    let done = case.finish(client)?;
    check(done.code() == 5 && done.out() == "ready\nend\n", || {
        format!("the exec ended with {} and `{}`", done.code(), done.out())
    })?;
    let after = case.boot_id(&vm)?;
    check(after == boot, || format!("boot {boot} became {after}"))?;
    // Its successor answers names again, for guests too.
    let named = case.guest(&vm, &format!("getent hosts {vm}.vm."))?;
    check(before["address"].as_str().is_some_and(|address| named.starts_with(address)), || {
        format!("{vm}.vm is `{named}` after the daemon's death")
    })?;
    let shown = case.show(&vm)?;
    for field in ["id", "vmm_pid", "address", "state"] {
        check(shown[field] == before[field], || format!("{field} was {}, is {}", before[field], shown[field]))?;
    }
    check(case.world.daemon_pid().is_some_and(|now| now != pid), || "no other daemon was started".to_owned())?;
    case.ok(&["vm", "stop", &vm])?;
    case.wait_state(&vm, "stopped")
}
