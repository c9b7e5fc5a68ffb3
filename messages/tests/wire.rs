//! The wire surface of this generation: byte fixtures that never change, and decoders that survive anything.
//!
//! `schema/gen-2.txt` holds one line per message: its name and its bytes. Lines are only ever added (`BLESS=1 cargo test`
//! appends what is new and refuses to change what is there).

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use messages::error::{ErrorKind, WireError};
use messages::frame::{self, FrameError, HEADER_LEN, Hello, MAGIC};
use messages::guest::*;
use messages::ids::*;
use messages::image::*;
use messages::limits::*;
use messages::privileged::*;
use messages::reply::*;
use messages::request::*;
use messages::vm::*;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

type Check = fn(&[u8]) -> bool;

/// One message: its name, its bytes, and whether its own decoder takes given bytes.
struct Sample {
    name: &'static str,
    bytes: Vec<u8>,
    decodes: Check,
}

fn owned<T: Serialize + DeserializeOwned>(name: &'static str, message: &T) -> Sample {
    Sample { name, bytes: postcard::to_stdvec(message).unwrap(), decodes: |bytes| frame::decode::<T>(bytes).is_ok() }
}

fn operation(name: &'static str, message: &OperationFrame<'_>) -> Sample {
    let decodes: Check = |bytes| frame::decode_borrowed::<OperationFrame<'_>>(bytes).is_ok();
    Sample { name, bytes: postcard::to_stdvec(message).unwrap(), decodes }
}

fn output(name: &'static str, message: &OutputFrame<'_>) -> Sample {
    let decodes: Check = |bytes| frame::decode_borrowed::<OutputFrame<'_>>(bytes).is_ok();
    Sample { name, bytes: postcard::to_stdvec(message).unwrap(), decodes }
}

fn text<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().unwrap()
}

fn grants() -> Vec<Grant> {
    let to = [GrantTarget::Tap(TapNumber(2)), GrantTarget::Tcp(8080), GrantTarget::Udp(69)];
    to.map(|to| Grant { from: TapNumber(1), to }).to_vec()
}

fn size() -> VmSize {
    VmSize {
        vcpus: 2,
        memory_mib: 512,
        disk_bytes: 4 << 30,
        vcpus_from: Provenance::Flag,
        memory_from: Provenance::Config,
        disk_from: Provenance::BuiltIn,
    }
}

fn spec() -> VmSpec {
    VmSpec {
        name: Some(text("calm-otter")),
        image: Some(text("debian-bookworm")),
        kernel: Some(text("debian-cloud-6.12")),
        vcpus: Some(2),
        memory_mib: Some(512),
        disk_bytes: Some(4 << 30),
        network: NetworkMode::None,
        net_allow: net_allow(),
        labels: vec![("team".into(), "core".into())],
        restart: RestartPolicy::Always,
        lifetime: Lifetime::Ephemeral,
    }
}

fn net_allow() -> Vec<NetAllow> {
    vec![NetAllow::Vm(text("web")), NetAllow::HostTcp(80), NetAllow::HostUdp(69)]
}

fn exec() -> ExecSpec {
    ExecSpec {
        command: ExecCommand::Argv(vec![ArgBytes(b"uname".to_vec()), ArgBytes(vec![0xff])]),
        env: vec![("A".into(), "b".into())],
        workdir: Some("/root".into()),
        user: Some("nobody".into()),
        terminal: Some(TerminalSize { rows: 24, columns: 80 }),
        stdin: true,
        on_disconnect: OnDisconnect::Kill,
    }
}

fn view() -> VmView {
    VmView {
        id: VmId([1; 8]),
        name: text("calm-otter"),
        state: VmState::Running,
        readiness: Some(Readiness::System),
        image: text("debian-bookworm"),
        kernel: text("debian-cloud-6.12"),
        size: size(),
        network: NetworkMode::Nat,
        net_allow: net_allow(),
        address: Some(Ipv4Addr::new(172, 16, 0, 2)),
        address6: Some(Ipv6Addr::new(0xfd12, 0, 0, 0, 0, 0, 0xac10, 2)),
        labels: vec![],
        restart: RestartPolicy::No,
        lifetime: Lifetime::Kept,
        created_at_ms: 1,
        started_at_ms: Some(2),
        vmm_pid: Some(3),
        operations: 4,
        last_error: None,
        warning: Some("degraded".into()),
        ssh_host_key: Some(SshPublicKey([6; 32])),
    }
}

