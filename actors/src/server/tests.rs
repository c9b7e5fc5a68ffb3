//! The server over a real socket, with a scripted world behind it.

use super::*;
use crate::config::Config;
use crate::ext4::files::Ext4Files;
use crate::host::HostFacts;
use crate::images::commit::CommitPlan;
use crate::images::messages::ExportedImage;
use crate::paths::Paths;
use crate::registry::{Registry, RegistryContext};
use crate::store::Store;
use crate::vm::VmContext;
use crate::vm::fake::{Guest, World};
use actix::Supervisor;
use actors_sys::fd_stream::FdStream;
use futures::future::BoxFuture;
use link::frames::{FrameReader, send_hello, write_frame};
use messages::error::{ErrorKind, WireError};
use messages::frame::{GENERATION, Hello, MAGIC};
use messages::guest::{ExecCommand, ExecSpec};
use messages::ids::{Reference, RequestId};
use messages::image::{ImageConfig, ImageExport, ImageView};
use messages::limits::{CONTROL_FRAME_MAX, HELLO_FRAME_MAX};
use messages::reply::{NamesView, Progress, Reply, ServerFrame, Stage};
use messages::request::{Force, Request, RequestBody};
use messages::vm::{Lifetime, NetworkMode, Readiness, VmSpec, VmState};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

struct FakeLibrary;

impl Library for FakeLibrary {
    fn prepare(
        &self,
        image: Option<Reference>,
        _: Option<Reference>,
        _: mpsc::Sender<Progress>,
    ) -> BoxFuture<'static, Result<Prepared, WireError>> {
        Box::pin(async move {
            match image.map(String::from).as_deref() {
                Some("debian-bookworm") => {
                    Ok(Prepared { image: "debian-bookworm".parse().unwrap(), kernel: "k".parse().unwrap() })
                }
                Some("panics") => panic!("asked to"),
                Some("slow") => std::future::pending().await,
                other => Err(WireError::new(ErrorKind::NotFound, format!("no image {other:?}"))),
            }
        })
    }

    fn request(&self, _: RequestBody, _: mpsc::Sender<Progress>) -> BoxFuture<'static, Result<Reply, WireError>> {
        Box::pin(std::future::ready(Ok(Reply::Images(vec![]))))
    }

    fn commit(
        &self,
        plan: CommitPlan,
        _: OwnedFd,
        _: mpsc::Sender<Progress>,
    ) -> BoxFuture<'static, Result<ImageView, WireError>> {
        let made = WireError::new(ErrorKind::Conflict, format!("asked for {} of {}", plan.name, plan.source));
        Box::pin(std::future::ready(Err(made)))
    }

    fn export(&self, image: Reference) -> BoxFuture<'static, Result<ExportedImage, WireError>> {
        Box::pin(async move {
            let export = ImageExport {
                name: image.as_str().parse().unwrap(),
                kernel: "k".parse().unwrap(),
                size_bytes: 5,
                source: "test".to_owned(),
                config: ImageConfig::default(),
            };
            let mut rootfs = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut rootfs, b"bytes").unwrap();
            Ok(ExportedImage { export, rootfs })
        })
    }

    fn counts(&self) -> BoxFuture<'static, (u32, u32)> {
        Box::pin(std::future::ready((3, 2)))
    }
}

struct FakeFacts;

impl DaemonFacts for FakeFacts {
    fn vmm(&self) -> String {
        "emulated: for a test".to_owned()
    }

    fn helper(&self) -> BoxFuture<'static, Result<String, String>> {
        Box::pin(std::future::ready(Err("not there".to_owned())))
    }

    fn dns(&self) -> NamesView {
        NamesView {
            names: 1,
            loopback: Ok("127.0.0.1:20053".to_owned()),
            bridge: Err("no bridge".to_owned()),
            routed: Ok(()),
        }
    }
}

struct Server {
    socket: PathBuf,
    world: World,
    shutdown: CancellationToken,
    _dir: tempfile::TempDir,
}

async fn server() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("s");
    std::fs::create_dir(&state).unwrap();
    let uid = nix::unistd::Uid::effective().as_raw();
    let paths = Paths::resolve(uid, |name| match name {
        "HOME" => Some(dir.path().to_path_buf()),
        "BANGER_STATE_DIR" => Some(state.clone()),
        _ => None,
    });
    let paths = Arc::new(paths.unwrap());
    let world = World::new();
    let store = Store::open(&paths.database()).unwrap();
    let host = HostFacts { cpus: 8, memory_mib: 16_000, memory_available_mib: 16_000 };
    let vm = VmContext {
        ports: Arc::new(world.clone()),
        store: store.clone(),
        runtime: tokio::runtime::Handle::current(),
        host_restarted: false,
    };
    let registry = Supervisor::start(move |_| Registry::new(RegistryContext { vm, host, names: None }, vec![]));
    let runtime = tokio::runtime::Handle::current();
    let disk_files = Supervisor::start(move |_| Ext4Files::new(runtime));
    let shutdown = CancellationToken::new();
    let context = ServerContext {
        registry,
        library: Arc::new(FakeLibrary),
        ports: Arc::new(world.clone()),
        facts: Arc::new(FakeFacts),
        store,
        disk_files,
        config: Arc::new(Config::default()),
        paths: Arc::clone(&paths),
        host,
        started: Instant::now(),
        shutdown: shutdown.clone(),
    };
    let listener = Listener::bind(&paths.socket()).unwrap();
    tokio::spawn(listener.serve(Arc::new(context)));
    Server { socket: paths.socket(), world, shutdown, _dir: dir }
}

