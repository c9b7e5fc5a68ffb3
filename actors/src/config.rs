//! The config file: every key optional, unknown keys are errors, bad values are refused at load. Reads one file, decides nothing.

use crate::catalog::CatalogSource;
use messages::ids::{InterfaceName, KernelName, Reference};
use messages::privileged::Subnet;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The image of a VM that names none.
pub const DEFAULT_IMAGE: &str = "debian-bookworm";
/// The kernel of an image that names none.
pub const DEFAULT_KERNEL: &str = "debian-cloud-6.12";

/// Says why the config cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("failed to read the config `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the config `{}` is wrong", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
}

/// Which VMM is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmmSetting {
    /// Firecracker if it is installed and KVM really starts a VM, else emulated.
    #[default]
    Auto,
    Firecracker,
    Emulated,
}

/// An IPv4 network: `172.16.0.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub network: Ipv4Addr,
    pub prefix: u8,
}

impl std::str::FromStr for Cidr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not an IPv4 network such as 172.16.0.0/24, with a prefix of 16 to 29");
        let (network, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let (network, prefix): (Ipv4Addr, u8) =
            (network.parse().map_err(|_| wrong())?, prefix.parse().map_err(|_| wrong())?);
        let hosts = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        if !(16..=29).contains(&prefix) || u32::from(network) & hosts != 0 {
            return Err(wrong());
        }
        Ok(Self { network, prefix })
    }
}

/// Whether guests have IPv6: `auto`, `off`, or a network such as `fd12:3456:789a::/64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cidr6 {
    /// Where the host has it, with a network that derives from the instance.
    #[default]
    Auto,
    Off,
    /// In any case, with this /64.
    Network(Ipv6Addr),
}

impl std::str::FromStr for Cidr6 {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let network = || {
            let network: Ipv6Addr = text.strip_suffix("/64")?.parse().ok()?;
            let octets = network.octets();
            // Unique local, and locally assigned (RFC 4193): guests go by the host's address, so theirs mean nothing outside.
            (octets[0] == 0xfd && octets[8..] == [0; 8]).then_some(Self::Network(network))
        };
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => network().ok_or_else(|| {
                format!("`{text}` is neither auto, off, nor a /64 in fd00::/8 such as fd12:3456:789a::/64")
            }),
        }
    }
}

impl std::fmt::Display for Cidr6 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Network(network) => write!(f, "{network}/64"),
        }
    }
}

/// Files copied into every VM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSync {
    pub host: PathBuf,
    pub guest: String,
    pub mode: Option<String>,
}

/// Sizes of a VM that names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmDefaults {
    pub vcpu: Option<u8>,
    pub memory_mib: Option<u32>,
    #[serde(deserialize_with = "optional_size")]
    pub disk_size: Option<u64>,
}

/// Everything that can be configured.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub log_level: String,
    pub vmm: VmmSetting,
    pub firecracker_bin: Option<PathBuf>,
    pub default_image_name: Reference,
    pub default_kernel: KernelName,
    #[serde(deserialize_with = "key_path")]
    pub ssh_key_path: Option<PathBuf>,
    #[serde(deserialize_with = "optional_duration")]
    pub auto_stop_stale_after: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    pub stats_poll_interval: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    pub metrics_poll_interval: Option<Duration>,
    /// Derived from the instance when absent.
    pub bridge_name: Option<InterfaceName>,
    /// The first address of `cidr` when absent.
    pub bridge_ip: Option<Ipv4Addr>,
    #[serde(deserialize_with = "from_text")]
    pub cidr: Cidr,
    #[serde(deserialize_with = "from_text")]
    pub cidr6: Cidr6,
    pub tap_pool_size: u16,
    #[serde(deserialize_with = "one_or_many")]
    pub default_dns: Vec<Ipv4Addr>,
    pub debian_mirror: Option<String>,
    pub catalogs: Vec<CatalogSource>,
    pub insecure_registries: Vec<String>,
    #[serde(deserialize_with = "optional_size")]
    pub cache_max_size: Option<u64>,
    pub web_listen_addr: Option<SocketAddr>,
    pub vm_defaults: VmDefaults,
    pub file_sync: Vec<FileSync>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log_level: "info".to_owned(),
            vmm: VmmSetting::Auto,
            firecracker_bin: None,
            default_image_name: DEFAULT_IMAGE.parse().expect("a name of lower-case letters and a hyphen"),
            default_kernel: DEFAULT_KERNEL.parse().expect("a name of lower-case letters, digits, a dot and hyphens"),
            ssh_key_path: None,
            auto_stop_stale_after: None,
            stats_poll_interval: None,
            metrics_poll_interval: None,
            bridge_name: None,
            bridge_ip: None,
            cidr: Cidr { network: Ipv4Addr::new(172, 16, 0, 0), prefix: 24 },
            cidr6: Cidr6::Auto,
            tap_pool_size: 4,
            default_dns: Vec::new(),
            debian_mirror: None,
            catalogs: Vec::new(),
            insecure_registries: Vec::new(),
            cache_max_size: None,
            web_listen_addr: None,
            vm_defaults: VmDefaults::default(),
            file_sync: Vec::new(),
        }
    }
}

