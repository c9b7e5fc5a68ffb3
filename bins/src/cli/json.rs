//! The shapes of `--json`. Stable: fields are added, never renamed or removed; `integration` holds them against snapshots.

use actors::ssh::host_key;
use messages::guest::{GuestPorts, GuestStats};
use messages::image::{CatalogEntry, ImageDetails, ImageView, KernelDetails, KernelView, LayerView};
use messages::reply::{DaemonStatus, VmOutcome};
use messages::vm::{SshPublicKey, VmSize, VmView};
use serde_json::{Map, Value, json};

use super::output::error_value;

/// One VM.
pub(super) fn vm(view: &VmView) -> Value {
    json!({
        "id": view.id.to_string(),
        "name": view.name,
        "state": view.state,
        "readiness": view.readiness,
        "image": view.image,
        "kernel": view.kernel,
        "size": size(&view.size),
        "network": view.network,
        "net_allow": view.net_allow.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "address": view.address,
        "address6": view.address6,
        "labels": labels(&view.labels),
        "restart": view.restart,
        "ephemeral": view.lifetime == messages::vm::Lifetime::Ephemeral,
        "created_at_ms": view.created_at_ms,
        "started_at_ms": view.started_at_ms,
        "vmm_pid": view.vmm_pid,
        "operations": view.operations,
        "last_error": view.last_error,
        "warning": view.warning,
        "ssh_host_key": view.ssh_host_key.as_ref().map(ssh_key),
    })
}

fn ssh_key(key: &SshPublicKey) -> Value {
    json!({ "line": host_key::line(key), "fingerprint": host_key::fingerprint(key) })
}

fn size(size: &VmSize) -> Value {
    json!({
        "vcpus": size.vcpus,
        "memory_mib": size.memory_mib,
        "disk_bytes": size.disk_bytes,
        "vcpus_from": size.vcpus_from,
        "memory_from": size.memory_from,
        "disk_from": size.disk_from,
    })
}

fn labels(labels: &[(String, String)]) -> Value {
    Value::Object(labels.iter().map(|(key, value)| (key.clone(), Value::from(value.clone()))).collect::<Map<_, _>>())
}

/// What became of one VM of several.
pub(super) fn outcome(outcome: &VmOutcome) -> Value {
    match &outcome.result {
        Ok(change) => json!({
            "asked": outcome.asked,
            "id": change.id.to_string(),
            "name": change.name,
            "changed": change.changed,
            "how": change.how,
        }),
        Err(error) => json!({ "asked": outcome.asked, "error": error_value(error) }),
    }
}

/// One image.
pub(super) fn image(view: &ImageView) -> Value {
    json!({
        "name": view.name,
        "digest": view.digest,
        "size_bytes": view.size_bytes,
        "disk_bytes": view.disk_bytes,
        "kernel": view.kernel,
        "source": view.source,
        "created_at_ms": view.created_at_ms,
        "used_by": view.used_by,
        "config": view.config,
    })
}

/// Everything about an image.
pub(super) fn image_details(details: &ImageDetails) -> Value {
    let mut value = image(&details.image);
    let layer =
        |layer: &LayerView| json!({ "digest": layer.digest, "bytes": layer.bytes, "shared_with": layer.shared_with });
    value["pulled_digest"] = json!(details.pulled_digest);
    value["parent"] = json!(details.parent);
    value["external"] = json!(details.external);
    value["layers"] = details.layers.iter().map(layer).collect();
    value["shared_bytes"] = json!(details.shared_bytes);
    value["own_bytes"] = json!(details.own_bytes);
    value
}

/// One kernel.
pub(super) fn kernel(view: &KernelView) -> Value {
    json!({
        "name": view.name,
        "version": view.version,
        "digest": view.digest,
        "disk_bytes": view.disk_bytes,
        "source": view.source,
        "created_at_ms": view.created_at_ms,
        "used_by": view.used_by,
    })
}

/// One kernel, as `kernel show` has it.
pub(super) fn kernel_details(details: &KernelDetails) -> Value {
    let mut value = kernel(&details.kernel);
    value["command_line"] = details.command_line.clone().into();
    value["checked_by"] = details.checked_by.clone().into();
    value
}

/// One entry of a catalog.
pub(super) fn catalog_entry(entry: &CatalogEntry) -> Value {
    json!({
        "name": entry.name,
        "kind": entry.kind,
        "description": entry.description,
        "present": entry.present,
        "origin": entry.origin,
    })
}

/// A guest's counters.
pub(super) fn stats(stats: &GuestStats) -> Value {
    json!({
        "uptime_ms": stats.uptime_ms,
        "cpu_busy_ms": stats.cpu_busy_ms,
        "cpu_total_ms": stats.cpu_total_ms,
        "load_1m_percent": stats.load_1m_percent,
        "memory_total_kib": stats.memory_total_kib,
        "memory_available_kib": stats.memory_available_kib,
        "disk_total_bytes": stats.disk_total_bytes,
        "disk_used_bytes": stats.disk_used_bytes,
        "net_rx_bytes": stats.net_rx_bytes,
        "net_tx_bytes": stats.net_tx_bytes,
        "processes": stats.processes,
    })
}

/// A guest's listening sockets.
pub(super) fn ports(ports: &GuestPorts) -> Value {
    let port = |port: &messages::guest::ListeningPort| {
        json!({
            "protocol": port.protocol,
            "address": port.address,
            "port": port.port,
            "process": port.process,
            "pid": port.pid,
        })
    };
    Value::Array(ports.ports.iter().map(port).collect())
}

/// The daemon.
pub(super) fn daemon(status: &DaemonStatus) -> Value {
    json!({
        "running": true,
        "pid": status.pid,
        "version": status.build,
        "protocol": status.generation,
        "socket": status.socket,
        "state_dir": status.state_dir,
        "uptime_ms": status.uptime_ms,
        "instance": status.instance.to_string(),
        "vms_running": status.vms_running,
        "vms_total": status.vms_total,
        "images": status.images,
        "kernels": status.kernels,
        "vmm": status.vmm,
        "helper": match &status.helper {
            Ok(version) => json!({ "reachable": true, "version": version }),
            Err(reason) => json!({ "reachable": false, "reason": reason }),
        },
        "dns": {
            "names": status.dns.names,
            "loopback": listener(&status.dns.loopback),
            "bridge": listener(&status.dns.bridge),
            "routed": match &status.dns.routed {
                Ok(()) => json!({ "by_resolved": true }),
                Err(reason) => json!({ "by_resolved": false, "reason": reason }),
            },
        },
        "rss_kib": status.rss_kib,
    })
}

fn listener(at: &Result<String, String>) -> Value {
    match at {
        Ok(address) => json!({ "listens": true, "address": address }),
        Err(reason) => json!({ "listens": false, "reason": reason }),
    }
}

/// An array of them.
pub(super) fn array<T>(items: &[T], one: fn(&T) -> Value) -> Value {
    Value::Array(items.iter().map(one).collect())
}
