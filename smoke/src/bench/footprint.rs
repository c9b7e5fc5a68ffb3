//! What banger takes: the daemon's memory, idle and for each running VM; the disk of a VM that has been used.

use super::figures::{Figure, Goal};
use crate::case::{Case, SETTLE, Stop, check};
use crate::command::POLL;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The goals, in MiB, KiB and MiB.
const IDLE_MIB: f64 = 40.0;
const PER_VM_KIB: f64 = 256.0;
const DISK_MIB: f64 = 64.0;
/// How many VMs the memory is divided by.
const VMS: u8 = 8;
/// How long a VM idles before its disk is looked at.
const IDLE: Duration = Duration::from_secs(300);

pub(super) fn measure(case: &Case<'_>) -> Result<Vec<Figure>, Stop> {
    drop(case.world.banger(&["daemon", "stop"]).run()?);
    case.ok(&["daemon", "start"])?;
    case.ok(&["vm", "list"])?;
    let idle = settled_rss_kib(case)?;
    let names: Vec<String> = (0..VMS).map(|number| case.vm_named(&format!("m{number}"))).collect();
    // One VM first: what is made once, for all of them, is not a VM's.
    let first = case.vm();
    case.create(&first, &["--wait", "system"])?;
    let booted = Instant::now();
    let with_one = settled_rss_kib(case)?;
    for name in &names {
        case.create(name, &["--memory", "256M", "--wait", "system"])?;
    }
    let with_all = settled_rss_kib(case)?;
    for name in &names {
        case.ok(&["vm", "delete", "--force", name])?;
    }
    let disk = disk_after_idling(case, &first, booted)?;
    let figure = |name: &str, measured, baseline, remark: String| Figure {
        name: name.to_owned(),
        measured,
        baseline,
        goal: Goal::AtMost(1.0),
        runs: 1,
        remark,
    };
    let per_vm = (with_all - with_one).max(0.0) / f64::from(VMS);
    Ok(vec![
        figure("bangerd idle against 40 MiB (MiB)", idle / 1024.0, IDLE_MIB, String::new()),
        figure(
            "bangerd for each running VM against 256 KiB (KiB)",
            per_vm,
            PER_VM_KIB,
            format!("the mean of {VMS} VMs"),
        ),
        figure(
            "disk of a stopped VM against 64 MiB (MiB)",
            disk,
            DISK_MIB,
            "after `system` and five idle minutes".to_owned(),
        ),
    ])
}

/// The daemon's resident set once it has not grown for a second.
fn settled_rss_kib(case: &Case<'_>) -> Result<f64, Stop> {
    let read = || {
        let pid = case.world.daemon_pid()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse::<f64>().ok()
    };
    let (mut last, mut since) = (-1.0, Instant::now());
    case.wait(SETTLE, "the daemon's memory to settle", || {
        let now = read().ok_or(Stop::Failed("the daemon's memory cannot be read".to_owned()))?;
        if (now - last).abs() > 0.5 {
            (last, since) = (now, Instant::now());
        }
        Ok(if since.elapsed() > Duration::from_secs(1) { Ok(()) } else { Err(format!("{now} KiB")) })
    })?;
    Ok(last)
}

/// Stops a VM after it has idled for long enough, and gives the MiB that its directory takes.
fn disk_after_idling(case: &Case<'_>, vm: &str, booted: Instant) -> Result<f64, Stop> {
    while booted.elapsed() < IDLE {
        std::thread::sleep(POLL * 10);
    }
    case.ok(&["vm", "stop", vm])?;
    let shown = case.show(vm)?;
    let directory = case.world.state.join("vms").join(shown["id"].as_str().unwrap_or_default());
    let bytes = disk_usage(&directory)?;
    check(bytes > 0, || format!("{} holds nothing", directory.display()))?;
    Ok(bytes as f64 / f64::from(1 << 20))
}

fn disk_usage(directory: &Path) -> std::io::Result<u64> {
    fs::read_dir(directory)?.try_fold(0, |sum, entry| {
        let entry = entry?;
        let metadata = entry.metadata()?;
        Ok(sum + if metadata.is_dir() { disk_usage(&entry.path())? } else { metadata.blocks() * 512 })
    })
}
