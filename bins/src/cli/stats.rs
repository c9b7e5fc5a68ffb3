//! `banger vm stats`: a guest's counters, once or again and again.

use super::args::StatsArgs;
use super::client::{Client, unexpected};
use super::failure::{Failure, Outcome};
use super::{human, json, table};
use console::Term;
use messages::error::ErrorKind;
use messages::guest::GuestStats;
use messages::ids::VmRef;
use messages::reply::Reply;
use messages::request::RequestBody;
use std::time::Duration;

/// Between two looks. Shorter ones would show the agent's own work.
const INTERVAL: Duration = Duration::from_secs(2);

/// `banger vm stats`.
pub(super) async fn run(client: &Client, args: StatsArgs) -> Outcome {
    let vm = args.vm.vm;
    let first = counters(client.ask(RequestBody::VmStats { vm: vm.clone() }).await?)?;
    if args.watch {
        return watch(client, &vm, first).await;
    }
    if client.output.json {
        client.output.value(&json::stats(&first))?;
    } else {
        client.output.data(&table::pairs(&rows(None, &first)))?;
    }
    Ok(0)
}

fn counters(reply: Reply) -> Result<GuestStats, Failure> {
    match reply {
        Reply::Stats(stats) => Ok(stats),
        other => Err(unexpected(&other)),
    }
}

/// Until the VM stops or the user does, which are both the ordinary end.
async fn watch(client: &Client, vm: &VmRef, first: GuestStats) -> Outcome {
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    let terminal = Term::stdout();
    let in_place = terminal.is_term() && !client.output.json;
    let mut interval = tokio::time::interval(INTERVAL);
    // The first tick is at once.
    interval.tick().await;
    let (mut before, mut now) = (None, first);
    loop {
        let text = if client.output.json {
            format!("{}\n", json::stats(&now))
        } else {
            table::pairs(&rows(before.as_ref(), &now)) + if in_place { "" } else { "\n" }
        };
        client.output.data(&text)?;
        let next = tokio::select! {
            next = async {
                interval.tick().await;
                client.ask_running(RequestBody::VmStats { vm: vm.clone() }).await
            } => next,
            _ = &mut interrupt => return Ok(0),
        };
        match next {
            Ok(reply) => before = Some(std::mem::replace(&mut now, counters(reply)?)),
            Err(Failure::Error(error)) if matches!(error.kind, ErrorKind::WrongState | ErrorKind::NotFound) => {
                client.output.remark(&error.to_string());
                return Ok(0);
            }
            Err(failure) => return Err(failure),
        }
        if in_place {
            terminal.clear_last_lines(text.lines().count())?;
        }
    }
}

/// The counters as people read them; with those of a while ago, rates.
fn rows(before: Option<&GuestStats>, now: &GuestStats) -> Vec<(&'static str, String)> {
    let used = now.memory_total_kib.saturating_sub(now.memory_available_kib);
    let of = |used: u64, total: u64| {
        format!("{} of {} ({})", human::size(used), human::size(total), human::percent(used, total))
    };
    // A guest that was restarted in between has counted from the start again: then there is no rate.
    let before = before.filter(|before| before.uptime_ms < now.uptime_ms && before.cpu_total_ms < now.cpu_total_ms);
    let cpu = match before {
        Some(before) => {
            let busy = now.cpu_busy_ms.saturating_sub(before.cpu_busy_ms);
            format!("{} busy", human::percent(busy, now.cpu_total_ms - before.cpu_total_ms))
        }
        None => format!("{} busy since its boot", human::percent(now.cpu_busy_ms, now.cpu_total_ms)),
    };
    let traffic = |total: u64, earlier: Option<u64>| match (earlier, before) {
        (Some(earlier), Some(before)) => {
            let per_second =
                u128::from(total.saturating_sub(earlier)) * 1000 / u128::from(now.uptime_ms - before.uptime_ms);
            format!("{} ({}/s)", human::size(total), human::size(u64::try_from(per_second).unwrap_or(u64::MAX)))
        }
        _ => human::size(total),
    };
    vec![
        ("up", human::took(Duration::from_millis(now.uptime_ms))),
        ("cpu", cpu),
        ("load", format!("{}.{:02}", now.load_1m_percent / 100, now.load_1m_percent % 100)),
        ("memory", of(used.saturating_mul(1024), now.memory_total_kib.saturating_mul(1024))),
        ("disk", of(now.disk_used_bytes, now.disk_total_bytes)),
        ("received", traffic(now.net_rx_bytes, before.map(|before| before.net_rx_bytes))),
        ("sent", traffic(now.net_tx_bytes, before.map(|before| before.net_tx_bytes))),
        ("processes", now.processes.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(uptime_ms: u64, cpu_busy_ms: u64, net_rx_bytes: u64) -> GuestStats {
        GuestStats {
            uptime_ms,
            cpu_busy_ms,
            cpu_total_ms: uptime_ms * 2,
            load_1m_percent: 105,
            memory_total_kib: 1 << 20,
            memory_available_kib: 3 << 18,
            disk_total_bytes: 8 << 30,
            disk_used_bytes: 1 << 30,
            net_rx_bytes,
            net_tx_bytes: 0,
            processes: 7,
        }
    }

    #[test]
    fn rates_are_between_two_looks_and_totals_since_the_boot() {
        let (first, second) = (stats(10_000, 2_000, 4096), stats(12_000, 3_000, 8192));
        let text = table::pairs(&rows(None, &first));
        assert!(text.contains("10 % busy since its boot") && text.contains("4 KiB\n"), "{text}");
        let text = table::pairs(&rows(Some(&first), &second));
        assert!(text.contains("25 % busy\n") && text.contains("8 KiB (2 KiB/s)"), "{text}");
        assert!(text.contains("256 MiB of 1 GiB (25 %)") && text.contains("1.05"), "{text}");
    }

    #[test]
    fn a_guest_that_began_anew_has_no_rate() {
        let text = table::pairs(&rows(Some(&stats(10_000, 2_000, 4096)), &stats(100, 50, 10)));
        assert!(text.contains("since its boot") && !text.contains("/s"), "{text}");
    }
}