type Client = FrameReader<FdStream>;

impl Server {
    async fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        FrameReader::new(FdStream::new(stream), CONTROL_FRAME_MAX)
    }

    async fn send(&self, request: u8, body: RequestBody) -> Client {
        let mut client = self.connect().await;
        send_hello(client.get_mut()).await.unwrap();
        client.hello().await.unwrap();
        let request = Request { id: RequestId([request; 16]), body };
        write_frame(client.get_mut(), &request, CONTROL_FRAME_MAX).await.unwrap();
        client
    }

    async fn ask(&self, request: u8, body: RequestBody) -> Result<Reply, WireError> {
        let mut client = self.send(request, body).await;
        last(&mut client).await.0
    }
}

/// The reply or error, and the progress before it.
async fn last(client: &mut Client) -> (Result<Reply, WireError>, Vec<Progress>) {
    let mut lines = vec![];
    loop {
        let frame = tokio::time::timeout(PATIENCE, client.message::<ServerFrame>()).await.expect("a reply in time");
        match frame.unwrap().expect("a last frame before the end") {
            ServerFrame::Progress(line) => lines.push(line),
            ServerFrame::Reply { reply, descriptors } => {
                assert_eq!(usize::from(descriptors), client.get_ref().received());
                return (Ok(*reply), lines);
            }
            ServerFrame::Error(error) => return (Err(error), lines),
        }
    }
}

fn with_server<F: Future<Output = ()>>(test: impl FnOnce(Server) -> F) {
    actix::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    })
    .block_on(async { test(server().await).await });
}

fn spec(name: &str) -> VmSpec {
    VmSpec { name: Some(name.parse().unwrap()), network: NetworkMode::None, ..VmSpec::default() }
}

fn exec() -> ExecSpec {
    ExecSpec { command: ExecCommand::LoginShell, ..fixtures::exec_spec(&[]) }
}

fn create(name: &str) -> RequestBody {
    RequestBody::CreateVm { spec: spec(name), start: true, wait: Some(Readiness::System) }
}

#[test]
fn a_vm_is_made_listed_and_deleted_over_the_socket() {
    with_server(|server| async move {
        let mut client = server.send(1, create("web")).await;
        let (reply, lines) = last(&mut client).await;
        let Reply::Vm(vm) = reply.unwrap() else { panic!("not a VM") };
        assert_eq!((vm.name.as_str(), vm.state), ("web", VmState::Running));
        assert_eq!(lines[0].stage, Stage::Spec);
        assert!(lines[0].detail.contains("vCPU"), "{}", lines[0].detail);
        let Reply::Vms(vms) = server.ask(2, RequestBody::ListVms).await.unwrap() else { panic!("not a list") };
        assert_eq!(vms.iter().map(|view| &**view).collect::<Vec<_>>(), [&vm]);
        let reference = || "web".parse().unwrap();
        let refused = RequestBody::DeleteVms { vms: vec![reference()], force: Force::No, only_ephemeral: false };
        let Reply::Outcomes(outcomes) = server.ask(3, refused).await.unwrap() else { panic!("no outcomes") };
        assert_eq!(outcomes[0].result.as_ref().unwrap_err().kind, ErrorKind::WrongState);
        let forced = RequestBody::DeleteVms {
            vms: vec![reference(), "nobody".parse().unwrap()],
            force: Force::Yes,
            only_ephemeral: false,
        };
        let Reply::Outcomes(outcomes) = server.ask(4, forced).await.unwrap() else { panic!("no outcomes") };
        assert!(outcomes[0].result.as_ref().unwrap().changed);
        assert_eq!(outcomes[1].result.as_ref().unwrap_err().kind, ErrorKind::NotFound);
        assert!(server.world.outside().dirs.is_empty());
    });
}

