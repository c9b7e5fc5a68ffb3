//! How fast a guest sends to the world: a VM against a bare QEMU with a tap of the same kind, both through the bridge and its rules.

use super::bare::{Bare, RawPort, Template, succeed};
use super::figures::{Figure, Goal, median};
use super::repeats;
use crate::case::{Case, Stop, failed};
use crate::outside::{Outside, Uplink};
use messages::guest::GuestNetwork;
use serde_json::{Value, from_value};
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

/// The two ends of the uplink, of the range for documentation (RFC 5737).
const UPLINK: Uplink = Uplink {
    near: "bench0",
    far: "bench1",
    host: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    outside: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
    prefix: 24,
};
/// Waits until the image's init has nothing more to start: its bus may not be there yet.
const SETTLED: &str =
    "until systemctl is-system-running --wait 2>/dev/null | grep -E 'running|degraded'; do sleep 0.2; done";
const SIZE: u64 = 256 << 20;
/// How long a connection and its bytes may take: many times what they do.
const LONGEST: Duration = Duration::from_secs(120);

pub(super) fn measure(case: &Case<'_>) -> Result<Vec<Figure>, Stop> {
    let outside = Outside::start(UPLINK)?;
    let (vm, other) = (case.vm(), case.vm_named("tap"));
    case.create(&vm, &["--wait", "system"])?;
    case.create(&other, &[])?;
    let mut template = Template::of(case, &other)?;
    template.network = Some(network_of(case, &other)?);
    // A VM that is stopped keeps its tap and its address, which nobody uses then.
    case.ok(&["vm", "kill", &other])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let bare = runtime.block_on(template.boot(RawPort::No))?;
    runtime.block_on(async { succeed(bare.exec(SETTLED).await?).await })?;
    let script = format!(
        "exec 3<>/dev/tcp/{}/{} && dd if=/dev/zero bs=256k count={} status=none >&3",
        UPLINK.outside,
        outside.listener.local_addr()?.port(),
        SIZE >> 18
    );
    let through_banger = || {
        let sent = || case.ok(&["vm", "exec", &vm, "--", "bash", "-c", &script]).map(drop);
        received(&outside.listener, sent)
    };
    let through_bare = || received(&outside.listener, || runtime.block_on(sent_by(&bare, &script)));
    let (runs, remark) = repeats(through_banger()?);
    through_bare()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        ours.push(rate(through_banger()?));
        theirs.push(rate(through_bare()?));
    }
    Ok(vec![Figure {
        name: "guest to uplink against bare QEMU with the same tap (MB/s)".to_owned(),
        measured: median(&ours),
        baseline: median(&theirs),
        goal: Goal::AtLeast(0.9),
        runs,
        remark,
    }])
}

fn rate(took: Duration) -> f64 {
    SIZE as f64 / 1e6 / took.as_secs_f64()
}

async fn sent_by(bare: &Bare, script: &str) -> Result<(), Stop> {
    // The agent's shell is whatever the image has; the port is bash's.
    succeed(bare.exec(&format!("exec bash -c '{script}'")).await?).await
}

/// From the connection until the last byte has come.
fn received(listener: &TcpListener, send: impl FnOnce() -> Result<(), Stop>) -> Result<Duration, Stop> {
    let listener = listener.try_clone()?;
    let receiver = std::thread::spawn(move || swallow(&listener));
    let sent = send();
    let took = receiver.join();
    sent?;
    match took {
        Ok(took) => Ok(took?),
        Err(_) => failed("the receiver panicked"),
    }
}

fn swallow(listener: &TcpListener) -> std::io::Result<Duration> {
    let (mut stream, _) = listener.accept()?;
    let started = Instant::now();
    stream.set_read_timeout(Some(LONGEST))?;
    let mut buffer = vec![0; 1 << 20];
    let mut count = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 if count == SIZE => return Ok(started.elapsed()),
            0 => return Err(std::io::Error::new(ErrorKind::UnexpectedEof, format!("{count} bytes of {SIZE} came"))),
            length => count += length as u64,
        }
    }
}

/// What the daemon told a VM of its network, as the VM has it now.
fn network_of(case: &Case<'_>, vm: &str) -> Result<GuestNetwork, Stop> {
    let said = |script: &str| case.guest(vm, script);
    let mac = said("cat /sys/class/net/eth0/address")?;
    let mut octets = [0; 6];
    hex::decode_to_slice(mac.replace(':', ""), &mut octets).map_err(|error| Stop::Failed(format!("{mac}: {error}")))?;
    let address: Value = serde_json::from_str(&said("ip -j -4 address show dev eth0")?)?;
    let address = &address[0]["addr_info"][0];
    let route: Value = serde_json::from_str(&said("ip -j -4 route show default")?)?;
    Ok(GuestNetwork {
        mac: octets,
        address: from_value(address["local"].clone())?,
        prefix: from_value(address["prefixlen"].clone())?,
        gateway: from_value(route[0]["gateway"].clone())?,
        mtu: Some(said("cat /sys/class/net/eth0/mtu")?.parse().map_err(|error| Stop::Failed(format!("MTU: {error}")))?),
        resolvers: Vec::new(),
        ipv6: None,
    })
}
