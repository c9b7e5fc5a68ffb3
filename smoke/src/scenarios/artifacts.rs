//! Pulls that are cut short.

use crate::account::Kind;
use crate::case::{Case, Outcome, SETTLE, check};
use crate::command::Input;
use crate::run::snapshot;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(super) fn pull_interrupted(case: &Case<'_>) -> Outcome {
    // What is idle now must be all that is there afterwards.
    case.ok(&["daemon", "status"])?;
    let idle = snapshot(case.world);
    let pull = ["image", "pull", crate::artifacts::IMAGE, "--name", "smoke-interrupted"];
    let mut client = case.start(&pull, Input::Null)?;
    case.wait(SETTLE, "the build to have begun", || {
        let builds =
            !snapshot(case.world).more_than(&idle, &[Kind::File]).iter().all(|more| !more.contains("mmdebstrap"));
        check(client.is_alive(), || "the pull ended by itself".to_owned())?;
        Ok(if builds { Ok(()) } else { Err("no mmdebstrap".to_owned()) })
    })?;
    let Some(pid) = case.world.daemon_pid() else { return crate::case::failed("there is no daemon") };
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    let done = case.finish(client)?;
    check(done.code() >= 200, || format!("the pull ended with {}", done.code()))?;
    let images = case.ok(&["image", "list"])?.out();
    check(!images.contains("smoke-interrupted"), || format!("a half image is listed:\n{images}"))?;
    case.wait(SETTLE, "everything of the pull to be gone", || {
        let left = snapshot(case.world).more_than(&idle, &[]);
        Ok(if left.is_empty() { Ok(()) } else { Err(left.join("\n")) })
    })
}