#[test]
fn an_export_comes_with_the_file_system() {
    with_server(|server| async move {
        let mut client = server.send(1, RequestBody::ExportImage { image: "tiny".parse().unwrap() }).await;
        let Reply::ImageExport(export) = last(&mut client).await.0.unwrap() else { panic!("no export") };
        assert_eq!((export.name.as_str(), export.size_bytes), ("tiny", 5));
        let rootfs = std::fs::File::from(client.get_mut().take_fd().unwrap());
        let mut bytes = [0; 5];
        std::os::unix::fs::FileExt::read_exact_at(&rootfs, &mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"bytes");
    });
}

#[test]
fn a_run_is_handed_a_socket_and_its_repeat_runs_nothing() {
    with_server(|server| async move {
        let run = || RequestBody::RunVm {
            spec: VmSpec { lifetime: Lifetime::Ephemeral, ..spec("once") },
            wait: None,
            exec: exec(),
            timeout_ms: None,
        };
        let mut client = server.send(1, run()).await;
        let (reply, lines) = last(&mut client).await;
        let Reply::Attached { vm, operation, .. } = reply.unwrap() else { panic!("not attached") };
        assert_eq!(client.get_ref().received(), 1, "one descriptor came with it");
        assert!(lines.iter().any(|line| line.stage == Stage::Agent), "{lines:?}");
        let again = server.ask(1, run()).await;
        assert!(again.is_ok(), "the same operation is the same command: {again:?}");
        server.world.operation_ended(vm, operation).await;
        let gone =
            RequestBody::DeleteVms { vms: vec!["once".parse().unwrap()], force: Force::Yes, only_ephemeral: true };
        let Reply::Outcomes(outcomes) = server.ask(2, gone).await.unwrap() else { panic!("no outcomes") };
        assert_eq!(outcomes[0].result.as_ref().unwrap().id, vm, "gone, whoever was faster");
        assert!(server.world.outside().dirs.is_empty());
    });
}

#[test]
fn a_client_that_leaves_before_the_handover_takes_its_ephemeral_vm_with_it() {
    with_server(|server| async move {
        server.world.script().guest = Guest::Silent;
        let run = RequestBody::RunVm {
            spec: VmSpec { lifetime: Lifetime::Ephemeral, ..spec("once") },
            wait: None,
            exec: exec(),
            timeout_ms: None,
        };
        let mut client = server.send(1, run).await;
        loop {
            let frame = tokio::time::timeout(PATIENCE, client.message::<ServerFrame>()).await.unwrap();
            if let ServerFrame::Progress(Progress { stage: Stage::Vmm, .. }) = frame.unwrap().unwrap() {
                break;
            }
        }
        drop(client);
        let until_empty = async {
            loop {
                let Reply::Vms(vms) = server.ask(2, RequestBody::ListVms).await.unwrap() else { panic!("not a list") };
                if vms.is_empty() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, until_empty).await.expect("the VM goes");
        assert!(server.world.alive().is_empty());
    });
}

#[test]
fn an_ephemeral_vm_that_never_was_ready_is_kept_with_a_hint() {
    with_server(|server| async move {
        server.world.script().guest = Guest::Silent;
        let run = RequestBody::RunVm {
            spec: VmSpec { lifetime: Lifetime::Ephemeral, ..spec("once") },
            wait: None,
            exec: exec(),
            timeout_ms: Some(50),
        };
        let error = server.ask(1, run).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout);
        assert!(error.hints.iter().any(|hint| hint.contains("banger vm logs once")), "{error:?}");
        let wait = RequestBody::StopVms { vms: vec!["once".parse().unwrap()], timeout_ms: None, force: Force::No };
        server.ask(2, wait).await.unwrap();
        let Reply::Vm(vm) = server.ask(3, RequestBody::ShowVm { vm: "once".parse().unwrap() }).await.unwrap() else {
            panic!("not a VM")
        };
        assert_eq!((vm.lifetime, vm.state), (Lifetime::Kept, VmState::Stopped));
        assert!(server.world.alive().is_empty(), "it takes no memory");
    });
}

#[test]
fn what_is_refused_is_refused_before_anything_is_pulled() {
    with_server(|server| async move {
        let slow = |spec: VmSpec| RequestBody::CreateVm {
            spec: VmSpec { image: Some("slow".parse().unwrap()), ..spec },
            start: true,
            wait: None,
        };
        server.ask(1, create("web")).await.unwrap();
        for (spec, kind) in [
            (spec("web"), ErrorKind::Conflict),
            (VmSpec { vcpus: Some(0), ..spec("a") }, ErrorKind::Usage),
            (VmSpec { memory_mib: Some(1), ..spec("a") }, ErrorKind::Usage),
            (VmSpec { memory_mib: Some(15_900), ..spec("a") }, ErrorKind::Resources),
            (VmSpec { disk_bytes: Some(3), ..spec("a") }, ErrorKind::Usage),
        ] {
            assert_eq!(server.ask(2, slow(spec)).await.unwrap_err().kind, kind);
        }
    });
}