fn boot_spec() -> BootSpec {
    BootSpec {
        vm: VmId([1; 8]),
        name: text("calm-otter"),
        machine_id: "0".repeat(32),
        drives: Drives { image: "a".into(), disk: "b".into(), modules: Some("c".into()) },
        network: Some(GuestNetwork {
            mac: [6, 0, 0, 0, 0, 1],
            address: Ipv4Addr::new(172, 16, 0, 2),
            prefix: 24,
            gateway: Ipv4Addr::new(172, 16, 0, 1),
            mtu: Some(1500),
            resolvers: vec![Ipv4Addr::new(9, 9, 9, 9)],
            ipv6: Some(GuestNetwork6 {
                address: Ipv6Addr::new(0xfd12, 0, 0, 0, 0, 0, 0xac10, 2),
                gateway: Ipv6Addr::new(0xfd12, 0, 0, 0, 0, 0, 0, 1),
                gateway_mac: [2, 1, 2, 3, 0xff, 0xff],
            }),
        }),
        authorized_keys: vec!["key".into()],
        ssh_host_keys: vec![SshHostKey { private: "p".into(), public: "q".into() }],
        config: ImageConfig { env: vec!["A=b".into()], ..ImageConfig::default() },
        clock_unix_ns: 5,
        entropy: [7; 32],
        nonce: BootNonce([8; 16]),
    }
}

fn client_samples() -> Vec<Sample> {
    let vms = || vec![text::<VmRef>("calm-otter")];
    let request = |body| Request { id: RequestId([9; 16]), body };
    let image = || text::<Reference>("debian-bookworm");
    vec![
        owned("hello", &Hello { magic: MAGIC, generation: 2, build: "0.1.0".into() }),
        owned("request.daemon_status", &request(RequestBody::DaemonStatus)),
        owned("request.daemon_stop", &request(RequestBody::DaemonStop)),
        owned("request.create_vm", &request(RequestBody::CreateVm { spec: spec(), start: true, wait: None })),
        owned(
            "request.run_vm",
            &request(RequestBody::RunVm {
                spec: spec(),
                wait: Some(Readiness::Ssh),
                exec: exec(),
                timeout_ms: Some(1),
            }),
        ),
        owned("request.start_vms", &request(RequestBody::StartVms { vms: vms(), wait: None })),
        owned(
            "request.stop_vms",
            &request(RequestBody::StopVms { vms: vms(), timeout_ms: Some(1), force: Force::Yes }),
        ),
        owned("request.restart_vms", &request(RequestBody::RestartVms { vms: vms(), timeout_ms: None, wait: None })),
        owned("request.kill_vms", &request(RequestBody::KillVms { vms: vms() })),
        owned(
            "request.delete_vms",
            &request(RequestBody::DeleteVms { vms: vms(), force: Force::No, only_ephemeral: true }),
        ),
        owned("request.list_vms", &request(RequestBody::ListVms)),
        owned("request.show_vm", &request(RequestBody::ShowVm { vm: text("0a") })),
        owned("request.vm_logs", &request(RequestBody::VmLogs { vm: text("0a"), log: LogKind::Vmm })),
        owned("request.exec_vm", &request(RequestBody::ExecVm { vm: text("0a"), exec: exec(), wait: None })),
        owned("request.rename_vm", &request(RequestBody::RenameVm { vm: text("0a"), name: text("b") })),
        owned("request.vm_stats", &request(RequestBody::VmStats { vm: text("0a") })),
        owned("request.vm_ports", &request(RequestBody::VmPorts { vm: text("0a") })),
        owned("request.image_catalog", &request(RequestBody::ImageCatalog)),
        owned("request.pull_image", &request(RequestBody::PullImage { reference: image(), name: Some(text("mine")) })),
        owned("request.list_images", &request(RequestBody::ListImages)),
        owned("request.show_image", &request(RequestBody::ShowImage { image: image() })),
        owned("request.delete_image", &request(RequestBody::DeleteImage { image: image(), force: Force::Yes })),
        owned("request.kernel_catalog", &request(RequestBody::KernelCatalog)),
        owned("request.pull_kernel", &request(RequestBody::PullKernel { reference: image() })),
        owned("request.list_kernels", &request(RequestBody::ListKernels)),
        owned("request.show_kernel", &request(RequestBody::ShowKernel { kernel: image() })),
        owned("request.delete_kernel", &request(RequestBody::DeleteKernel { kernel: image(), force: Force::No })),
        owned(
            "request.wait_vm",
            &request(RequestBody::WaitVm { vm: text("0a"), level: Readiness::Agent, timeout_ms: None }),
        ),
        owned("request.connect_ssh", &request(RequestBody::ConnectSsh { vm: text("0a") })),
        owned("request.prune_images", &request(RequestBody::PruneImages)),
        owned(
            "request.pull_image_for",
            &request(RequestBody::PullImageFor { reference: image(), name: None, kernel: text("k") }),
        ),
        owned(
            "request.register_image",
            &request(RequestBody::RegisterImage { name: text("a"), rootfs: text("/r"), kernel: Some(text("k")) }),
        ),
        owned("request.promote_image", &request(RequestBody::PromoteImage { image: image() })),
        owned(
            "request.commit_image",
            &request(RequestBody::CommitImage {
                vm: text("0a"),
                name: text("a"),
                config: Some(ImageConfig::default()),
                source: Some("build:b".into()),
            }),
        ),
        owned("request.inspect_image", &request(RequestBody::InspectImage { image: image() })),
        owned(
            "request.vm_logs_since",
            &request(RequestBody::VmLogsSince { vm: text("0a"), log: LogKind::Vmm, since_ms: 300 }),
        ),
        owned(
            "request.import_kernel",
            &request(RequestBody::ImportKernel(KernelImport {
                name: text("k"),
                vmlinux: text("/v"),
                modules: Some(text("/m")),
                config: None,
                command_line: Some(text("quiet")),
            })),
        ),
        owned("request.export_image", &request(RequestBody::ExportImage { image: image() })),
        owned(
            "request.import_image",
            &request(RequestBody::ImportImage { file: text("/f"), name: Some(text("mine")) }),
        ),
    ]
}

