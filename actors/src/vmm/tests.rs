//! Launches of a fake VMM, with a fault at every step; daemons that die and find their VMMs again. After each: nothing is
//! left, neither processes nor files nor descriptors.

use super::fake::fake_program;
use super::launch::{Cause, Step};
use super::process::{self, adopt};
use super::*;
use messages::error::ErrorKind;
use messages::ids::VmId;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SHORT: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(10);

struct Place {
    dir: TempDir,
    files: VmFiles,
    binary: PathBuf,
}

impl Place {
    fn new(fault: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vm = dir.path().join("vm");
        fs::create_dir(&vm).unwrap();
        let files = VmFiles::new(VmId([7; 8]), vm).unwrap();
        let binary = fake_program(dir.path(), fault);
        Self { dir, files, binary }
    }

    fn config(&self) -> VmmConfig {
        let path = |name: &str| self.dir.path().join(name);
        VmmConfig {
            files: self.files.clone(),
            binary: self.binary.clone(),
            kernel: path("vmlinux"),
            initramfs: path("initramfs"),
            command_line: "console=ttyS0 quiet".to_owned(),
            vcpus: 2,
            memory_mib: 512,
            image: path("image.ext4"),
            disk: path("disk.ext4"),
            modules: Some(path("modules.ext4")),
            tap: Some(Tap { name: "bt010203-4".parse().unwrap(), mac: [6, 1, 2, 3, 0, 4], mtu: Some(1450) }),
        }
    }

    async fn launch(&self) -> Result<Running, LaunchError> {
        let calls = CallLimits { setting: SHORT, start: SHORT, state: SHORT, snapshot: SHORT };
        launch_within(self.config(), LaunchLimits { listen: Duration::from_secs(5), calls }).await
    }

    async fn spawn(&self) -> Process {
        let process = process::spawn(&self.files, &self.binary, self.arguments()).await.unwrap();
        until("it listens", || self.files.api_socket().exists()).await;
        process
    }

    fn arguments(&self) -> Vec<std::ffi::OsString> {
        vec!["--api-sock".into(), self.files.api_socket().into()]
    }

