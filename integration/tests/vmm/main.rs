//! The daemon's VMM path against the real banger-emu: its scripted machine with a fault at every step, and its process
//! machine, in which the real agent answers. After each: no process and no file is left.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use actors::agent_link::{AgentLink, LinkEvent, open_operation};
use actors::vmm::api::InstanceState;
use actors::vmm::launch::Step;
use actors::vmm::{CallLimits, LaunchError, LaunchLimits, Running, VmFiles, VmmConfig, adopt, launch_within};
use fixtures::{boot_spec, exec_spec};
use integration::binaries::binary;
use integration::wait::DEADLINE;
use link::frames::FrameReader;
use messages::frame;
use messages::guest::{AgentFrame, DaemonFrame, ExitStatus, GuestAnswer, GuestQuestion, OutputFrame};
use messages::ids::{BootNonce, OperationId, VmId};
use messages::limits::GUEST_FRAME_MAX;
use messages::vm::Readiness;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;

const VM: VmId = VmId([9; 8]);
const NONCE: BootNonce = BootNonce([5; 16]);
/// The deadline of a call that is to hang. Only those tests have it: a busy host must not fail the others.
const SHORT: Duration = Duration::from_secs(2);

struct Place {
    dir: TempDir,
    files: VmFiles,
    wrapper: PathBuf,
}

impl Place {
    fn new(arguments: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("vmm").tempdir().unwrap();
        let vm = dir.path().join("vm");
        std::fs::create_dir(&vm).unwrap();
        for name in ["vmlinux", "initramfs", "image.ext4", "disk.ext4", "modules.ext4"] {
            std::fs::write(dir.path().join(name), vec![0; 4096]).unwrap();
        }
        let wrapper = dir.path().join("vmm-under-test");
        let script = format!("#!/bin/sh\nexec '{}' {arguments} \"$@\"\n", binary("banger-emu").display());
        std::fs::write(&wrapper, script).unwrap();
        std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let files = VmFiles::new(VM, vm).unwrap();
        Self { dir, files, wrapper }
    }

    fn scripted(script: &str) -> Self {
        let place = Self::new("--machine scripted --script \"$(dirname \"$0\")/script.json\"");
        std::fs::write(place.dir.path().join("script.json"), script).unwrap();
        place
    }

    fn config(&self) -> VmmConfig {
        let path = |name: &str| self.dir.path().join(name);
        VmmConfig {
            files: self.files.clone(),
            binary: self.wrapper.clone(),
            kernel: path("vmlinux"),
            initramfs: path("initramfs"),
            command_line: "console=ttyS0 quiet".to_owned(),
            vcpus: 1,
            memory_mib: 256,
            image: path("image.ext4"),
            disk: path("disk.ext4"),
            modules: Some(path("modules.ext4")),
            tap: None,
        }
    }

    async fn launch(&self, call: Duration) -> Result<Running, LaunchError> {
        let calls = CallLimits { setting: call, start: call, state: call, snapshot: call };
        launch_within(self.config(), LaunchLimits { listen: call, calls }).await
    }