fn server_samples() -> Vec<Sample> {
    let reply = |reply| ServerFrame::Reply { reply: Box::new(reply), descriptors: 1 };
    let change = VmChange { id: VmId([1; 8]), name: text("a"), changed: true, how: Some("halted".into()) };
    let failure = WireError::new(ErrorKind::NotFound, "no such VM").hint("`banger vm list`");
    let image = ImageView {
        name: text("a"),
        digest: "sha256:0".into(),
        size_bytes: 1,
        disk_bytes: 2,
        kernel: text("k"),
        source: "debian".into(),
        created_at_ms: 3,
        used_by: vec![],
        config: ImageConfig::default(),
    };
    let kernel = KernelView {
        name: text("k"),
        version: "6.12".into(),
        digest: "sha256:0".into(),
        disk_bytes: 1,
        source: "debian".into(),
        created_at_ms: 2,
        used_by: vec![],
    };
    let details =
        KernelDetails { kernel: kernel.clone(), command_line: "quiet".into(), checked_by: Some("config".into()) };
    let export = ImageExport {
        name: text("a"),
        kernel: text("k"),
        size_bytes: 300,
        source: "debian".into(),
        config: ImageConfig::default(),
    };
    let entry = CatalogEntry {
        name: "a".into(),
        kind: "debian".into(),
        description: "d".into(),
        present: true,
        origin: "built-in".into(),
    };
    let status = DaemonStatus {
        pid: 1,
        build: "0.1.0".into(),
        generation: 2,
        socket: "/s".into(),
        state_dir: "/d".into(),
        uptime_ms: 2,
        instance: InstanceId([1, 2, 3]),
        vms_running: 3,
        vms_total: 4,
        images: 5,
        kernels: 6,
        vmm: "emulated".into(),
        helper: Err("absent".into()),
        dns: NamesView { names: 2, loopback: Ok("127.0.0.1:1".into()), bridge: Err("no".into()), routed: Ok(()) },
        rss_kib: 7,
    };
    let layer = LayerView { digest: "sha256:1".into(), bytes: Some(4), shared_with: vec![text("b")] };
    let image_details = ImageDetails {
        image: image.clone(),
        pulled_digest: Some("sha256:2".into()),
        parent: None,
        external: Some("/r".into()),
        layers: vec![layer],
        shared_bytes: 4,
        own_bytes: 0,
    };
    let progress =
        Progress { stage: Stage::Boot, detail: "d".into(), done: Some(1), total: None, elapsed_us: 2, finished: false };
    let (vm, name, operation) = (VmId([1; 8]), text::<VmName>("a"), OperationId([2; 8]));
    vec![
        owned("server.progress", &ServerFrame::Progress(progress)),
        owned("server.error", &ServerFrame::Error(failure.clone())),
        owned("server.reply.done", &reply(Reply::Done)),
        owned("server.reply.daemon", &reply(Reply::Daemon(status))),
        owned("server.reply.vm", &reply(Reply::Vm(view()))),
        owned("server.reply.vms", &reply(Reply::Vms(vec![view().into()]))),
        owned(
            "server.reply.outcomes",
            &reply(Reply::Outcomes(vec![
                VmOutcome { asked: "a".into(), result: Ok(change) },
                VmOutcome { asked: "b".into(), result: Err(failure) },
            ])),
        ),
        owned("server.reply.attached", &reply(Reply::Attached { vm, name: name.clone(), operation, size: size() })),
        owned("server.reply.log", &reply(Reply::Log { running: true })),
        owned("server.reply.stats", &reply(Reply::Stats(GuestStats::default()))),
        owned("server.reply.ports", &reply(Reply::Ports(GuestPorts::default()))),
        owned("server.reply.catalog", &reply(Reply::Catalog(vec![entry]))),
        owned("server.reply.images", &reply(Reply::Images(vec![image.clone()]))),
        owned("server.reply.image", &reply(Reply::Image(image))),
        owned("server.reply.kernels", &reply(Reply::Kernels(vec![kernel.clone()]))),
        owned("server.reply.kernel", &reply(Reply::Kernel(kernel))),
        owned("server.reply.detached", &reply(Reply::Detached { vm, name: name.clone(), operation })),
        owned("server.reply.connected", &reply(Reply::Connected { vm, name })),
        owned("server.reply.pruned", &reply(Reply::Pruned { bytes: 300 })),
        owned("server.reply.image_details", &reply(Reply::ImageDetails(Box::new(image_details)))),
        owned("server.reply.log_since", &reply(Reply::LogSince { running: true, offset: 300 })),
        owned("server.reply.kernel_details", &reply(Reply::KernelDetails(details))),
        owned("server.reply.image_export", &reply(Reply::ImageExport(export))),
    ]
}

