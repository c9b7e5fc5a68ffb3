//! What is sent for what is typed, and how replies, progress and errors are printed.

use crate::fixtures::{VM, view};
use integration::fakes::{FakeDaemon, Step};
use integration::{TestEnvironment, until};
use messages::error::{ErrorKind, WireError};
use messages::guest::GuestStats;
use messages::ids::InstanceId;
use messages::image::{CatalogEntry, ImageConfig, ImageView, KernelView};
use messages::reply::{DaemonStatus, NamesView, Progress, Reply, Stage, VmChange, VmOutcome};
use messages::request::{LogKind, Request, RequestBody};
use messages::vm::{NetworkMode, Readiness, VmState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::atomic::{AtomicU64, Ordering};

fn answer(environment: &TestEnvironment, reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> FakeDaemon {
    FakeDaemon::start(&environment.socket(), move |request| vec![Step::Reply(reply(request))])
}

#[test]
fn create_sends_what_was_typed_and_prints_the_name() {
    let environment = TestEnvironment::new();
    let fake = answer(&environment, |_| Reply::Vm(view("web", VmState::Running)));
    let arguments = "vm create --name web --image alpine --kernel k --vcpu 3 --memory 1.5G --disk-size 20G --net none \
                     --label a=b --label c= --restart always --wait system";
    assert_eq!(environment.banger(arguments.split_whitespace()).success(), "web\n");
    let RequestBody::CreateVm { spec, start, wait } = fake.requests()[0].body.clone() else { panic!() };
    assert!(start);
    assert_eq!(wait, Some(Readiness::System));
    assert_eq!(spec.name.unwrap().as_str(), "web");
    assert_eq!((spec.vcpus, spec.memory_mib, spec.disk_bytes), (Some(3), Some(1536), Some(20 << 30)));
    assert_eq!(spec.network, NetworkMode::None);
    assert_eq!(spec.labels, [("a".to_owned(), "b".to_owned()), ("c".to_owned(), String::new())]);
}

#[test]
fn lists_are_tables_and_empty_ones_say_so_on_stderr() {
    let environment = TestEnvironment::new();
    let _daemon = answer(&environment, |_| {
        Reply::Vms(vec![view("web", VmState::Running).into(), view("db", VmState::Stopped).into()])
    });
    let stdout = environment.banger(["vm", "ps"]).success();
    let lines: Vec<&str> = stdout.lines().map(|line| line.rsplit_once("  ").unwrap().0.trim_end()).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    NAME  ID                STATE    IMAGE            VCPU  MEMORY  DISK   ADDRESS
    web   1a02030405060708  running  debian-bookworm  2     1 GiB   8 GiB  172.16.0.2
    db    1a02030405060708  stopped  debian-bookworm  2     1 GiB   8 GiB  172.16.0.2
    ");
    let filtered =
        environment.banger(["vm", "list", "--filter", "state=stopped", "--filter", "label=team=blue"]).success();
    assert!(filtered.contains("db") && !filtered.contains("web"), "{filtered}");
    let none = environment.banger(["vm", "list", "--filter", "label=team=red"]);
    assert_eq!((none.stdout.as_str(), none.stderr.as_str(), none.code), ("", "no VM matches\n", 0));
}

#[test]
fn json_shapes_are_stable() {
    let environment = TestEnvironment::new();
    let _daemon = answer(&environment, |request| match &request.body {
        RequestBody::ListVms => Reply::Vms(vec![view("web", VmState::Running).into()]),
        RequestBody::ListImages => Reply::Images(vec![ImageView {
            name: "alpine".parse().unwrap(),
            digest: "sha256:aa".into(),
            size_bytes: 1 << 30,
            disk_bytes: 1 << 20,
            kernel: "k".parse().unwrap(),
            source: "catalog".into(),
            created_at_ms: 1,
            used_by: vec!["web".into()],
            config: ImageConfig { cmd: vec!["sh".into()], ..ImageConfig::default() },
        }]),
        RequestBody::ListKernels => Reply::Kernels(vec![KernelView {
            name: "k".parse().unwrap(),
            version: "6.12".into(),
            digest: "sha256:bb".into(),
            disk_bytes: 2,
            source: "catalog".into(),
            created_at_ms: 1,
            used_by: vec![],
        }]),
        RequestBody::ImageCatalog => Reply::Catalog(vec![CatalogEntry {
            name: "alpine".into(),
            kind: "oci".into(),
            description: "small".into(),
            present: true,
            origin: "built-in".into(),
        }]),
        RequestBody::DaemonStatus => Reply::Daemon(DaemonStatus {
            pid: 1,
            build: "0.1.0".into(),
            generation: 1,
            socket: "/s".into(),
            state_dir: "/d".into(),
            uptime_ms: 5,
            instance: InstanceId([1, 2, 3]),
            vms_running: 1,
            vms_total: 2,
            images: 3,
            kernels: 4,
            vmm: "emulated".into(),
            helper: Err("not running".into()),
            dns: NamesView {
                names: 1,
                loopback: Ok("127.0.0.1:20053".into()),
                bridge: Err("port 53 of 172.16.0.1 is taken by another program".into()),
                routed: Err("systemd-resolved does not run on this host".into()),
            },
            rss_kib: 6,
        }),
        other => panic!("{other:?}"),
    });
    let shapes: Vec<String> = ["vm list", "image list", "kernel list", "image catalog", "daemon status"]
        .iter()
        .map(|command| {
            let value = environment.banger(format!("{command} --json").split(' ')).json();
            format!("{command}: {value:#}")
        })
        .collect();
    insta::assert_snapshot!("json_shapes", shapes.join("\n"));
}

#[test]
fn several_vms_have_an_outcome_each_and_the_first_failure_decides() {
    let environment = TestEnvironment::new();
    let _daemon = answer(&environment, |_| {
        let change = |changed, how: Option<&str>| VmChange {
            id: VM,
            name: "web".parse().unwrap(),
            changed,
            how: how.map(str::to_owned),
        };
        Reply::Outcomes(vec![
            VmOutcome { asked: "web".into(), result: Ok(change(true, Some("killed"))) },
            VmOutcome { asked: "we".into(), result: Ok(change(false, None)) },
            VmOutcome {
                asked: "db".into(),
                result: Err(WireError::new(ErrorKind::NotFound, "there is no VM `db`").hint("did you mean `dab`?")),
            },
        ])
    });
    let output = environment.banger(["vm", "stop", "web", "we", "db"]);
    assert_eq!((output.code, output.stdout.as_str()), (201, ""));
    assert_eq!(
        output.stderr,
        "web stopped (killed)\nweb was stopped\nerror: there is no VM `db`\nhint: did you mean `dab`?\n"
    );
    let output = environment.banger(["vm", "stop", "web", "we", "db", "--json"]);
    assert_eq!((output.code, output.stderr.as_str()), (201, ""));
    let value: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(value[0]["how"], "killed");
    assert_eq!(value[2]["error"]["kind"], "not_found");
}

#[test]
fn logs_since_begin_where_the_daemon_says() {
    let environment = TestEnvironment::new();
    let log = environment.path("console.log");
    std::fs::write(&log, "old\nnew\n").unwrap();
    let fake = FakeDaemon::start(&environment.socket(), move |request| match &request.body {
        RequestBody::VmLogsSince { .. } => {
            let file = std::fs::File::open(&log).unwrap();
            vec![Step::Hand(Reply::LogSince { running: false, offset: 4 }, file.into())]
        }
        other => panic!("{other:?}"),
    });
    let at = |text: &str| environment.banger(["vm", "logs", "web", "--since", text]).success();
    assert_eq!(at("2001-09-09T01:46:40Z"), "new\n");
    assert_eq!(environment.banger(["vm", "logs", "--vmm", "-f", "web", "--since", "1h"]).success(), "new\n");
    let asked: Vec<(LogKind, u64)> = fake
        .requests()
        .into_iter()
        .map(|request| match request.body {
            RequestBody::VmLogsSince { log, since_ms, .. } => (log, since_ms),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(asked[0], (LogKind::Console, 1_000_000_000_000));
    let ago = std::time::UNIX_EPOCH.elapsed().unwrap() - std::time::Duration::from_millis(asked[1].1);
    assert_eq!(asked[1].0, LogKind::Vmm);
    assert!((3600..3700).contains(&ago.as_secs()), "{ago:?}");
}

/// Counters of a guest that grow, and then no guest.
pub(crate) fn counting(environment: &TestEnvironment, looks: u64) -> FakeDaemon {
    let look = AtomicU64::new(0);
    FakeDaemon::start(&environment.socket(), move |request| {
        assert!(matches!(request.body, RequestBody::VmStats { .. }), "{request:?}");
        let seconds = 1 + 2 * look.fetch_add(1, Ordering::SeqCst);
        if seconds > 2 * looks {
            return vec![Step::Error(WireError::new(ErrorKind::WrongState, "VM web is stopped"))];
        }
        vec![Step::Reply(Reply::Stats(GuestStats {
            uptime_ms: seconds * 1000,
            cpu_busy_ms: seconds * 500,
            cpu_total_ms: seconds * 1000,
            net_rx_bytes: seconds * 4096,
            ..GuestStats::default()
        }))]
    })
}

#[test]
fn watched_stats_are_an_object_a_line_until_the_vm_stops() {
    let environment = TestEnvironment::new();
    let _daemon = counting(&environment, 2);
    let output = environment.banger(["vm", "stats", "--watch", "web", "--json"]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let uptimes: Vec<u64> = output
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["uptime_ms"].as_u64().unwrap())
        .collect();
    assert_eq!(uptimes, [1000, 3000]);
    // One that never ran is an error, watched or not.
    environment.banger(["vm", "stats", "--watch", "web"]).failure(203);
}

fn step(stage: Stage, seconds: u64, finished: bool) -> Step {
    Step::Progress(Progress {
        stage,
        detail: format!("{} detail", stage.as_str()),
        done: None,
        total: None,
        elapsed_us: seconds * 1_000_000,
        finished,
    })
}

#[test]
fn progress_is_plain_lines_events_or_nothing() {
    let environment = TestEnvironment::new();
    let _daemon = FakeDaemon::start(&environment.socket(), |_| {
        vec![
            step(Stage::Spec, 0, true),
            step(Stage::Disk, 0, true),
            step(Stage::ImagePull, 3, false),
            step(Stage::ImagePull, 4, false),
            step(Stage::ImagePull, 30, true),
            Step::Reply(Reply::Vm(view("web", VmState::Running))),
        ]
    });
    let plain = environment.banger(["vm", "create"]);
    assert_eq!(
        plain.stderr,
        "spec: spec detail\nimage: image detail, 3.00 s so far\nimage: image detail, done in 30.0 s\n"
    );
    assert_eq!(environment.banger(["vm", "create", "--quiet"]).stderr, "");
    let events = environment.banger(["vm", "create", "--json"]);
    let lines: Vec<serde_json::Value> = events.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 5);
    assert_eq!(
        lines[4],
        serde_json::json!({
            "event": "progress", "stage": "image", "detail": "image detail", "done": null, "total": null,
            "elapsed_us": 30_000_000, "finished": true
        })
    );
}

#[test]
fn errors_have_a_kind_a_chain_hints_and_an_exit_code() {
    for kind in ErrorKind::ALL {
        let environment = TestEnvironment::new();
        let _daemon = FakeDaemon::start(&environment.socket(), move |_| {
            vec![Step::Error(WireError::new(kind, "the cause").context("what failed").hint("`do this`"))]
        });
        // Interrupted by the user is what a shell calls 130.
        let code = if kind == ErrorKind::Cancelled { 130 } else { i32::from(kind.exit_code()) };
        let plain = environment.banger(["vm", "show", "web"]).failure(code);
        assert_eq!(plain, "error: what failed: the cause\nhint: `do this`\n");
        let json = environment.banger(["vm", "show", "web", "--json"]).failure(code);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            value,
            serde_json::json!({ "error": {
                "kind": kind.as_str(), "chain": ["what failed", "the cause"], "hints": ["`do this`"]
            }})
        );
    }
}

#[test]
fn ctrl_c_while_waiting_leaves_and_says_so() {
    let environment = TestEnvironment::new();
    let fake = FakeDaemon::start(&environment.socket(), |_| vec![step(Stage::Spec, 0, true), Step::AwaitHangup]);
    let child = environment.spawn(environment.command("banger").args(["vm", "create"]));
    until("the request", || (fake.requests().len() == 1).then_some(()));
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = environment.output(child.wait_with_output().unwrap());
    assert_eq!(output.code, 130, "{output:?}");
    assert!(output.stderr.contains("error: interrupted while waiting for the daemon"), "{output:?}");
    until("the hang-up", || (fake.hangups() == 1).then_some(()));
}
