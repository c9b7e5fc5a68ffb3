//! Images that users make of real guests.

use crate::case::{Case, Outcome, check};
use std::fs;

/// A Containerfile's image, and one of a VM that was made from it: what was done is there, and nothing of the machine that it
/// was done on.
pub(super) fn build(case: &Case<'_>) -> Outcome {
    let context = case.world.base.join("image-build");
    fs::create_dir_all(&context)?;
    fs::write(context.join("motd"), "from the context\n")?;
    let file = context.join("Containerfile");
    fs::write(
        &file,
        "FROM debian-bookworm\nENV GREETING=\"hello there\"\nCOPY --chmod=0600 motd /etc/motd.d/built\n\
         RUN useradd -m dev && echo \"$GREETING\" > /home/dev/greeting && ln /home/dev/greeting /home/dev/again && \\\n    \
         rm -r /usr/share/common-licenses\nWORKDIR /home/dev\nUSER dev\n",
    )?;
    let file = file.display().to_string();
    let built = case.ok(&["image", "build", "--name", "built", "--net", "none", "--file", &file])?;
    check(built.out() == "built\n", || format!("the build said `{}`", built.out()))?;

    let vm = case.vm();
    let script = "id -un; pwd; cat again; stat -c '%h %U' greeting; test -e /usr/share/common-licenses || echo gone; echo $GREETING";
    let run =
        ["vm", "run", "--name", &vm, "--net", "none", "--wait", "agent", "--image", "built", "--", "sh", "-c", script];
    let said = case.ok(&run)?.out();
    check(said == "dev\n/home/dev\nhello there\n2 root\ngone\nhello there\n", || format!("the guest said `{said}`"))?;
    let root = |script: &str| case.ok(&["vm", "exec", "--user", "root", &vm, "--", "sh", "-c", script]);
    let said = root(
        "stat -c %a /etc/motd.d/built; cat /etc/motd.d/built /etc/machine-id; grep -c . /root/.ssh/authorized_keys",
    )?;
    let (said, identity) = (said.out(), said.out().lines().nth(2).unwrap_or_default().to_owned());
    check(said.starts_with("600\nfrom the context\n") && said.ends_with("\n1\n"), || format!("root saw `{said}`"))?;

    root("echo more > /home/dev/more")?;
    case.ok(&["image", "commit", &vm, "--name", "kept"])?;
    case.ok(&["vm", "delete", "--force", &vm])?;
    let run = [
        "vm", "run", "--rm", "--name", &vm, "--net", "none", "--wait", "agent", "--image", "kept", "--user", "root",
        "--",
    ];
    let look = "cat /home/dev/more /etc/machine-id; grep -c . /root/.ssh/authorized_keys; grep -c banger /etc/hosts";
    let said = case.ok(&[&run[..], &["sh", "-c", look]].concat())?.out();
    check(said.starts_with("more\n") && said.ends_with("\n1\n1\n"), || format!("the second guest saw `{said}`"))?;
    check(!said.contains(&identity), || format!("both machines are `{identity}`"))?;
    case.ok(&["image", "delete", "built", "kept"])?;
    Ok(fs::remove_dir_all(&context)?)
}