fn privileged_samples() -> Vec<Sample> {
    let request = |operation| PrivilegedRequest { number: 1, operation };
    let answer = |result| PrivilegedResponse { number: 1, result };
    let instance = InstanceId([1, 2, 3]);
    let bridge = || default_bridge_name(instance);
    let subnet = Subnet { gateway: Ipv4Addr::new(172, 16, 0, 1), prefix: 24, ipv6: Some(default_network6(instance)) };
    vec![
        owned("privileged.status", &request(PrivilegedOperation::Status)),
        owned(
            "privileged.ensure_bridge",
            &request(PrivilegedOperation::EnsureBridge { instance, bridge: bridge(), subnet }),
        ),
        owned(
            "privileged.ensure_tap",
            &request(PrivilegedOperation::EnsureTap { instance, bridge: bridge(), tap: TapNumber(1), mtu: None }),
        ),
        owned("privileged.remove_tap", &request(PrivilegedOperation::RemoveTap { instance, tap: TapNumber(1) })),
        owned("privileged.list_taps", &request(PrivilegedOperation::ListTaps { instance })),
        owned("privileged.ensure_nat", &request(PrivilegedOperation::EnsureNat { instance, bridge: bridge(), subnet })),
        owned("privileged.remove_instance", &request(PrivilegedOperation::RemoveInstance { instance })),
        owned(
            "privileged.route_names",
            &request(PrivilegedOperation::RouteNames { instance, bridge: bridge(), subnet }),
        ),
        owned("privileged.bind_dns", &request(PrivilegedOperation::BindDns { instance, bridge: bridge(), subnet })),
        owned("privileged.reply.dns_sockets", &answer(Ok(PrivilegedReply::DnsSockets))),
        owned(
            "privileged.set_grants",
            &request(PrivilegedOperation::SetGrants { instance, bridge: bridge(), subnet, grants: grants() }),
        ),
        owned("privileged.reply.done", &answer(Ok(PrivilegedReply::Done))),
        owned(
            "privileged.reply.status",
            &answer(Ok(PrivilegedReply::Status { build: "0.1.0".into(), pid: 1, owner_uid: 1000 })),
        ),
        owned("privileged.reply.taps", &answer(Ok(PrivilegedReply::Taps(vec![TapNumber(1), TapNumber(300)])))),
        owned("privileged.reply.rewritten", &answer(Ok(PrivilegedReply::Rewritten))),
        owned("privileged.reply.error", &answer(Err(WireError::new(ErrorKind::Host, "no")))),
    ]
}

