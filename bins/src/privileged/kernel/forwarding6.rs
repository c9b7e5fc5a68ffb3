//! IPv6 forwarding without making a router of the host's other interfaces.
//!
//! The kernel forwards by one switch, `conf.all.forwarding`. Writing it also makes every interface a router's, which forgets what
//! it learnt from routers, the default route among it, and hears of no new ones. A host would lose its IPv6 on our account. So
//! the interfaces are told to hear routers in any case while the switch is thrown, and are made a host's again after it: only
//! the bridge stays a router's. Cut off in between, they go on hearing routers.

use super::set_switch;
use crate::privileged::host::{HostError, HostResult};
use messages::ids::InterfaceName;
use std::io;
use std::path::{Path, PathBuf};

/// A directory for each interface, for those to come (`default`), and for the switch of all (`all`).
const SETTINGS: &str = "/proc/sys/net/ipv6/conf";
/// What `accept_ra` says (Documentation/networking/ip-sysctl.rst): only as a host, or also as a router.
const AS_A_HOST: &str = "1";
const IN_ANY_CASE: &str = "2";

/// Lets a bridge have addresses, whatever the host's defaults, and take nobody's word for routes.
pub(super) fn allow(bridge: &InterfaceName) -> HostResult<()> {
    let own = Path::new(SETTINGS).join(bridge.as_str());
    set_switch(&own.join("disable_ipv6"), "0")?;
    set_switch(&own.join("accept_ra"), "0")
}

/// Switches forwarding on, for the bridge's sake.
pub(super) fn enable(bridge: &InterfaceName) -> HostResult<()> {
    let settings = Path::new(SETTINGS);
    let switch = settings.join("all/forwarding");
    if read(&switch)?.as_deref() != Some("1") {
        let hosts = hosts(settings, bridge)?;
        for path in hosts.iter().filter(|host| host.hears_routers).map(|host| host.path.join("accept_ra")) {
            write(&path, IN_ANY_CASE)?;
        }
        let switched = write(&switch, "1");
        for host in &hosts {
            write(&host.path.join("forwarding"), "0")?;
            if host.hears_routers {
                write(&host.path.join("accept_ra"), AS_A_HOST)?;
            }
        }
        switched?;
    }
    set_switch(&settings.join(bridge.as_str()).join("forwarding"), "1")
}

/// An interface that is a host's, not a router's.
struct HostInterface {
    path: PathBuf,
    /// It takes routes from routers, in the kernel.
    hears_routers: bool,
}

fn hosts(settings: &Path, bridge: &InterfaceName) -> HostResult<Vec<HostInterface>> {
    let failed = |e: io::Error| HostError::new("list", SETTINGS, e);
    let mut hosts = Vec::new();
    for entry in std::fs::read_dir(settings).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let is_ours_or_all = path.ends_with("all") || path.ends_with(bridge.as_str());
        if !is_ours_or_all && read(&path.join("forwarding"))?.as_deref() == Some("0") {
            let hears_routers = read(&path.join("accept_ra"))?.as_deref() == Some(AS_A_HOST);
            hosts.push(HostInterface { path, hears_routers });
        }
    }
    Ok(hosts)
}

/// None where the interface is gone.
fn read(path: &Path) -> HostResult<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(HostError::new("read", path.display(), e)),
    }
}

fn write(path: &Path, value: &str) -> HostResult<()> {
    match std::fs::write(path, format!("{value}\n")) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(HostError::new("write", path.display(), e)),
        _ => Ok(()),
    }
}
