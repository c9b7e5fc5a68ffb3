//! `banger vm …`, apart from what runs commands in a guest (`vm_run`) and from logs.

use super::args::{CreateArgs, DeleteArgs, ListArgs, SpecArgs, VmCommand, VmFilter};
use super::client::{Client, unexpected};
use super::failure::{Failure, Outcome};
use super::printable::brief;
use super::{human, json, logs, output::error_text, output::say, ssh, stats, table, vm_run};
use messages::guest::GuestPorts;
use messages::ids::VmRef;
use messages::reply::{Reply, VmOutcome};
use messages::request::{Force, RequestBody};
use messages::vm::{Lifetime, NetworkMode, Provenance, RestartPolicy, VmSpec, VmState, VmView};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// Runs one `vm` command.
pub(super) async fn run(client: &Client, command: VmCommand) -> Outcome {
    match command {
        VmCommand::Run(args) => vm_run::run(client, *args).await,
        VmCommand::Exec(args) => vm_run::exec(client, *args).await,
        VmCommand::Ssh(args) => ssh::ssh(client, *args).await,
        VmCommand::Connect { host } => ssh::connect(client, &host).await,
        VmCommand::Create(args) => create(client, *args).await,
        VmCommand::Start(args) => {
            let body = RequestBody::StartVms { vms: args.vms.vms, wait: args.wait.map(Into::into) };
            change(client, body, "started", "was running").await
        }
        VmCommand::Stop(args) => {
            let timeout_ms = args.timeout.map(milliseconds);
            let body = RequestBody::StopVms { vms: args.vms.vms, timeout_ms, force: Force::No };
            change(client, body, "stopped", "was stopped").await
        }
        VmCommand::Restart(args) => {
            let timeout_ms = args.stop.timeout.map(milliseconds);
            let wait = args.wait.map(Into::into);
            let body = RequestBody::RestartVms { vms: args.stop.vms.vms, timeout_ms, wait };
            change(client, body, "restarted", "was restarted").await
        }
        VmCommand::Kill(args) => change(client, RequestBody::KillVms { vms: args.vms }, "killed", "was stopped").await,
        VmCommand::Delete(args) => delete(client, args).await,
        VmCommand::List(args) => list(client, &args).await,
        VmCommand::Show(args) => show(client, args.vm).await,
        VmCommand::Logs(args) => logs::vm(client, args).await,
        VmCommand::Rename(args) => match client.ask(RequestBody::RenameVm { vm: args.vm, name: args.name }).await? {
            Reply::Vm(view) => made(client, &view),
            other => Err(unexpected(&other)),
        },
        VmCommand::Stats(args) => stats::run(client, args).await,
        VmCommand::Ports(args) => match client.ask(RequestBody::VmPorts { vm: args.vm }).await? {
            Reply::Ports(ports) => show_ports(client, &ports),
            other => Err(unexpected(&other)),
        },
    }
}

/// What is asked of the daemon, from the flags.
pub(super) fn spec(args: SpecArgs, restart: RestartPolicy, lifetime: Lifetime) -> VmSpec {
    VmSpec {
        name: args.name,
        image: args.image,
        kernel: args.kernel,
        vcpus: args.vcpu,
        memory_mib: args.memory,
        disk_bytes: args.disk_size,
        network: args.net,
        net_allow: args.net_allow,
        labels: args.labels,
        restart,
        lifetime,
    }
}

/// A flag's time for the wire; flags are a day at most.
pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn create(client: &Client, args: CreateArgs) -> Outcome {
    let spec = spec(args.spec, args.restart, Lifetime::Kept);
    let body = RequestBody::CreateVm { spec, start: !args.no_start, wait: args.wait.map(Into::into) };
    match client.ask(body).await? {
        Reply::Vm(view) => made(client, &view),
        other => Err(unexpected(&other)),
    }
}

/// Prints the name, so that `VM=$(banger vm create)` works.
fn made(client: &Client, view: &VmView) -> Outcome {
    if client.output.json {
        client.output.value(&json::vm(view))?;
    } else {
        client.output.data(&format!("{}\n", view.name))?;
    }
    if let Some(warning) = &view.warning {
        client.output.warn(warning);
    }
    Ok(0)
}

async fn delete(client: &Client, args: DeleteArgs) -> Outcome {
    let force = if args.force { Force::Yes } else { Force::No };
    let body = RequestBody::DeleteVms { vms: args.vms.vms, force, only_ephemeral: false };
    change(client, body, "deleted", "was deleted").await
}

/// Sends a request over several VMs and tells what became of each. Fails as the first that failed did.
async fn change(client: &Client, body: RequestBody, done: &str, already: &str) -> Outcome {
    match client.ask(body).await? {
        Reply::Outcomes(outcomes) => tell(client, &outcomes, done, already),
        other => Err(unexpected(&other)),
    }
}

fn tell(client: &Client, outcomes: &[VmOutcome], done: &str, already: &str) -> Outcome {
    if client.output.json {
        client.output.value(&json::array(outcomes, json::outcome))?;
    }
    for outcome in outcomes {
        match &outcome.result {
            Ok(change) => {
                let what = if change.changed { done } else { already };
                let how = change.how.as_ref().map(|how| format!(" ({how})")).unwrap_or_default();
                client.output.remark(&format!("{} {what}{how}", change.name));
            }
            Err(error) if !client.output.json => say(error_text(error).trim_end()),
            Err(_) => {}
        }
    }
    let first = outcomes.iter().find_map(|outcome| outcome.result.as_ref().err());
    first.map_or(Ok(0), |error| Err(Failure::Said(error.kind.exit_code())))
}