fn guest_samples() -> Vec<Sample> {
    let running = RunningIdentity {
        vm: VmId([1; 8]),
        nonce: BootNonce([8; 16]),
        readiness: Some(Readiness::Agent),
        warning: None,
        operations: vec![OperationId([2; 8])],
    };
    let operation_id = OperationId([2; 8]);
    let port = ListeningPort {
        protocol: "tcp".into(),
        address: Ipv4Addr::LOCALHOST.into(),
        port: 80,
        process: Some("nginx".into()),
        pid: Some(1),
    };
    let tool = |tool| OperationFrame::Open {
        operation: operation_id,
        exec: Box::new(ExecSpec { command: ExecCommand::Tool(tool), ..exec() }),
    };
    let question = |question| DaemonFrame::Call { call: 1, question };
    let answer = |result| AgentFrame::Answer { call: 1, result };
    vec![
        owned("agent.identify.new", &AgentFrame::Identify { running: None, uptime_us: 1, restarts: 0 }),
        owned("agent.identify.running", &AgentFrame::Identify { running: Some(running), uptime_us: 1, restarts: 2 }),
        owned(
            "agent.ready",
            &AgentFrame::Ready { level: Readiness::System, warning: Some("degraded".into()), uptime_us: 1 },
        ),
        owned("agent.operation_started", &AgentFrame::OperationStarted { operation: operation_id, pid: 7 }),
        owned(
            "agent.operation_ended",
            &AgentFrame::OperationEnded { operation: operation_id, status: ExitStatus::Signal(9) },
        ),
        owned("agent.stopping", &AgentFrame::Stopping { kind: StopKind::Reboot }),
        owned("agent.answer.done", &answer(Ok(GuestAnswer::Done))),
        owned("agent.answer.stats", &answer(Ok(GuestAnswer::Stats(GuestStats::default())))),
        owned("agent.answer.ports", &answer(Ok(GuestAnswer::Ports(GuestPorts { ports: vec![port] })))),
        owned("agent.answer.error", &answer(Err(WireError::new(ErrorKind::Guest, "no")))),
        owned("agent.boot_failed", &AgentFrame::BootFailed(WireError::new(ErrorKind::Guest, "no"))),
        owned("daemon.spec", &DaemonFrame::Spec(Box::new(boot_spec()))),
        owned("daemon.welcome", &DaemonFrame::Welcome),
        owned("daemon.acknowledge", &DaemonFrame::Acknowledge { operation: operation_id }),
        owned("daemon.call.stop", &question(GuestQuestion::Stop { kind: StopKind::Halt, deadline_ms: 1 })),
        owned("daemon.call.stats", &question(GuestQuestion::Stats)),
        owned("daemon.call.ports", &question(GuestQuestion::Ports)),
        owned("daemon.call.set_clock", &question(GuestQuestion::SetClock { unix_ns: 1 })),
        owned("daemon.call.ping", &question(GuestQuestion::Ping)),
        owned(
            "daemon.call.signal_operation",
            &question(GuestQuestion::SignalOperation { operation: operation_id, signal: 15 }),
        ),
        operation("operation.open", &OperationFrame::Open { operation: operation_id, exec: Box::new(exec()) }),
        operation("operation.open.archive", &tool(AgentTool::Archive)),
        operation("operation.open.unpack", &tool(AgentTool::Unpack { at: ArgBytes(b"/x".to_vec()), as_file: true })),
        operation("operation.open.hold", &tool(AgentTool::Hold)),
        operation("operation.stdin", &OperationFrame::Stdin(b"in")),
        operation("operation.stdin_end", &OperationFrame::StdinEnd),
        operation("operation.resize", &OperationFrame::Resize(TerminalSize { rows: 1, columns: 2 })),
        operation("operation.signal", &OperationFrame::Signal(2)),
        operation("operation.detach", &OperationFrame::Detach),
        output("output.started", &OutputFrame::Started { pid: 7 }),
        output("output.stdout", &OutputFrame::Stdout(b"out")),
        output("output.stderr", &OutputFrame::Stderr(b"err")),
        output("output.stdin_credit", &OutputFrame::StdinCredit(1 << 20)),
        output("output.stdin_closed", &OutputFrame::StdinClosed),
        output("output.exited", &OutputFrame::Exited(ExitStatus::Code(7))),
        output("output.failed", &OutputFrame::Failed(WireError::new(ErrorKind::NotFound, "no"))),
    ]
}

