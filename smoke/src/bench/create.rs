//! `vm create` over a VMM that answers at once, against the least that it has to do: start a program, start a VMM, commit.

use super::figures::{Figure, Goal, median, ms};
use super::{RUNS, time};
use crate::case::{Case, SETTLE, Stop, check};
use crate::world::World;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// How many VMs are made in a row.
const IN_A_ROW: usize = 200;
/// How many of them, at the beginning and at the end, are compared.
const SAMPLE: usize = 50;

pub(super) fn measure(case: &Case<'_>) -> Result<Vec<Figure>, Stop> {
    let vmm = case.world.base.join("bin/scripted-vmm");
    let emu = case.world.base.join("bin/banger-emu");
    fs::write(&vmm, format!("#!/bin/sh\nexec {} --machine scripted \"$@\"\n", emu.display()))?;
    fs::set_permissions(&vmm, Permissions::from_mode(0o755))?;
    let config = format!(
        "vmm = \"firecracker\"\nfirecracker_bin = \"{}\"\ncidr = \"172.17.0.0/24\"\n\
         [vm_defaults]\nvcpu = 1\nmemory_mib = 128\ndisk_size = \"1GiB\"\n",
        vmm.display()
    );
    let world = case.world.beside("b", &config)?;
    let inner = Case::new(&world, "create");
    inner.ok(&["daemon", "start"])?;
    let result = in_a_row(&inner);
    drop(inner.clean_up());
    drop(world.banger(&["daemon", "stop"]).run());
    case.note(inner.take_log());
    result
}

fn in_a_row(case: &Case<'_>) -> Result<Vec<Figure>, Stop> {
    let world = case.world;
    let (mut creates, mut versions, mut starts, mut commits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let database = Database::open(world)?;
    let mut early = None;
    for number in 0..IN_A_ROW {
        let name = case.vm_named(&format!("c{number}"));
        creates.push(ms(time(&world.banger(&["vm", "create", "--name", &name]))?));
        time(&world.banger(&["vm", "delete", "--force", &name]))?;
        // The baseline is taken in between, so that both meet the same machine.
        if number % (IN_A_ROW / RUNS) == 0 {
            versions.push(ms(time(&world.banger(&["version"]))?));
            starts.push(ms(start_of_vmm(world)?));
            commits.push(ms(database.commit()?));
        }
        if number + 1 == SAMPLE {
            early = Some(Size::of_daemon(world)?);
        }
    }
    let (early, late) = (early.ok_or(Stop::Failed("too few runs".to_owned()))?, Size::of_daemon(world)?);
    let least = median(&versions) + median(&starts) + median(&commits);
    let remark = format!(
        "version {:.1} + VMM start {:.1} + commit {:.1} ms; {IN_A_ROW} in a row",
        median(&versions),
        median(&starts),
        median(&commits)
    );
    let growth = |name: &str, measured, baseline, bound| Figure {
        name: name.to_owned(),
        measured,
        baseline,
        goal: Goal::AtMost(bound),
        runs: IN_A_ROW,
        remark: String::new(),
    };
    Ok(vec![
        Figure {
            name: "vm create with a scripted VMM against its parts (ms)".to_owned(),
            measured: median(&creates),
            baseline: least,
            goal: Goal::AtMost(2.0),
            runs: IN_A_ROW,
            remark,
        },
        growth(
            "the last 50 of 200 creates against the first 50 (ms)",
            median(&creates[IN_A_ROW - SAMPLE..]),
            median(&creates[..SAMPLE]),
            1.1,
        ),
        growth("bangerd's memory after 200 creates against after 50 (KiB)", late.rss_kib, early.rss_kib, 1.05),
        growth("bangerd's open files after 200 creates against after 50", late.files, early.files, 1.0),
    ])
}

/// From the start of the VMM's process until its API takes connections.
fn start_of_vmm(world: &World) -> Result<Duration, Stop> {
    let socket = world.state.join("bench-api.sock");
    let mut program = world.program("scripted-vmm", &["--id", "bench", "--api-sock"]);
    program.argv.push(socket.display().to_string());
    let mut command = program.command();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Instant::now();
    let mut child = command.spawn()?;
    let took = loop {
        if UnixStream::connect(&socket).is_ok() {
            break Ok(started.elapsed());
        }
        if started.elapsed() > SETTLE || child.try_wait()?.is_some() {
            break Err(Stop::Failed("the scripted VMM does not answer".to_owned()));
        }
        std::thread::sleep(Duration::from_micros(100));
    };
    child.kill()?;
    child.wait()?;
    fs::remove_file(&socket)?;
    took
}

/// A database as the daemon has one, beside the daemon's.
struct Database(rusqlite::Connection);

impl Database {
    fn open(world: &World) -> Result<Self, Stop> {
        let path = world.state.join("bench.db");
        let connection = rusqlite::Connection::open(&path)?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE vm (id INTEGER PRIMARY KEY, body BLOB)",
        )?;
        chown(&path, Some(world.uid), Some(world.uid))?;
        Ok(Self(connection))
    }

    fn commit(&self) -> Result<Duration, Stop> {
        let started = Instant::now();
        self.0.execute("INSERT INTO vm (body) VALUES (?1)", [[7_u8; 512].as_slice()])?;
        Ok(started.elapsed())
    }
}

/// What a daemon holds.
struct Size {
    rss_kib: f64,
    files: f64,
}

impl Size {
    fn of_daemon(world: &World) -> Result<Self, Stop> {
        let pid = world.daemon_pid().ok_or(Stop::Failed("there is no daemon".to_owned()))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).and_then(|rest| rest.split_whitespace().next());
        let rss_kib = rss.and_then(|rss| rss.parse().ok()).unwrap_or(0.0);
        let files = fs::read_dir(format!("/proc/{pid}/fd"))?.collect::<Result<Vec<_>, io::Error>>()?.len();
        check(rss_kib > 0.0, || "the daemon's memory cannot be read".to_owned())?;
        Ok(Self { rss_kib, files: f64::from(u32::try_from(files)?) })
    }
}
