//! Counters of the guest, from /proc and the root file system.

use messages::guest::GuestStats;
use std::fs;
use std::io;

/// Reads all counters.
///
/// # Errors
/// `/proc` is not there.
pub fn collect() -> io::Result<GuestStats> {
    let mut stats = GuestStats { uptime_ms: crate::agent::uptime_us() / 1000, ..GuestStats::default() };
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok());
    processor(&fs::read_to_string("/proc/stat")?, ticks.unwrap_or(100), &mut stats);
    memory(&fs::read_to_string("/proc/meminfo")?, &mut stats);
    load(&fs::read_to_string("/proc/loadavg")?, &mut stats);
    network(&fs::read_to_string("/proc/net/dev")?, &mut stats);
    if let Ok(root) = nix::sys::statvfs::statvfs("/") {
        stats.disk_total_bytes = root.blocks() * root.fragment_size();
        stats.disk_used_bytes = (root.blocks() - root.blocks_free()) * root.fragment_size();
    }
    Ok(stats)
}

fn processor(stat: &str, ticks_per_second: u64, stats: &mut GuestStats) {
    let Some(all) = stat.lines().find_map(|line| line.strip_prefix("cpu ")) else { return };
    // user nice system idle iowait irq softirq steal; guest time is part of user time already (proc_stat(5)).
    let ticks: Vec<u64> = all.split_ascii_whitespace().take(8).filter_map(|field| field.parse().ok()).collect();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    let total: u64 = ticks.iter().sum();
    stats.cpu_total_ms = total * 1000 / ticks_per_second;
    stats.cpu_busy_ms = (total - idle) * 1000 / ticks_per_second;
}

fn memory(meminfo: &str, stats: &mut GuestStats) {
    let field = |name: &str| {
        let rest = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().trim_end_matches(" kB").parse().ok()
    };
    stats.memory_total_kib = field("MemTotal:").unwrap_or(0);
    stats.memory_available_kib = field("MemAvailable:").unwrap_or(0);
}

fn load(loadavg: &str, stats: &mut GuestStats) {
    let mut fields = loadavg.split_ascii_whitespace();
    // "0.42" is 42 percent of one processor.
    let hundredths = fields.next().and_then(|load| load.replacen('.', "", 1).parse().ok());
    stats.load_1m_percent = hundredths.unwrap_or(0);
    let tasks = fields.nth(2).and_then(|tasks| tasks.split_once('/')).and_then(|(_, all)| all.parse().ok());
    stats.processes = tasks.unwrap_or(0);
}

fn network(dev: &str, stats: &mut GuestStats) {
    for (name, counters) in dev.lines().filter_map(|line| line.split_once(':')) {
        if name.trim() == "lo" {
            continue;
        }
        let counters: Vec<u64> = counters.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
        stats.net_rx_bytes += counters.first().copied().unwrap_or(0);
        stats.net_tx_bytes += counters.get(8).copied().unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        let mut stats = GuestStats::default();
        processor("cpu  100 0 50 800 50 0 0 0 30 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n", 100, &mut stats);
        memory("MemTotal:        1024 kB\nMemFree: 1 kB\nMemAvailable:     512 kB\n", &mut stats);
        load("1.05 0.10 0.00 2/345 678\n", &mut stats);
        let dev = "Inter-| Receive\n face |bytes\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  eth0: 10 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n";
        network(dev, &mut stats);
        let expected = GuestStats {
            cpu_busy_ms: 1500,
            cpu_total_ms: 10_000,
            memory_total_kib: 1024,
            memory_available_kib: 512,
            load_1m_percent: 105,
            processes: 345,
            net_rx_bytes: 10,
            net_tx_bytes: 20,
            ..GuestStats::default()
        };
        assert_eq!(stats, expected);
    }

    #[test]
    fn this_machine_has_counters() {
        let stats = collect().unwrap();
        assert!(stats.memory_total_kib > 0 && stats.cpu_total_ms >= stats.cpu_busy_ms && stats.disk_total_bytes > 0);
    }
}
