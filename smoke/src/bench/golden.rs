//! The default image: what it costs to make, against mmdebstrap alone, its size, and how long its system takes to come up.

use super::figures::{Figure, Goal, median};
use super::{repeats, time};
use crate::case::{Case, Stop};
use crate::command::Program;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::Duration;

/// Each takes a minute or more.
const BUILDS: usize = 2;
const NAME: &str = "golden-bench";

pub(super) fn measure(case: &Case<'_>) -> Result<Vec<Figure>, Stop> {
    let recorder = Recorder::install(case)?;
    let (mut images, mut alone) = (Vec::new(), Vec::new());
    let mut size = (0, 0);
    for _ in 0..BUILDS {
        let pull = case.world.banger(&["image", "pull", "debian-bookworm", "--name", NAME]);
        images.push(time(&pull)?.as_secs_f64());
        let rootfs = fs::metadata(case.world.state.join("images").join(NAME).join("rootfs.ext4"))?;
        size = (rootfs.blocks() * 512, rootfs.len());
        case.ok(&["image", "delete", NAME])?;
        alone.push(time(&recorder.alone(case))?.as_secs_f64());
    }
    drop(recorder);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let first = up(case)?;
    let (runs, few) = repeats(first);
    let times: Vec<f64> = (0..runs).map(|_| Ok(up(case)?.as_secs_f64())).collect::<Result<_, Stop>>()?;
    Ok(vec![
        Figure {
            name: "the default image from nothing against mmdebstrap alone (s)".to_owned(),
            measured: median(&images),
            baseline: median(&alone),
            goal: Goal::AtMost(1.1),
            runs: BUILDS,
            remark: format!("{BUILDS} runs: each takes a minute; the same list and scripts, into /dev/null"),
        },
        Figure {
            name: "the default image on the disk against its length (MiB)".to_owned(),
            measured: mib(size.0),
            baseline: mib(size.1),
            goal: Goal::AtMost(1.0),
            runs: 1,
            remark: String::new(),
        },
        Figure {
            name: "create to `system` of the default image (s)".to_owned(),
            measured: median(&times),
            baseline: median(&times),
            goal: Goal::None,
            runs,
            remark: few,
        },
    ])
}

/// From a create until systemd has started everything.
fn up(case: &Case<'_>) -> Result<Duration, Stop> {
    let vm = case.vm();
    let done = case.ok(&["vm", "create", "--net", "none", "--wait", "system", "--name", &vm])?;
    case.ok(&["vm", "delete", "--force", &vm])?;
    Ok(done.took)
}

/// Notes with which arguments the daemon runs mmdebstrap, so that the same can be run again.
struct Recorder {
    program: PathBuf,
    arguments: PathBuf,
}

impl Recorder {
    /// The daemon looks for programs where ours are, first.
    fn install(case: &Case<'_>) -> Result<Self, Stop> {
        let (program, arguments) =
            (case.world.base.join("bin/mmdebstrap"), case.world.base.join("l/mmdebstrap.arguments"));
        let noted = arguments.display();
        let script = format!(
            "#!/bin/sh\nPATH=${{PATH#*:}}\ncase \"$1\" in\nagain) xargs -0 mmdebstrap < {noted} ;;\n\
             *) printf '%s\\0' \"$@\" > {noted}; exec mmdebstrap \"$@\" ;;\nesac\n"
        );
        fs::write(&program, script)?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))?;
        Ok(Self { program, arguments })
    }

    fn alone(&self, case: &Case<'_>) -> Program {
        let mut program = case.world.program("mmdebstrap", &["again"]);
        program.env.push(("LC_ALL".to_owned(), "C.UTF-8".to_owned()));
        program.directory = Some(PathBuf::from("/"));
        program
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        for path in [&self.program, &self.arguments] {
            if let Err(error) = fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                crate::report::say(format!("cannot remove {}: {error}", path.display()));
            }
        }
    }
}
