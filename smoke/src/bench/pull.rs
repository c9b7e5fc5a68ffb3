//! A container image from a registry on loopback into a file system that boots, against the tools that Debian has for it.

mod floor;

use super::figures::{Figure, Goal, median, ms};
use super::{RUNS, time};
use crate::case::{Case, Stop, check};
use crate::command::Program;
use crate::scenarios::oci::{BENCH_PORT, Layer, Layout, Registry, archive};
use serde_json::json;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const LAYERS: usize = 5;
const FILES: usize = 2400;
/// Of each file: what does not shrink, and what nearly vanishes. Together 600 MB, 240 MB gzipped.
const NOISE: usize = 20_000;
const TEXT: usize = 30_000;
/// Each way takes seconds.
const PULLS: usize = 7;
const BASELINES: usize = 3;

pub(super) fn measure(case: &Case<'_>) -> Result<Vec<Figure>, Stop> {
    let registry = Registry::start(case, BENCH_PORT)?;
    let result = measured(case, &registry);
    registry.stop().and(result)
}

fn measured(case: &Case<'_>, registry: &Registry) -> Result<Vec<Figure>, Stop> {
    let layout = Layout::write(&registry.directory.join("big"), &layers()?, &json!({}))?;
    registry.push(case, &layout, "big")?;
    fs::remove_dir_all(layout.path())?;
    let reference = registry.reference("big");
    // A daemon of its own: the peak of its memory is the pull's.
    case.ok(&["daemon", "stop"])?;
    case.ok(&["daemon", "start"])?;
    let (mut pulls, mut others, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..PULLS {
        floors.push(floor::measure(&registry.directory)?.as_secs_f64());
        pulls.push(time(&case.world.banger(&["image", "pull", &reference]))?.as_secs_f64());
        if number < BASELINES {
            others.push(by_tools(case, registry, &reference)?.as_secs_f64());
        }
        if number + 1 < PULLS {
            case.ok(&["image", "delete", "big-1"])?;
            case.ok(&["image", "prune"])?;
        }
    }
    let peak = peak_mib(case)?;
    let (mut again, mut versions, mut requests) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        again.push(ms(time(&case.world.banger(&["image", "pull", &reference]))?));
        versions.push(ms(time(&case.world.banger(&["version"]))?));
        requests.push(ms(manifest_request()?));
    }
    case.ok(&["image", "delete", "big-1"])?;
    case.ok(&["image", "prune"])?;
    let figure = |name: &str, measured, baseline, goal, runs, remark: String| Figure {
        name: name.to_owned(),
        measured,
        baseline,
        goal,
        runs,
        remark,
    };
    let remark = format!("5 layers, 600 MB, 240 MB gzipped; {PULLS} runs against {BASELINES}");
    Ok(vec![
        figure(
            "image pull against skopeo copy, umoci unpack and mke2fs -d (s)",
            median(&pulls),
            median(&others),
            Goal::AtMost(0.2),
            PULLS,
            remark,
        ),
        figure(
            "image pull against fetching, hashing, decompressing and writing its bytes (s)",
            median(&pulls),
            median(&floors),
            Goal::AtMost(1.3),
            PULLS,
            String::new(),
        ),
        figure(
            "bangerd's peak memory after it, against 160 MiB (MiB)",
            peak,
            160.0,
            Goal::AtMost(1.0),
            1,
            String::new(),
        ),
        figure(
            "image pull of what is here against 2 x version and one manifest request (ms)",
            median(&again),
            2.0 * median(&versions) + median(&requests),
            Goal::AtMost(1.0),
            RUNS,
            format!("version {:.1} ms, request {:.1} ms", median(&versions), median(&requests)),
        ),
    ])
}

fn layers() -> Result<Vec<Layer>, Stop> {
    let mut random = File::open("/dev/urandom")?;
    let text: Vec<u8> = b"a line of a file that compresses well\n".iter().copied().cycle().take(TEXT).collect();
    let mut layers = Vec::new();
    for layer in 0..LAYERS {
        let mut noise = vec![0; NOISE * FILES];
        random.read_exact(&mut noise)?;
        let made = archive(|archive| {
            for (file, noise) in noise.chunks_exact(NOISE).enumerate() {
                archive.file(
                    &format!("layer-{layer}/directory-{}/file-{file}", file % 40),
                    0o644,
                    &[noise, &text].concat(),
                );
            }
        });
        layers.push(Layer::gzip(made));
    }
    Ok(layers)
}

fn by_tools(case: &Case<'_>, registry: &Registry, reference: &str) -> Result<Duration, Stop> {
    let place = |name: &str| registry.directory.join(name).display().to_string();
    let (copy, bundle, image) = (place("copy"), place("bundle"), place("image.ext4"));
    let from = format!("docker://{reference}");
    let to = format!("oci:{copy}:1");
    let (unpacked, tree) = (format!("{copy}:1"), format!("{bundle}/rootfs"));
    let steps: [&[&str]; 3] = [
        &["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", &from, &to],
        &["umoci", "unpack", "--image", &unpacked, &bundle],
        &["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", &tree, &image, "1000M"],
    ];
    let started = Instant::now();
    for step in steps {
        let done = case.run(Program::tool(step))?;
        check(done.code() == 0, || format!("`{}` failed: {}", step.join(" "), done.err().trim()))?;
    }
    let took = started.elapsed();
    fs::remove_dir_all(&copy)?;
    fs::remove_dir_all(&bundle)?;
    fs::remove_file(&image)?;
    Ok(took)
}

/// Asks for something of the image's; the answer ends with the connection.
fn ask(method: &str, what: &str) -> Result<TcpStream, Stop> {
    let mut stream = TcpStream::connect(("127.0.0.1", BENCH_PORT))?;
    let accept = "application/vnd.oci.image.manifest.v1+json";
    write!(
        stream,
        "{method} /v2/big/{what} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
    )?;
    Ok(stream)
}

/// What asking for a manifest costs by itself.
fn manifest_request() -> Result<Duration, Stop> {
    let started = Instant::now();
    let mut stream = ask("HEAD", "manifests/1")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    check(answer.starts_with("HTTP/1.1 200"), || format!("the registry said `{answer}`"))?;
    Ok(started.elapsed())
}

fn peak_mib(case: &Case<'_>) -> Result<f64, Stop> {
    let pid = case.world.daemon_pid().ok_or(Stop::Failed("there is no daemon".to_owned()))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).and_then(|rest| rest.split_whitespace().next());
    let kib: f64 = peak.and_then(|kib| kib.parse().ok()).ok_or(Stop::Failed("no peak of memory".to_owned()))?;
    Ok(kib / 1024.0)
}