    fn processes(&self) -> Vec<String> {
        let ours = self.dir.path().to_str().unwrap();
        let own = std::process::id().to_string();
        let pids = std::fs::read_dir("/proc").unwrap().filter_map(|it| it.unwrap().file_name().into_string().ok());
        let names = |pid: &String| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| String::from_utf8_lossy(&it).contains(ours))
        };
        pids.filter(|pid| *pid != own).filter(names).collect()
    }

    fn assert_clean(&self) {
        assert_eq!(self.processes(), Vec::<String>::new());
        let names =
            std::fs::read_dir(self.files.dir()).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
        // Logs, and the process machine's scratch directory, which plays the disk.
        let rest: Vec<String> = names.filter(|name| !name.contains(".log") && !name.ends_with(".root")).collect();
        assert_eq!(rest, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scripted_machine_is_launched_paused_resumed_and_killed() {
    let place = Place::scripted("[]");
    let running = place.launch(DEADLINE).await.unwrap();
    let state = async || running.driver.instance().await.unwrap().state;
    assert_eq!(running.driver.instance().await.unwrap().id, VM.to_string());
    assert_eq!(state().await, InstanceState::Running);
    running.driver.pause().await.unwrap();
    assert_eq!(state().await, InstanceState::Paused);
    running.driver.resume().await.unwrap();
    running.driver.send_ctrl_alt_del().await.unwrap();
    running.process.kill_and_wait(DEADLINE).await.unwrap();
    place.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_at_every_step_leaves_nothing() {
    let steps = [
        ("launch", Step::Connect),
        ("machine_config", Step::Configure),
        ("boot_source", Step::Configure),
        ("drives", Step::Configure),
        ("vsock", Step::Configure),
        ("entropy", Step::Configure),
        ("serial", Step::Configure),
        ("instance_start", Step::Start),
    ];
    for (at, step) in steps {
        for fault in ["hang", "refuse", "die", "late"] {
            let place = Place::scripted(&format!(r#"[{{"at": "{at}", "do": "{fault}", "ms": 100}}]"#));
            let limit = if fault == "hang" { SHORT } else { DEADLINE };
            match place.launch(limit).await {
                Ok(running) if fault == "late" => drop(running.process.kill_and_wait(DEADLINE).await.unwrap()),
                Err(error) if fault != "late" => assert_eq!(error.step, step, "{fault} at {at}: {error:?}"),
                other => panic!("{fault} at {at}: {other:?}"),
            }
            place.assert_clean();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_dies_after_its_start_is_seen() {
    let place = Place::scripted(r#"[{"at": "after_start", "do": "die", "ms": 50}]"#);
    let running = place.launch(DEADLINE).await.unwrap();
    timeout(DEADLINE, running.process.wait()).await.unwrap();
    place.assert_clean();
}

async fn run(vsock: &Path, number: u8, script: &str) -> (Vec<u8>, ExitStatus) {
    let stream = open_operation(vsock, OperationId([number; 8]), &exec_spec(&["/bin/sh", "-c", script])).await.unwrap();
    let mut frames = FrameReader::new(stream, GUEST_FRAME_MAX);
    let mut output = Vec::new();
    loop {
        let payload = timeout(DEADLINE, frames.next()).await.unwrap().unwrap().expect("an end before the stream's");
        match frame::decode_borrowed::<OutputFrame<'_>>(payload).unwrap() {
            OutputFrame::Stdout(bytes) => output.extend_from_slice(bytes),
            OutputFrame::Exited(status) => return (output, status),
            OutputFrame::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

/// The whole of the link, with the real agent at its other end; then the daemon's restart with all of it running.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_in_a_process_machine_connects_runs_commands_and_survives_its_daemon() {
    let place = Place::new(&format!("--machine process --agent '{}'", binary("banger-agent").display()));
    let (link, mut events) = AgentLink::listen(&place.files.agent_socket()).unwrap();
    let running = place.launch(DEADLINE).await.unwrap();
    let mut booted = None;
    while booted.is_none() {
        match timeout(DEADLINE, events.recv()).await.expect("the agent in time").unwrap() {
            LinkEvent::Connected { connection, running: None, .. } => {
                link.send(connection, &DaemonFrame::Spec(Box::new(boot_spec(VM, "a-vm", NONCE)))).unwrap();
            }
            LinkEvent::Connected { connection, running: Some(_), .. } => {
                link.send(connection, &DaemonFrame::Welcome).unwrap();
            }
            LinkEvent::Frame { frame: AgentFrame::Ready { level, .. }, .. } if level >= Readiness::Agent => {
                booted = Some(level);
            }
            LinkEvent::Frame { frame: AgentFrame::BootFailed(error), .. } => panic!("{error}"),
            _ => {}
        }
    }
    let vsock = place.files.vsock();
    assert_eq!(run(&vsock, 1, "echo out; exit 7").await, (b"out\n".to_vec(), ExitStatus::Code(7)));
    assert_eq!(link.call(GuestQuestion::Ping, DEADLINE).await.unwrap(), GuestAnswer::Done);
    // The daemon goes and another comes: the VMM is found, the agent dials again and is still the same.
    drop((link, events));
    // A daemon that is killed leaves its socket; this one takes it along, and not the next one's.
    integration::until("the old socket is gone", || (!place.files.agent_socket().exists()).then_some(()));
    let (link, mut events) = AgentLink::listen(&place.files.agent_socket()).unwrap();
    let found = adopt(&place.files).await.unwrap().expect("the VMM lives");
    assert_eq!(found.pid(), running.process.pid());
    link.pin(Some(NONCE));
    let connection = loop {
        match timeout(DEADLINE, events.recv()).await.expect("the agent dials again").unwrap() {
            LinkEvent::Connected { connection, running: Some(identity), .. } => {
                assert_eq!(identity.nonce, NONCE);
                break connection;
            }
            LinkEvent::Refused { why } => panic!("{why}"),
            _ => {}
        }
    };
    link.send(connection, &DaemonFrame::Welcome).unwrap();
    assert_eq!(run(&vsock, 2, "echo again").await, (b"again\n".to_vec(), ExitStatus::Code(0)));
    running.process.kill_and_wait(DEADLINE).await.unwrap();
    timeout(DEADLINE, found.wait()).await.unwrap();
    drop((link, events));
    integration::until("the agent's socket is gone", || (!place.files.agent_socket().exists()).then_some(()));
    integration::until("the agent is gone", || place.processes().is_empty().then_some(()));
    place.assert_clean();
}