/// A config, and which keys the file set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    pub config: Config,
    /// Top-level keys, and `vm_defaults.*`, that came from the file; all others are built in.
    pub from_file: BTreeSet<String>,
}

impl Config {
    /// Reads the config; no file is an empty one.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Loaded::default()),
            Err(source) => return Err(ConfigError::Read { path: path.to_path_buf(), source }),
        };
        Self::parse(&text).map_err(|source| ConfigError::Parse { path: path.to_path_buf(), source: Box::new(source) })
    }

    /// Parses a config's text.
    ///
    /// # Errors
    /// Unknown keys and bad values.
    pub fn parse(text: &str) -> Result<Loaded, toml::de::Error> {
        let config: Self = toml::from_str(text)?;
        config.subnet().map_err(toml::de::Error::custom)?;
        let table: toml::Table = toml::from_str(text)?;
        let from_file = table
            .iter()
            .flat_map(|(key, value)| match value.as_table().filter(|_| key == "vm_defaults") {
                Some(table) => table.keys().map(|inner| format!("{key}.{inner}")).collect(),
                None => vec![key.clone()],
            })
            .collect();
        Ok(Loaded { config, from_file })
    }

    /// The bridge's network, with the host's own address in it, without IPv6: that is the instance's.
    ///
    /// # Errors
    /// A sentence, where `bridge_ip` is not a host address of `cidr`.
    pub fn subnet(&self) -> Result<Subnet, String> {
        let Cidr { network, prefix } = self.cidr;
        let first = u32::from(network);
        let last = first | u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        let gateway = self.bridge_ip.unwrap_or_else(|| Ipv4Addr::from(first + 1));
        if u32::from(gateway) <= first || u32::from(gateway) >= last {
            return Err(format!("bridge_ip {gateway} is not a host's address in cidr {network}/{prefix}"));
        }
        Ok(Subnet { gateway, prefix, ipv6: None })
    }
}

/// Parses `512M`, `8GiB`, `1.5T` or plain bytes; K, M, G and T are powers of 1024.
///
/// # Errors
/// A sentence.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size such as 512M, 8G or 1073741824");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    // Thousandths, so that 1.5G is exact and nothing is computed in floating point.
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if fraction.is_empty() || fraction.len() > 3 {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let fraction: u64 = format!("{fraction:0<3}").parse().map_err(|_| wrong())?;
    let bytes = u128::from(unit) * (u128::from(whole) * 1000 + u128::from(fraction)) / 1000;
    u64::try_from(bytes).map_err(|_| wrong())
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

fn optional_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    match NumberOrText::deserialize(deserializer)? {
        NumberOrText::Number(bytes) => Ok(Some(bytes)),
        NumberOrText::Text(text) => parse_size(&text).map(Some).map_err(D::Error::custom),
    }
}

/// `0` and `off` switch a periodic job off.
fn optional_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    match NumberOrText::deserialize(deserializer)? {
        NumberOrText::Number(seconds) => Ok((seconds > 0).then(|| Duration::from_secs(seconds))),
        NumberOrText::Text(text) if text == "off" => Ok(None),
        NumberOrText::Text(text) => humantime::parse_duration(&text)
            .map(|duration| (!duration.is_zero()).then_some(duration))
            .map_err(|error| D::Error::custom(format!("`{text}` is not a duration such as 30s or 2h: {error}"))),
    }
}

