//! `banger config …`: reads the file as the daemon does. Needs no daemon.

use super::args::ConfigCommand;
use super::failure::{Failure, Outcome};
use super::output::Output;
use super::{human, table};
use actors::config::{Config, Loaded, VmmSetting};
use actors::paths::Paths;
use messages::error::{ErrorKind, WireError};
use serde_json::{Map, Value, json};

/// Runs one `config` command.
pub(super) fn run(output: Output, command: &ConfigCommand) -> Outcome {
    let paths = Paths::from_env().map_err(|error| Failure::io_only(ErrorKind::Usage, &error))?;
    let file = &paths.config_file;
    let loaded = Config::load(file).map_err(|error| {
        // toml's message has lines of its own that point at the place.
        let mut error = WireError::from_error(ErrorKind::Usage, &error);
        error.chain.iter_mut().for_each(|line| line.truncate(line.trim_end().len()));
        Failure::from(error)
    })?;
    match command {
        ConfigCommand::Check => {
            if output.json {
                output.value(&json!({ "file": file, "exists": file.exists(), "set": loaded.from_file }))?;
            } else if file.exists() {
                output.data(&format!("{} is fine, {} keys set\n", file.display(), loaded.from_file.len()))?;
            } else {
                output.data(&format!("{} does not exist, which is fine\n", file.display()))?;
            }
        }
        ConfigCommand::Show { origin } => show(output, &loaded, &file.display().to_string(), *origin)?,
    }
    Ok(0)
}

fn show(output: Output, loaded: &Loaded, file: &str, origin: bool) -> Result<(), Failure> {
    let from = |key: &str| if loaded.from_file.contains(key) { file } else { "built in" };
    let settings = settings(&loaded.config);
    if output.json {
        let value: Map<String, Value> = settings
            .into_iter()
            .map(|(key, value)| (key.to_owned(), json!({ "value": value, "origin": from(key) })))
            .collect();
        return output.value(&Value::Object(value));
    }
    let shown = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        other => other.to_string(),
    };
    if origin {
        let rows: Vec<Vec<String>> =
            settings.iter().map(|(key, value)| vec![(*key).to_owned(), shown(value), from(key).to_owned()]).collect();
        output.data(&table::render(&["KEY", "VALUE", "FROM"], &rows, table::terminal_width()))
    } else {
        let rows: Vec<(&str, String)> = settings.iter().map(|(key, value)| (*key, shown(value))).collect();
        output.data(&table::pairs(&rows))
    }
}

/// Every key of `docs/configuration.md`, in its order.
fn settings(config: &Config) -> Vec<(&'static str, Value)> {
    let vmm = match config.vmm {
        VmmSetting::Auto => "auto",
        VmmSetting::Firecracker => "firecracker",
        VmmSetting::Emulated => "emulated",
    };
    let time = |duration: Option<std::time::Duration>| duration.map(|d| humantime::format_duration(d).to_string());
    let defaults = &config.vm_defaults;
    let files: Vec<Value> = config
        .file_sync
        .iter()
        .map(|file| json!({ "host": file.host, "guest": file.guest, "mode": file.mode }))
        .collect();
    vec![
        ("log_level", json!(config.log_level)),
        ("vmm", json!(vmm)),
        ("firecracker_bin", json!(config.firecracker_bin)),
        ("default_image_name", json!(config.default_image_name)),
        ("default_kernel", json!(config.default_kernel)),
        ("ssh_key_path", json!(config.ssh_key_path)),
        ("auto_stop_stale_after", json!(time(config.auto_stop_stale_after))),
        ("stats_poll_interval", json!(time(config.stats_poll_interval))),
        ("metrics_poll_interval", json!(time(config.metrics_poll_interval))),
        ("bridge_name", json!(config.bridge_name)),
        ("bridge_ip", json!(config.bridge_ip)),
        ("cidr", json!(format!("{}/{}", config.cidr.network, config.cidr.prefix))),
        ("cidr6", json!(config.cidr6.to_string())),
        ("tap_pool_size", json!(config.tap_pool_size)),
        ("default_dns", json!(config.default_dns)),
        ("debian_mirror", json!(config.debian_mirror)),
        ("catalogs", json!(config.catalogs)),
        ("insecure_registries", json!(config.insecure_registries)),
        ("cache_max_size", json!(config.cache_max_size.map(human::size))),
        ("web_listen_addr", json!(config.web_listen_addr)),
        ("vm_defaults.vcpu", json!(defaults.vcpu)),
        ("vm_defaults.memory_mib", json!(defaults.memory_mib)),
        ("vm_defaults.disk_size", json!(defaults.disk_size.map(human::size))),
        ("file_sync", json!(files)),
    ]
}
