//! `--config-file`: one JSON document instead of API calls, in Firecracker's shape. Unknown keys are errors.

use crate::emu::api::bodies::{
    BootSource, Drive, Entropy, Logger, MachineConfig, Metrics, NetworkInterface, Serial, Vsock,
};
use crate::emu::api::request::Request;
use crate::emu::fault::Fault;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ConfigFile {
    boot_source: BootSource,
    #[serde(default)]
    drives: Vec<Drive>,
    machine_config: Option<MachineConfig>,
    #[serde(default)]
    network_interfaces: Vec<NetworkInterface>,
    vsock: Option<Vsock>,
    entropy: Option<Entropy>,
    serial: Option<Serial>,
    logger: Option<Logger>,
    metrics: Option<Metrics>,
    balloon: Option<Value>,
    cpu_config: Option<Value>,
    memory_hotplug: Option<Value>,
    mmds_config: Option<Value>,
    #[serde(default)]
    pmem: Vec<Value>,
}

/// The calls that a config file stands for, in the order in which Firecracker makes them; the start is the last.
///
/// # Errors
/// Not JSON, unknown keys, or what is not supported.
pub fn requests(text: &str) -> Result<Vec<Request>, Fault> {
    let file: ConfigFile = serde_json::from_str(text)?;
    let unsupported = [
        (file.balloon.is_some(), "the balloon device"),
        (file.cpu_config.is_some(), "a custom CPU template"),
        (file.memory_hotplug.is_some(), "memory hotplug"),
        (file.mmds_config.is_some(), "MMDS"),
        (!file.pmem.is_empty(), "a pmem device"),
    ];
    if let Some((_, what)) = unsupported.iter().find(|(present, _)| *present) {
        return Err(Fault::NotSupported(what));
    }
    let mut requests = Vec::new();
    requests.extend(file.logger.map(Request::Logger));
    requests.extend(file.metrics.map(Request::Metrics));
    requests.extend(file.machine_config.map(|config| Request::MachineConfig(config.into())));
    requests.push(Request::BootSource(file.boot_source));
    requests.extend(file.drives.into_iter().map(Request::Drive));
    requests.extend(file.network_interfaces.into_iter().map(Request::Network));
    requests.extend(file.vsock.map(Request::Vsock));
    requests.extend(file.entropy.map(Request::Entropy));
    requests.extend(file.serial.map(Request::Serial));
    requests.push(Request::InstanceStart);
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emu::phase::Operation;

    #[test]
    fn a_file_is_a_list_of_calls_that_ends_with_the_start() {
        let text = r#"{"boot-source":{"kernel_image_path":"k"},"machine-config":{"vcpu_count":1,"mem_size_mib":128},
            "drives":[{"drive_id":"a","is_root_device":true,"is_read_only":true,"path_on_host":"p"}],"balloon":null}"#;
        let operations: Vec<_> = requests(text).unwrap().iter().map(Request::operation).collect();
        assert_eq!(
            operations,
            [Operation::MachineConfig, Operation::BootSource, Operation::Drives, Operation::InstanceStart]
        );
    }

    #[test]
    fn what_is_missing_unknown_or_unsupported_is_refused() {
        assert!(requests("{}").unwrap_err().to_string().contains("missing field `boot-source`"));
        let with = |rest| requests(&format!(r#"{{"boot-source":{{"kernel_image_path":"k"}},{rest}}}"#)).unwrap_err();
        assert!(with(r#""bot":1"#).to_string().contains("unknown field `bot`"));
        assert!(with(r#""pmem":[{}]"#).to_string().contains("a pmem device is not supported"));
    }
}