fn samples() -> Vec<Sample> {
    [client_samples(), server_samples(), privileged_samples(), guest_samples()].into_iter().flatten().collect()
}

fn schema_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schema").join(format!("gen-{}.txt", frame::GENERATION))
}

#[test]
fn the_wire_surface_only_grows() {
    let frozen = std::fs::read_to_string(schema_path()).unwrap_or_default();
    let frozen: BTreeMap<&str, &str> = frozen.lines().filter_map(|line| line.split_once(' ')).collect();
    let now: BTreeMap<&str, String> = samples().iter().map(|s| (s.name, hex::encode(&s.bytes))).collect();
    for (name, bytes) in &frozen {
        assert_eq!(now.get(name).map(String::as_str), Some(*bytes), "`{name}` changed: raise GENERATION instead");
    }
    let new: Vec<&&str> = now.keys().filter(|name| !frozen.contains_key(**name)).collect();
    if std::env::var_os("BLESS").is_some() {
        let lines: String = now.iter().map(|(name, bytes)| format!("{name} {bytes}\n")).collect();
        std::fs::write(schema_path(), lines).unwrap();
    } else {
        assert!(new.is_empty(), "no fixture for {new:?}: run once with BLESS=1");
    }
}

#[test]
fn every_message_decodes_and_no_part_or_excess_of_it_does() {
    for Sample { name, bytes, decodes } in samples() {
        assert!(decodes(&bytes), "{name}");
        for cut in 0..bytes.len() {
            assert!(!decodes(&bytes[..cut]), "{name} cut at {cut}");
        }
        assert!(!decodes(&[&bytes[..], &[0]].concat()), "{name} with a byte more");
    }
}

#[test]
fn an_unknown_variant_is_an_error() {
    let unknown = postcard::to_stdvec(&9_999_u32).unwrap();
    assert!(matches!(frame::decode::<ServerFrame>(&unknown), Err(FrameError::Malformed(_))));
    assert!(matches!(frame::decode::<PrivilegedOperation>(&unknown), Err(FrameError::Malformed(_))));
    assert!(matches!(frame::decode_borrowed::<OutputFrame<'_>>(&unknown), Err(FrameError::Malformed(_))));
}

#[test]
fn another_generation_names_both_versions() {
    let theirs = Hello { magic: MAGIC, generation: frame::GENERATION + 1, build: "9.9.9".into() };
    let error = Hello::decode(&postcard::to_stdvec(&theirs).unwrap()).unwrap_err().to_string();
    assert!(error.contains("9.9.9") && error.contains(frame::build_id()), "{error}");
}

#[test]
fn lengths_are_bounded_before_anything_is_allocated() {
    assert!(matches!(
        frame::payload_length(u32::MAX.to_le_bytes(), GUEST_FRAME_MAX),
        Err(FrameError::TooLong { limit: GUEST_FRAME_MAX, .. })
    ));
    assert!(frame::encode(&vec![0_u8; 100], 64).is_err());
    assert_eq!(frame::encode(&7_u8, 64).unwrap(), [1, 0, 0, 0, 7]);
    assert_eq!(HEADER_LEN, 4);
}

#[test]
fn the_longest_chunk_fits_a_guest_frame() {
    let chunk = vec![0; STREAM_CHUNK_MAX];
    assert!(frame::encode(&OutputFrame::Stdout(&chunk), GUEST_FRAME_MAX).is_ok());
    assert!(frame::encode(&OperationFrame::Stdin(&chunk), GUEST_FRAME_MAX).is_ok());
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        for sample in samples() {
            (sample.decodes)(&bytes);
        }
    }

    #[test]
    fn no_flipped_byte_makes_a_decoder_panic(which in any::<proptest::sample::Index>(), at in any::<proptest::sample::Index>(), to: u8) {
        let samples = samples();
        let sample = &samples[which.index(samples.len())];
        let mut bytes = sample.bytes.clone();
        let at = at.index(bytes.len());
        bytes[at] = to;
        (sample.decodes)(&bytes);
    }
}
