//! Names answered in a second, against dnsmasq with the same names, both asked by dnsperf on loopback.

use super::figures::{Figure, Goal, median};
use crate::case::{Case, Stop, check};
use crate::command::{Input, Program};
use crate::scenarios::names::listeners;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Turns of both, and the length of each in seconds.
const TURNS: usize = 5;
const SECONDS: &str = "3";
/// Names that exist; VMs cost a boot each.
const VMS: usize = 2;

pub(super) fn measure(case: &Case<'_>) -> Result<Vec<Figure>, Stop> {
    let (mut arguments, mut questions) = (Vec::new(), String::new());
    for number in 0..VMS {
        let vm = case.vm_named(&format!("n{number}"));
        case.create(&vm, &[])?;
        let address = case.show(&vm)?["address"].as_str().unwrap_or_default().to_owned();
        arguments.push(format!("--host-record={vm}.vm,{address}"));
        questions += &format!("{vm}.vm A\n{vm}.vm AAAA\nnobody{number}.vm A\n");
    }
    let file = case.world.base.join("questions");
    fs::write(&file, questions)?;
    let (ours, _) = listeners(case)?;
    let theirs = SocketAddr::from(([127, 0, 0, 1], 5399));
    let port = format!("--port={}", theirs.port());
    let fixed =
        ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--local=/vm/", "--conf-file=/dev/null"];
    let mut dnsmasq =
        Program::tool(&[&fixed[..], &["--listen-address=127.0.0.1", "--bind-interfaces", &port]].concat());
    dnsmasq.argv.extend(arguments);
    dnsmasq.argv.extend(["--user=root".to_owned(), "--pid-file=".to_owned()]);
    dnsmasq.input = Input::Null;
    let mut running = dnsmasq.spawn()?;
    let result = turns(&file.display().to_string(), ours, theirs);
    running.signal(nix::sys::signal::Signal::SIGTERM)?;
    running.set_deadline(Duration::from_secs(10));
    drop(running.finish()?);
    let (measured, baseline) = result?;
    Ok(vec![Figure {
        name: "DNS queries per second against dnsmasq".to_owned(),
        measured: median(&measured),
        baseline: median(&baseline),
        goal: Goal::AtLeast(0.5),
        runs: TURNS,
        remark: format!("{TURNS} turns of {SECONDS} s"),
    }])
}

fn turns(questions: &str, ours: SocketAddr, theirs: SocketAddr) -> Result<(Vec<f64>, Vec<f64>), Stop> {
    let began = Instant::now();
    while per_second(questions, theirs, "1").is_err() {
        check(began.elapsed() < Duration::from_secs(20), || "dnsmasq does not answer".to_owned())?;
    }
    let (mut measured, mut baseline) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        baseline.push(per_second(questions, theirs, SECONDS)?);
        measured.push(per_second(questions, ours, SECONDS)?);
    }
    Ok((measured, baseline))
}

fn per_second(questions: &str, server: SocketAddr, seconds: &str) -> Result<f64, Stop> {
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let done = Program::tool(&["dnsperf", "-s", &ip, "-p", &port, "-d", questions, "-l", seconds, "-c", "4"]).run()?;
    let text = done.out();
    let field = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    let lost = field("Queries lost:").and_then(|lost| lost.split(' ').next()?.parse::<u64>().ok());
    let rate = field("Queries per second:").and_then(|rate| rate.parse().ok());
    match (done.code(), lost, rate) {
        (0, Some(0), Some(rate)) if rate > 0.0 => Ok(rate),
        _ => Err(Stop::Failed(format!("dnsperf against {server}: {text}{}", done.err()))),
    }
}
