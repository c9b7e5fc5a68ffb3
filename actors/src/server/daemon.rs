//! What the daemon says of itself.

use super::context::{ServerContext, ask};
use crate::registry::Summarize;
use messages::WireError;
use messages::frame::{GENERATION, build_id};
use messages::reply::{DaemonStatus, Reply};

pub(super) async fn status(context: &ServerContext) -> Result<Reply, WireError> {
    let (summary, (images, kernels), helper) =
        tokio::join!(ask(&context.registry, Summarize), context.library.counts(), context.facts.helper());
    let taken = summary?.taken;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(Reply::Daemon(DaemonStatus {
        pid: std::process::id(),
        build: build_id().to_owned(),
        generation: GENERATION,
        socket: context.paths.socket().display().to_string(),
        state_dir: context.paths.state_dir.display().to_string(),
        uptime_ms: u64::try_from(context.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        instance: context.paths.instance(),
        vms_running: count(taken.active),
        vms_total: count(taken.vms),
        images,
        kernels,
        vmm: context.facts.vmm(),
        helper,
        dns: context.facts.dns(),
        rss_kib: rss_kib(),
    }))
}

/// `VmRSS` of this process, as proc(5) has it; 0 where /proc is not there.
fn rss_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap_or(0)
}
