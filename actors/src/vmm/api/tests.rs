//! The client against a server that answers, and one that misbehaves; every body against the OpenAPI file.

use super::bodies::*;
use super::client::{ApiError, CallLimits, Driver};
use crate::vmm::fake::{Fake, Fault};
use saphyr::{LoadableYamlNode, Yaml};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(200);

fn limits() -> CallLimits {
    CallLimits { setting: SHORT, start: SHORT, state: SHORT, snapshot: SHORT }
}

fn serve(fake: &Fake) -> (tempfile::TempDir, Driver) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    fake.listen(&socket);
    (dir, Driver::within(socket, limits()))
}

fn vsock() -> Vsock {
    Vsock { guest_cid: 3, uds_path: "/run/v.sock".into() }
}

fn disk() -> Drive {
    Drive {
        drive_id: "disk".into(),
        path_on_host: "/var/disk.ext4".into(),
        is_root_device: false,
        is_read_only: false,
        cache_type: CacheType::Writeback,
        io_engine: None,
        rate_limiter: None,
    }
}

#[tokio::test]
async fn calls_arrive_as_the_api_has_them_on_one_connection() {
    let fake = Fake::default();
    let (_dir, driver) = serve(&fake);
    driver.put(&vsock()).await.unwrap();
    driver.put(&disk()).await.unwrap();
    driver.start().await.unwrap();
    driver.pause().await.unwrap();
    driver.resume().await.unwrap();
    driver.send_ctrl_alt_del().await.unwrap();
    assert_eq!(driver.version().await.unwrap(), "1.16.1");
    let info = driver.instance().await.unwrap();
    assert_eq!((info.state, info.app_name.as_str()), (InstanceState::NotStarted, "Firecracker"));
    let lines = fake.lines();
    assert_eq!(
        lines,
        [
            "PUT /vsock",
            "PUT /drives/disk",
            "PUT /actions",
            "PATCH /vm",
            "PATCH /vm",
            "PUT /actions",
            "GET /version",
            "GET /"
        ]
    );
    let seen = fake.seen.lock().unwrap().clone();
    assert!(seen.iter().all(|request| request.connection == 0), "{seen:?}");
    assert_eq!(seen[0].body, serde_json::json!({"guest_cid": 3, "uds_path": "/run/v.sock"}));
    assert_eq!(seen[2].body, serde_json::json!({"action_type": "InstanceStart"}));
    assert_eq!(seen[3].body, serde_json::json!({"state": "Paused"}));
}