fn from_text<'de, D: Deserializer<'de>, T: std::str::FromStr<Err = String>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Ipv4Addr>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(Ipv4Addr),
        Many(Vec<Ipv4Addr>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(address) => vec![address],
        OneOrMany::Many(addresses) => addresses,
    })
}

/// A relative path would mean another file for each directory that the daemon is started from.
fn key_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.is_absolute() || path.starts_with("~") {
        Ok(Some(path))
    } else {
        Err(D::Error::custom(format!("`{}` must be absolute or begin with ~/", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_config_is_the_documented_default() {
        let loaded = Config::parse("").unwrap();
        assert_eq!(loaded, Loaded::default());
        assert_eq!(
            loaded.config.subnet().unwrap(),
            Subnet { gateway: Ipv4Addr::new(172, 16, 0, 1), prefix: 24, ipv6: None }
        );
    }

    #[test]
    fn every_key_of_the_surface_is_known() {
        let text = r#"
            log_level = "debug"
            vmm = "emulated"
            firecracker_bin = "/usr/bin/firecracker"
            default_image_name = "alpine"
            default_kernel = "debian-cloud-6.1"
            ssh_key_path = "~/.ssh/id_ed25519"
            auto_stop_stale_after = "2h"
            stats_poll_interval = 5
            metrics_poll_interval = "off"
            bridge_name = "br-banger"
            bridge_ip = "172.16.4.9"
            cidr = "172.16.4.0/24"
            cidr6 = "fd12:3456:789a:1::/64"
            tap_pool_size = 2
            default_dns = "1.1.1.1"
            debian_mirror = "http://mirror.example/debian"
            catalogs = ["/etc/banger/catalog.toml", "https://example.org/catalog.toml"]
            insecure_registries = ["127.0.0.1:5000"]
            cache_max_size = "20GiB"
            web_listen_addr = "127.0.0.1:8080"
            [vm_defaults]
            vcpu = 2
            memory_mib = 1024
            disk_size = "1.5G"
            [[file_sync]]
            host = "/etc/hosts"
            guest = "/etc/hosts.host"
            mode = "0644"
        "#;
        let Loaded { config, from_file } = Config::parse(text).unwrap();
        assert_eq!(config.vm_defaults.disk_size, Some(3 << 29));
        assert_eq!((config.stats_poll_interval, config.metrics_poll_interval), (Some(Duration::from_secs(5)), None));
        assert_eq!(config.subnet().unwrap().gateway, Ipv4Addr::new(172, 16, 4, 9));
        assert_eq!(config.cidr6.to_string(), "fd12:3456:789a:1::/64");
        assert!(
            from_file.contains("vm_defaults.vcpu") && from_file.contains("cidr") && !from_file.contains("vm_defaults")
        );
    }

    #[test]
    fn wrong_configs_are_refused_naming_the_key_or_value() {
        for (text, named) in [
            ("colour = true", "colour"),
            ("[vm_defaults]\ncpu = 1", "cpu"),
            ("ssh_key_path = \"keys/id\"", "keys/id"),
            ("cidr = \"172.16.0.1/24\"", "172.16.0.1/24"),
            ("cidr = \"172.16.0.0/8\"", "172.16.0.0/8"),
            ("bridge_ip = \"10.0.0.1\"", "10.0.0.1"),
            ("cidr6 = \"on\"", "on"),
            ("cidr6 = \"2001:db8::/64\"", "2001:db8::/64"),
            ("cidr6 = \"fd12::1/64\"", "fd12::1/64"),
            ("cidr6 = \"fd12::/48\"", "fd12::/48"),
            ("vmm = \"qemu\"", "qemu"),
            ("cache_max_size = \"many\"", "many"),
            ("catalogs = [\"mine.toml\"]", "mine.toml"),
            ("catalogs = [\"ftp://example.org/x\"]", "ftp://example.org/x"),
            ("auto_stop_stale_after = \"soon\"", "soon"),
        ] {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_size("3"), Ok(3));
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("8 GiB"), Ok(8 << 30));
        for bad in ["", "G", "1.2345G", "-1", "1e3", "1X", "99999999999999T", "1.G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