async fn list(client: &Client, args: &ListArgs) -> Outcome {
    let views = match client.ask(RequestBody::ListVms).await? {
        Reply::Vms(views) => views,
        other => return Err(unexpected(&other)),
    };
    let wanted: Vec<Arc<VmView>> =
        views.into_iter().filter(|view| args.filters.iter().all(|f| matches(view, f))).collect();
    if client.output.json {
        client.output.value(&json::array(&wanted, |view| json::vm(view)))?;
    } else if wanted.is_empty() {
        let why = if args.filters.is_empty() { "no VMs: `banger vm run` makes one" } else { "no VM matches" };
        client.output.remark(why);
    } else {
        let now = human::now();
        let rows: Vec<_> = wanted.iter().map(|view| row(view, now)).collect();
        let headings = ["NAME", "ID", "STATE", "IMAGE", "VCPU", "MEMORY", "DISK", "ADDRESS", "AGE"];
        client.output.data(&table::render(&headings, &rows, table::terminal_width()))?;
    }
    Ok(0)
}

fn matches(view: &VmView, filter: &VmFilter) -> bool {
    match filter {
        VmFilter::State(state) => view.state == *state,
        VmFilter::Image(image) => view.image.as_str() == image,
        VmFilter::Label { key, value } => {
            view.labels.iter().any(|(k, v)| k == key && value.as_ref().is_none_or(|value| v == value))
        }
    }
}

fn row(view: &VmView, now: Duration) -> [Cow<'_, str>; 9] {
    [
        view.name.as_str().into(),
        view.id.to_string().into(),
        state(view).into(),
        view.image.as_str().into(),
        view.size.vcpus.to_string().into(),
        human::size(u64::from(view.size.memory_mib) << 20).into(),
        human::size(view.size.disk_bytes).into(),
        view.address.map_or_else(|| "-".into(), |address| address.to_string().into()),
        human::age(now.saturating_sub(Duration::from_millis(view.created_at_ms))).into(),
    ]
}

fn state(view: &VmView) -> &'static str {
    match (view.state, view.readiness) {
        (VmState::Running, None) => "running (booting)",
        (state, _) => state.as_str(),
    }
}

async fn show(client: &Client, vm: VmRef) -> Outcome {
    match client.ask(RequestBody::ShowVm { vm }).await? {
        Reply::Vm(view) if client.output.json => client.output.value(&json::vm(&view))?,
        Reply::Vm(view) => client.output.data(&table::pairs(&details(&view)))?,
        other => return Err(unexpected(&other)),
    }
    Ok(0)
}

fn details(view: &VmView) -> Vec<(&'static str, String)> {
    let from = |provenance: Provenance| match provenance {
        Provenance::Flag => "from the flag",
        Provenance::Config => "from the config",
        Provenance::Host => "from this host's size",
        Provenance::BuiltIn => "built in",
    };
    let readiness = view.readiness.map_or("none", |level| match level {
        messages::vm::Readiness::Agent => "agent",
        messages::vm::Readiness::System => "system",
        messages::vm::Readiness::Ssh => "ssh",
    });
    let labels: Vec<String> = view.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let size = &view.size;
    let network = match view.network {
        NetworkMode::Nat => "nat",
        NetworkMode::None => "none",
    };
    let mut rows = vec![
        ("name", view.name.to_string()),
        ("id", view.id.to_string()),
        ("state", view.state.as_str().to_owned()),
        ("readiness", readiness.to_owned()),
        ("image", view.image.to_string()),
        ("kernel", view.kernel.to_string()),
        ("vcpu", format!("{} ({})", size.vcpus, from(size.vcpus_from))),
        ("memory", format!("{} ({})", human::size(u64::from(size.memory_mib) << 20), from(size.memory_from))),
        ("disk", format!("{} ({})", human::size(size.disk_bytes), from(size.disk_from))),
        ("network", network.to_owned()),
        ("created", human::timestamp(view.created_at_ms)),
    ];
    let mut push = |key, value: Option<String>| rows.extend(value.map(|value| (key, value)));
    push("started", view.started_at_ms.map(human::timestamp));
    let allowed: Vec<String> = view.net_allow.iter().map(ToString::to_string).collect();
    push("may reach", (!allowed.is_empty()).then(|| allowed.join(", ")));
    push("address", view.address.map(|address| address.to_string()));
    push("address6", view.address6.map(|address| address.to_string()));
    push("vmm pid", view.vmm_pid.map(|pid| pid.to_string()));
    push("operations", (view.operations > 0).then(|| view.operations.to_string()));
    push("labels", (!labels.is_empty()).then(|| labels.join(", ")));
    push("restart", (view.restart == RestartPolicy::Always).then(|| "always".to_owned()));
    push("lifetime", (view.lifetime == Lifetime::Ephemeral).then(|| "deleted when its command ends".to_owned()));
    push("ssh host key", view.ssh_host_key.as_ref().map(actors::ssh::host_key::fingerprint));
    push("last error", view.last_error.clone());
    push("warning", view.warning.clone());
    rows
}

fn show_ports(client: &Client, ports: &GuestPorts) -> Outcome {
    if client.output.json {
        client.output.value(&json::ports(ports))?;
    } else if ports.ports.is_empty() {
        client.output.remark("nothing listens");
    } else {
        let rows: Vec<Vec<String>> = ports
            .ports
            .iter()
            .map(|port| {
                vec![
                    brief(&port.protocol),
                    port.address.to_string(),
                    port.port.to_string(),
                    port.process.as_deref().map_or_else(|| "-".to_owned(), brief),
                    port.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                ]
            })
            .collect();
        let headings = ["PROTOCOL", "ADDRESS", "PORT", "PROCESS", "PID"];
        client.output.data(&table::render(&headings, &rows, table::terminal_width()))?;
    }
    Ok(0)
}