#[tokio::test]
async fn a_connection_that_the_vmm_closed_is_replaced() {
    let fake = Fake { hang_up: true, ..Fake::default() };
    let (_dir, driver) = serve(&fake);
    for _ in 0..3 {
        driver.put(&vsock()).await.unwrap();
        // Until the end of the connection has been seen; a call sent before that is told that it broke, never repeated.
        tokio::time::timeout(Duration::from_secs(5), driver.kept_connection_closed()).await.unwrap();
    }
    driver.rest();
    driver.put(&vsock()).await.unwrap();
    assert_eq!(fake.seen.lock().unwrap().iter().map(|request| request.connection).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[tokio::test]
async fn a_refusal_is_the_vmms_own_words_without_its_escapes() {
    for (fault, words) in [(Fault::Refuse, "the request was refused"), (Fault::Escapes, "bad  [2J thing")] {
        let (_dir, driver) = serve(&Fake::with_fault("PUT /vsock", fault));
        match driver.put(&vsock()).await.unwrap_err() {
            ApiError::Refused { call, status, fault } => {
                assert_eq!((call.as_str(), status, fault.as_str()), ("PUT /vsock", 400, words));
            }
            other => panic!("{other:?}"),
        }
        // The connection is still good.
        driver.put(&disk()).await.unwrap();
    }
}

#[tokio::test]
async fn a_silent_vmm_costs_the_deadline_and_its_late_answer_is_nobodys() {
    for fault in [Fault::Hang, Fault::Late] {
        let fake = Fake::with_fault("PUT /vsock", fault);
        let (_dir, driver) = serve(&fake);
        let start = Instant::now();
        let error = driver.put(&vsock()).await.unwrap_err();
        assert!(matches!(error, ApiError::Timeout { .. }), "{error:?}");
        assert!(start.elapsed() < 10 * SHORT, "{:?}", start.elapsed());
        assert_eq!(driver.version().await.unwrap(), "1.16.1");
        assert_eq!(fake.seen.lock().unwrap()[1].connection, 1);
    }
}

#[tokio::test]
async fn nonsense_is_a_typed_error_and_bounded() {
    for fault in [Fault::Garbage, Fault::Half, Fault::Die, Fault::Flood] {
        let (_dir, driver) = serve(&Fake::with_fault("GET /version", fault));
        let error = driver.version().await.unwrap_err();
        match fault {
            Fault::Half | Fault::Flood => assert!(matches!(error, ApiError::Nonsense { .. }), "{fault:?}: {error:?}"),
            _ => assert!(matches!(error, ApiError::Broken { .. }), "{fault:?}: {error:?}"),
        }
        driver.put(&vsock()).await.unwrap();
    }
}

#[tokio::test]
async fn nobody_there() {
    let driver = Driver::within("/nonexistent/api.sock", limits());
    assert!(matches!(driver.version().await.unwrap_err(), ApiError::Connect { .. }));
}

/// A route's method and path, with each of its bodies: one with every field, one with as few as there can be.
fn samples() -> Vec<(Verb, &'static str, Vec<Value>)> {
    fn sample<C: Call>(bodies: Vec<C>) -> (Verb, &'static str, Vec<Value>) {
        (C::VERB, C::ROUTE, bodies.iter().map(|body| serde_json::to_value(body).unwrap()).collect())
    }
    let path = || PathBuf::from("/a/path");
    let bucket = || TokenBucket { size: 1, refill_time: 1, one_time_burst: Some(1) };
    let plain = || TokenBucket { size: 1, refill_time: 1, one_time_burst: None };
    let limiter = || Some(RateLimiter { bandwidth: Some(bucket()), ops: Some(plain()) });
    let drive = |cache_type, io_engine| Drive {
        is_read_only: true,
        io_engine: Some(io_engine),
        cache_type,
        rate_limiter: limiter(),
        ..disk()
    };
    let interface = |full: bool| NetworkInterface {
        iface_id: "eth0".into(),
        host_dev_name: "bt1-1".into(),
        guest_mac: full.then(|| "06:00:00:00:00:01".into()),
        mtu: full.then_some(1500),
        rx_rate_limiter: limiter().filter(|_| full),
        tx_rate_limiter: limiter().filter(|_| full),
    };
    let machine = |huge_pages| MachineConfiguration {
        vcpu_count: 32,
        mem_size_mib: 1024,
        smt: Some(false),
        track_dirty_pages: Some(true),
        huge_pages: Some(huge_pages),
    };
    let bare =
        MachineConfiguration { vcpu_count: 1, mem_size_mib: 128, smt: None, track_dirty_pages: None, huge_pages: None };
    let logger = |level| Logger {
        log_path: Some(path()),
        level: Some(level),
        show_level: Some(true),
        show_log_origin: Some(true),
    };
    let create = |snapshot_type| SnapshotCreateParams { mem_file_path: path(), snapshot_path: path(), snapshot_type };
    let load = |backend_type, full: bool| SnapshotLoadParams {
        snapshot_path: path(),
        mem_backend: MemoryBackend { backend_type, backend_path: path() },
        track_dirty_pages: full.then_some(true),
        resume_vm: full.then_some(true),
        network_overrides: (0..u8::from(full))
            .map(|_| NetworkOverride { iface_id: "eth0".into(), host_dev_name: "bt1-1".into() })
            .collect(),
        vsock_override: full.then(|| VsockOverride { uds_path: path() }),
    };
    use {ActionType as A, LogLevel as L};
    vec![
        sample(vec![
            BootSource { kernel_image_path: path(), initrd_path: Some(path()), boot_args: Some("quiet".into()) },
            BootSource { kernel_image_path: path(), initrd_path: None, boot_args: None },
        ]),
        sample(vec![drive(CacheType::Unsafe, IoEngine::Sync), drive(CacheType::Writeback, IoEngine::Async), disk()]),
        sample(vec![interface(true), interface(false)]),
        sample(vec![vsock()]),
        sample(vec![machine(HugePages::None), machine(HugePages::TwoMiB), bare]),
        sample(vec![EntropyDevice { rate_limiter: limiter() }, EntropyDevice::default()]),
        sample(vec![
            SerialDevice { serial_out_path: Some(path()), rate_limiter: Some(bucket()) },
            SerialDevice { serial_out_path: None, rate_limiter: None },
        ]),
        sample([L::Error, L::Warning, L::Info, L::Debug, L::Trace, L::Off].map(logger).to_vec()),
        sample(vec![Logger::default()]),
        sample(vec![Metrics { metrics_path: path() }]),
        sample(
            [A::FlushMetrics, A::InstanceStart, A::SendCtrlAltDel]
                .map(|it| InstanceActionInfo { action_type: it })
                .into(),
        ),
        sample([VmRunState::Paused, VmRunState::Resumed].map(|state| Vm { state }).into()),
        sample(vec![create(None), create(Some(SnapshotType::Full)), create(Some(SnapshotType::Diff))]),
        sample(vec![load(MemoryBackendType::File, true), load(MemoryBackendType::Uffd, false)]),
    ]
}

/// Every body that is sent here is one that the API's own description allows: its property names, their types, limits and
/// enumerations, and that nothing required is missing.
#[test]
fn every_request_is_held_against_the_openapi_file() {
    let Some(file) = openapi_file() else {
        eprintln!("skipped: no Firecracker OpenAPI file beside this workspace");
        return;
    };
    let text = std::fs::read_to_string(&file).unwrap();
    let document = Yaml::load_from_str(&text).unwrap().remove(0);
    for (verb, route, bodies) in samples() {
        let method = format!("{verb:?}").to_lowercase();
        let operation = get(&document, &["paths", route, &method]);
        let operation = operation.unwrap_or_else(|| panic!("{} has no {verb:?} {route}", file.display()));
        let parameters = get(operation, &["parameters"]).and_then(Yaml::as_vec).unwrap();
        let body = parameters.iter().find(|it| text_of(it, "in") == Some("body")).unwrap();
        for sent in bodies {
            let wrong = mismatch(&document, get(body, &["schema"]).unwrap(), &sent);
            assert_eq!(wrong, None, "{verb:?} {route} with {sent}");
        }
    }
    for (route, definition) in [("/", "InstanceInfo"), ("/version", "FirecrackerVersion")] {
        let schema = get(&document, &["paths", route, "get", "responses", "200", "schema"]).or_else(|| {
            // The key may be read as a number.
            let responses = get(&document, &["paths", route, "get", "responses"])?.as_mapping()?;
            get(responses.iter().find(|(key, _)| key.as_integer() == Some(200))?.1, &["schema"])
        });
        assert_eq!(text_of(schema.unwrap(), "$ref"), Some(format!("#/definitions/{definition}").as_str()));
    }
}

/// The check itself must see what is wrong.
#[test]
fn the_openapi_check_sees_mistakes() {
    let Some(file) = openapi_file() else {
        eprintln!("skipped: no Firecracker OpenAPI file beside this workspace");
        return;
    };
    let text = std::fs::read_to_string(&file).unwrap();
    let document = Yaml::load_from_str(&text).unwrap().remove(0);
    let wrong = |definition: &str, body: Value| {
        let schema = get(&document, &["definitions", definition]).unwrap();
        mismatch(&document, schema, &body).unwrap_or_else(|| panic!("{definition} allows {body}"))
    };
    use serde_json::json;
    assert_eq!(wrong("Vsock", json!({"guest_cid": 3})), "`uds_path` is missing");
    assert_eq!(wrong("Vsock", json!({"guest_cid": 2, "uds_path": "a"})), "guest_cid: 2 is under 3");
    assert_eq!(wrong("Vsock", json!({"guest_cid": "3", "uds_path": "a"})), "guest_cid: \"3\" is no integer");
    assert_eq!(wrong("Vm", json!({"state": "Running"})), "state: \"Running\" is not one of the enumeration");
    assert_eq!(wrong("Vm", json!({"state": "Paused", "now": true})), "`now` is unknown");
    let limiter = json!({"drive_id": "a", "is_root_device": false, "rate_limiter": {"ops": {"size": 1}}});
    assert_eq!(wrong("Drive", limiter), "rate_limiter: ops: `refill_time` is missing");
}

/// `../shared/firecracker/*.yaml`, seen from the workspace's root or from where the workspace's repository lives.
fn openapi_file() -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let mut files = workspace
        .ancestors()
        .skip(1)
        .take(2)
        .flat_map(|dir| std::fs::read_dir(dir.join("shared/firecracker")))
        .flatten();
    files.find_map(|entry| Some(entry.ok()?.path()).filter(|path| path.extension().is_some_and(|it| it == "yaml")))
}

fn get<'a, 'y>(node: &'a Yaml<'y>, path: &[&str]) -> Option<&'a Yaml<'y>> {
    path.iter().try_fold(node, |node, key| node.as_mapping_get(key))
}

fn text_of<'a>(node: &'a Yaml<'_>, key: &str) -> Option<&'a str> {
    node.as_mapping_get(key)?.as_str()
}

/// What is wrong with `value` by `schema`, if anything.
fn mismatch(document: &Yaml<'_>, schema: &Yaml<'_>, value: &Value) -> Option<String> {
    if let Some(reference) = text_of(schema, "$ref") {
        let name = reference.strip_prefix("#/definitions/").unwrap();
        return mismatch(document, get(document, &["definitions", name]).unwrap(), value);
    }
    let kind = text_of(schema, "type").unwrap_or("object");
    let fits = match kind {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the file has a type `{other}`, which this test does not know"),
    };
    if !fits {
        return Some(format!("{value} is no {kind}"));
    }
    if let Some(allowed) = get(schema, &["enum"]).and_then(Yaml::as_vec)
        && !allowed.iter().any(|one| one.as_str() == value.as_str())
    {
        return Some(format!("{value} is not one of the enumeration"));
    }
    let limit = |name| get(schema, &[name]).and_then(Yaml::as_integer);
    match value {
        Value::Number(number) => {
            let number = number.as_i64().unwrap();
            let under =
                limit("minimum").filter(|least| number < *least).map(|least| format!("{number} is under {least}"));
            under.or_else(|| {
                limit("maximum").filter(|most| number > *most).map(|most| format!("{number} is over {most}"))
            })
        }
        Value::Array(items) => items.iter().find_map(|item| mismatch(document, get(schema, &["items"]).unwrap(), item)),
        Value::Object(fields) => {
            let required = get(schema, &["required"]).and_then(Yaml::as_vec);
            let missing =
                required.into_iter().flatten().filter_map(Yaml::as_str).find(|name| !fields.contains_key(*name));
            if let Some(name) = missing {
                return Some(format!("`{name}` is missing"));
            }
            fields.iter().find_map(|(name, field)| match get(schema, &["properties", name]) {
                None => Some(format!("`{name}` is unknown")),
                Some(schema) => mismatch(document, schema, field).map(|wrong| format!("{name}: {wrong}")),
            })
        }
        _ => None,
    }
}