#[test]
fn hostile_bytes_close_their_own_connection_with_a_reason() {
    with_server(|server| async move {
        let hello = |generation: u32, magic: [u8; 4]| Hello { magic, generation, build: "9.9.9".into() };
        for (hello, named) in
            [(hello(GENERATION + 1, MAGIC), "9.9.9 (protocol 3)"), (hello(GENERATION, *b"nope"), "does not speak")]
        {
            let mut client = server.connect().await;
            write_frame(client.get_mut(), &hello, HELLO_FRAME_MAX).await.unwrap();
            client.hello().await.unwrap();
            let error = last(&mut client).await.0.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Protocol);
            assert!(error.to_string().contains(named), "{error}");
        }
        for bytes in [&u32::MAX.to_le_bytes()[..], &[3, 0, 0, 0, 0xff, 0xff, 0xff], &[1, 0, 0, 0, 0]] {
            let mut client = server.connect().await;
            send_hello(client.get_mut()).await.unwrap();
            client.hello().await.unwrap();
            client.get_mut().write_all(bytes).await.unwrap();
            let error = last(&mut client).await.0.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
            assert!(client.next().await.unwrap().is_none(), "and the connection ends");
        }
        assert!(server.ask(1, RequestBody::ListVms).await.is_ok(), "the others go on");
    });
}

#[test]
fn a_panic_in_a_handler_is_an_error_of_that_request() {
    with_server(|server| async move {
        let panics = RequestBody::CreateVm {
            spec: VmSpec { image: Some("panics".parse().unwrap()), ..spec("a") },
            start: true,
            wait: None,
        };
        assert_eq!(server.ask(1, panics).await.unwrap_err().kind, ErrorKind::Internal);
        assert!(server.ask(2, create("a")).await.is_ok());
    });
}

#[test]
fn the_socket_is_private_and_goes_with_the_daemon() {
    use std::os::unix::fs::PermissionsExt as _;
    with_server(|server| async move {
        let mode = std::fs::metadata(&server.socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let Reply::Daemon(status) = server.ask(1, RequestBody::DaemonStatus).await.unwrap() else {
            panic!("no status")
        };
        assert_eq!((status.pid, status.images, status.kernels), (std::process::id(), 3, 2));
        assert!(status.rss_kib > 0);
        assert_eq!(server.ask(2, RequestBody::DaemonStop).await.unwrap(), Reply::Done);
        server.shutdown.cancelled().await;
        let until_gone = async {
            while UnixStream::connect(&server.socket).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, until_gone).await.expect("nobody listens any more");
    });
}

#[test]
fn ssh_is_tried_while_somebody_waits_for_it_and_never_else() {
    with_server(|server| async move {
        let wait = |name: &str, timeout_ms: Option<u64>| RequestBody::WaitVm {
            vm: name.parse().unwrap(),
            level: Readiness::Ssh,
            timeout_ms,
        };
        server.world.script().ssh_answers_at = 3;
        let Reply::Vm(made) = server.ask(1, create("web")).await.unwrap() else { panic!("not a VM") };
        assert!(server.world.outside().probed.is_empty(), "nobody waited for it");
        let (vm, key) = (made.id, made.ssh_host_key.expect("it has a host key before anybody connects"));
        server.ask(2, wait("web", None)).await.unwrap();
        assert_eq!(server.world.outside().probed, vec![(vm, key); 3]);
        let show = RequestBody::ShowVm { vm: "web".parse().unwrap() };
        let Reply::Vm(shown) = server.ask(3, show).await.unwrap() else { panic!("not a VM") };
        assert_eq!((shown.readiness, shown.ssh_host_key), (Some(Readiness::Ssh), Some(key)));
        server.ask(4, wait("web", None)).await.unwrap();
        assert_eq!(server.world.outside().probed.len(), 3, "it is known");

        server.world.script().ssh_answers_at = usize::MAX;
        server.ask(5, create("other")).await.unwrap();
        let late = server.ask(6, wait("other", Some(700))).await.unwrap_err();
        assert_eq!(late.kind, ErrorKind::Timeout);
        assert!(late.to_string().ends_with("sshd is just starting"), "{late}");
        server.world.script().ssh_answers_at = 0;
        server.world.script().fail = Some("ssh_answers");
        let refused = server.ask(7, wait("other", None)).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Host, "another attempt would end the same way");
    });
}

#[test]
fn a_bad_key_is_refused_before_anything_is_started() {
    with_server(|server| async move {
        server.world.script().fail = Some("authorized_keys");
        let refused = server.ask(1, create("web")).await.unwrap_err();
        assert!(refused.to_string().contains("authorized_keys was told to fail"), "{refused}");
        assert!(server.world.outside().launches.is_empty());
        server.world.script().fail = None;
        server.ask(2, create("web")).await.unwrap();
    });
}