    /// Every process that names this place in its arguments or holds one of its files.
    fn processes(&self) -> Vec<u32> {
        let ours = self.dir.path().to_str().unwrap();
        let pids = fs::read_dir("/proc").unwrap().filter_map(|it| it.unwrap().file_name().to_str()?.parse().ok());
        let uses = |pid: &u32| {
            let holds = fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|mut fds| {
                fds.any(|fd| fd.is_ok_and(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(ours))))
            });
            holds
                || fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| String::from_utf8_lossy(&it).contains(ours))
        };
        pids.filter(uses).filter(|pid| *pid != std::process::id()).collect()
    }

    fn names(&self) -> BTreeSet<String> {
        fs::read_dir(self.files.dir()).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The logs stay, nothing else does.
    fn assert_clean(&self) {
        assert_eq!(self.processes(), Vec::<u32>::new());
        let rest: Vec<String> = self.names().into_iter().filter(|name| !name.contains(".log")).collect();
        assert_eq!(rest, Vec::<String>::new());
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn a_launch_tells_the_vmm_everything_and_starts_it() {
    let place = Place::new("");
    fs::write(place.files.console(), "the boot before").unwrap();
    let running = place.launch().await.unwrap();
    assert_eq!(fs::read_to_string(place.files.previous_console()).unwrap(), "the boot before");
    let console = fs::metadata(place.files.console()).unwrap();
    assert_eq!((console.len(), console.permissions().mode() & 0o777), (0, 0o600));
    assert_eq!(running.driver.version().await.unwrap(), "1.16.1");
    let log = fs::read_to_string(place.files.log()).unwrap();
    let flags = format!("--api-sock {} --id 0707070707070707 --level Warning", place.files.api_socket().display());
    assert!(log.contains(&flags), "{log}");
    assert_eq!(running.process.exit(), None);
    running.driver.rest();
    running.process.kill().unwrap();
    assert_eq!(running.process.wait().await, Exit::Signal(9));
    assert!(!exists(running.process.pid()), "a zombie");
    place.assert_clean();
}

#[tokio::test]
async fn a_vmm_has_its_own_session_and_nothing_of_ours() {
    let place = Place::new("");
    let process = place.spawn().await;
    let pid = process.pid();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    assert_eq!((fields[2], fields[3]), (pid.to_string().as_str(), pid.to_string().as_str()), "group and session");
    let target = |fd: u8| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
    assert_eq!(target(0), Path::new("/dev/null"));
    assert_eq!((target(1), target(2)), (place.files.log(), place.files.log()));
    assert_eq!(target(3), place.files.lock());
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let names = environment.split(|byte| *byte == 0).filter(|it| !it.is_empty()).map(String::from_utf8_lossy);
    for name in names.map(|it| it.split('=').next().unwrap().to_owned()) {
        let known = ["PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "RUST_BACKTRACE", "BANGER_QEMU", "PWD"]
            .contains(&name.as_str());
        assert!(known || name.starts_with("BANGER_EMU_"), "{name} was passed on");
    }
    let record = fs::read_to_string(place.files.lock()).unwrap();
    assert_eq!(record, format!("0707070707070707 {pid} {}\n", fields[19]));
    assert!(matches!(
        process::spawn(&place.files, &place.binary, place.arguments()).await,
        Err(ProcessError::AlreadyRunning)
    ));
    process.kill_and_wait(PATIENCE).await.unwrap();
    place.assert_clean();
}

#[tokio::test]
async fn a_missing_binary_leaves_nothing() {
    let mut place = Place::new("");
    place.binary = "/nonexistent/firecracker".into();
    let error = place.launch().await.unwrap_err();
    assert_eq!(error.step, Step::Spawn);
    let wire = error.to_wire();
    assert_eq!(wire.kind, ErrorKind::Host);
    assert_eq!(wire.chain[..2], ["failed to start the VMM", "failed to start `/nonexistent/firecracker`"]);
    place.assert_clean();
}

#[tokio::test]
async fn a_fault_before_the_vmm_listens() {
    let place = Place::new("exit");
    let error = place.launch().await.unwrap_err();
    assert_eq!(error.step, Step::Connect);
    assert!(matches!(error.cause, Cause::Died(Exit::Code(3))), "{error:?}");
    let wire = error.to_wire();
    assert_eq!(wire.chain[..2], ["failed to reach the VMM", "the VMM ended with exit status 3"]);
    assert!(wire.chain[2].contains("fake VMM: no such device"), "{wire:?}");
    place.assert_clean();

    let place = Place::new("deaf");
    let limits = LaunchLimits { listen: SHORT, calls: CallLimits::default() };
    let error = launch_within(place.config(), limits).await.unwrap_err();
    assert!(matches!(error.cause, Cause::NeverListened(_)), "{error:?}");
    assert_eq!(error.to_wire().kind, ErrorKind::Timeout);
    place.assert_clean();

    let place = Place::new("late");
    let running = place.launch().await.unwrap();
    running.process.kill_and_wait(PATIENCE).await.unwrap();
    place.assert_clean();
}

/// Every call of a launch, in order.
const CALLS: [(&str, Step); 10] = [
    ("PUT /machine-config", Step::Configure),
    ("PUT /boot-source", Step::Configure),
    ("PUT /drives/image", Step::Configure),
    ("PUT /drives/disk", Step::Configure),
    ("PUT /drives/modules", Step::Configure),
    ("PUT /network-interfaces/eth0", Step::Configure),
    ("PUT /vsock", Step::Configure),
    ("PUT /entropy", Step::Configure),
    ("PUT /serial", Step::Configure),
    ("PUT /actions", Step::Start),
];

async fn fail_everywhere(fault: &str, expected: impl Fn(&Cause) -> bool) {
    // Once, so that what the runtime opens for its first child is open already.
    drop(Place::new("exit").launch().await);
    let before = descriptors();
    for (call, step) in CALLS {
        let place = Place::new(&format!("{call}={fault}"));
        let error = place.launch().await.unwrap_err();
        assert_eq!(error.step, step, "{call}: {error:?}");
        assert!(expected(&error.cause), "{call}: {error:?}");
        place.assert_clean();
    }
    until("no descriptor more than before", || descriptors() <= before).await;
}

#[tokio::test]
async fn a_call_that_is_refused_ends_the_launch() {
    fail_everywhere(
        "Refuse",
        |cause| matches!(cause, Cause::Api(ApiError::Refused { fault, .. }) if fault == "the request was refused"),
    )
    .await;
}

#[tokio::test]
async fn a_vmm_that_dies_in_a_call_ends_the_launch() {
    fail_everywhere("Die", |cause| matches!(cause, Cause::Died(Exit::Code(7)))).await;
}

#[tokio::test]
async fn a_vmm_that_hangs_in_a_call_ends_the_launch() {
    fail_everywhere("Hang", |cause| matches!(cause, Cause::Api(ApiError::Timeout { .. }))).await;
}

#[tokio::test]
async fn a_vmm_that_answers_after_the_deadline_ends_the_launch() {
    fail_everywhere("Late", |cause| matches!(cause, Cause::Api(ApiError::Timeout { .. }))).await;
}

/// Whoever gives up in the middle of a launch (a client that vanished, a daemon that stops) leaves no VMM behind.
#[tokio::test]
async fn a_dropped_launch_kills_its_vmm() {
    for (call, _) in CALLS {
        let place = Place::new(&format!("{call}=Hang"));
        let calls = CallLimits { setting: PATIENCE, start: PATIENCE, state: PATIENCE, snapshot: PATIENCE };
        let launch = launch_within(place.config(), LaunchLimits { listen: PATIENCE, calls });
        let started = until("the VMM listens", || place.files.api_socket().exists());
        tokio::select! {
            biased;
            outcome = launch => panic!("{outcome:?}"),
            () = started => {}
        }
        until("the VMM is gone", || !place.files.lock().exists()).await;
        place.assert_clean();
    }
}

/// Also in the moments around the spawn itself, which happens in a thread that cannot be called back.
#[tokio::test(flavor = "multi_thread")]
async fn a_launch_that_is_dropped_while_it_spawns_leaves_nothing() {
    for microseconds in (0..4000).step_by(200) {
        let place = Place::new("");
        let launch = tokio::spawn(launch(place.config()));
        tokio::time::sleep(Duration::from_micros(microseconds)).await;
        launch.abort();
        if let Ok(outcome) = launch.await {
            outcome.unwrap().process.kill_and_wait(PATIENCE).await.unwrap();
        }
        until("nothing is left", || place.processes().is_empty() && !place.files.lock().exists()).await;
        place.assert_clean();
    }
}

/// A VMM as an earlier daemon leaves it: its parent is dead.
async fn orphan(place: &Place) -> u32 {
    // The shell starts it as our `spawn` does, with the lock on descriptor 3, and ends.
    let script = format!(
        "exec 3<>{lock}; flock -n 3 || exit 1; setsid {binary} --api-sock {socket} >>{log} 2>&1 & exit 0",
        lock = place.files.lock().display(),
        binary = place.binary.display(),
        socket = place.files.api_socket().display(),
        log = place.files.log().display(),
    );
    let status = tokio::process::Command::new("sh").args(["-c", &script]).status().await.unwrap();
    assert!(status.success());
    until("it listens", || place.files.api_socket().exists()).await;
    let holders = place.processes();
    assert_eq!(holders.len(), 1);
    holders[0]
}

fn stat_start_time(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat[stat.rfind(')').unwrap() + 2..].split(' ').nth(19).unwrap().to_owned()
}

#[tokio::test]
async fn a_vmm_is_found_again_whatever_its_daemon_had_time_to_record() {
    let us = std::process::id();
    for record in [
        "{vm} {pid} {start}\n",
        // Killed before the record was written.
        "",
        // Or after half of it, or the record lies.
        "{vm} {pid}",
        "not a record\n",
        "{vm} {us} {start}\n",
        "{vm} {pid} 1\n",
        "ffffffffffffffff {pid} {start}\n",
    ] {
        let place = Place::new("");
        let pid = orphan(&place).await;
        let text = record
            .replace("{vm}", "0707070707070707")
            .replace("{pid}", &pid.to_string())
            .replace("{us}", &us.to_string())
            .replace("{start}", &stat_start_time(pid));
        fs::write(place.files.lock(), text).unwrap();
        let process = adopt(&place.files).await.unwrap().unwrap_or_else(|| panic!("lost with `{record}`"));
        assert_eq!(process.pid(), pid, "with `{record}`");
        // It is as good as one of our own: it answers, and its end is seen.
        let driver = Driver::new(place.files.api_socket());
        assert_eq!(driver.version().await.unwrap(), "1.16.1");
        driver.rest();
        process.kill().unwrap();
        assert_eq!(tokio::time::timeout(PATIENCE, process.wait()).await.unwrap(), Exit::Unknown);
        assert!(!place.files.api_socket().exists() && !place.files.lock().exists());
    }
}

#[tokio::test]
async fn nothing_is_found_where_nothing_lives_and_the_remains_go() {
    let place = Place::new("");
    assert!(adopt(&place.files).await.unwrap().is_none());
    // As after a crash of the host: files, and a record of a number that somebody else has now.
    let ours = std::process::id();
    fs::write(place.files.lock(), format!("0707070707070707 {ours} {}\n", stat_start_time(ours))).unwrap();
    let emulators = place.files.dir().join("api.sock.q");
    for socket in [place.files.api_socket(), place.files.vsock(), emulators, place.files.agent_socket()] {
        drop(std::os::unix::net::UnixListener::bind(socket).unwrap());
    }
    assert!(adopt(&place.files).await.unwrap().is_none());
    // What the agent dials is not the VMM's.
    fs::remove_file(place.files.agent_socket()).unwrap();
    place.assert_clean();
}

/// What a dead VMM started and left (QEMU, if its parent's death passed it by) goes too, and only then is its end told.
#[tokio::test]
async fn the_helpers_of_a_dead_vmm_go_with_it() {
    let place = Place::new("helper");
    let process = place.spawn().await;
    assert_eq!(place.processes().len(), 2);
    process.kill_and_wait(PATIENCE).await.unwrap();
    place.assert_clean();

    let place = Place::new("helper");
    let pid = place.processes();
    assert_eq!(pid, Vec::<u32>::new());
    let holders = {
        let script_started = place.spawn().await;
        let leader = script_started.pid();
        // As an earlier daemon's: no watcher of ours may help.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(leader.cast_signed()), Signal::SIGSTOP).unwrap();
        place.processes()
    };
    assert_eq!(holders.len(), 2);
    let found = adopt(&place.files).await.unwrap().unwrap();
    assert!(found.pid() != std::process::id());
    found.kill_and_wait(PATIENCE).await.unwrap();
    until("nothing is left", || place.processes().is_empty()).await;
    place.assert_clean();
}

/// Two hundred in a row: no growth of descriptors, no zombie.
#[tokio::test]
async fn many_launches_in_a_row_leave_nothing() {
    let place = Place::new("");
    place.launch().await.unwrap().process.kill_and_wait(PATIENCE).await.unwrap();
    let before = descriptors();
    for _ in 0..20 {
        let running = place.launch().await.unwrap();
        running.process.kill_and_wait(PATIENCE).await.unwrap();
    }
    until("no descriptor more than before", || descriptors() <= before).await;
    place.assert_clean();
}
