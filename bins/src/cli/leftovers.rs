//! Networks that no VM uses, as `daemon root stop` finds them: read from `/sys`, asks nobody and changes nothing.

use messages::ids::InstanceId;
use messages::privileged::{TapNumber, interface_alias, tap_name};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Where the kernel describes interfaces.
const INTERFACES: &str = "/sys/class/net";

/// What is known of one instance's taps.
#[derive(Clone, Copy, Debug, Default)]
struct Taps {
    ours: usize,
    foreign: usize,
    used: usize,
}

/// The instances of this owner that have taps, none of which a VMM holds open.
pub(super) fn idle_instances(owner_uid: u32) -> Vec<InstanceId> {
    idle_below(Path::new(INTERFACES), owner_uid)
}

fn idle_below(interfaces: &Path, owner_uid: u32) -> Vec<InstanceId> {
    let mut instances: BTreeMap<InstanceId, Taps> = BTreeMap::new();
    for entry in fs::read_dir(interfaces).into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default().trim().to_owned();
        let Some(instance) = instance_of(&entry.file_name().to_string_lossy(), &read("ifalias")) else { continue };
        let taps = instances.entry(instance).or_default();
        if read("owner") == owner_uid.to_string() {
            taps.ours += 1;
        } else {
            taps.foreign += 1;
        }
        // Reading it fails where the interface is down.
        taps.used += usize::from(read("carrier") == "1");
    }
    let idle = |taps: &Taps| taps.ours > 0 && taps.foreign == 0 && taps.used == 0;
    instances.into_iter().filter(|(_, taps)| idle(taps)).map(|(instance, _)| instance).collect()
}

/// The instance of a tap of ours.
fn instance_of(name: &str, alias: &str) -> Option<InstanceId> {
    let (id, number) = name.strip_prefix("bt")?.split_once('-')?;
    let (instance, tap) = (id.parse().ok()?, TapNumber(number.parse().ok()?));
    (tap_name(instance, tap).as_str() == name && alias == interface_alias(instance)).then_some(instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_networks_of_ours_that_nobody_uses_are_idle() {
        let dir = tempfile::tempdir().unwrap();
        let add = |name: &str, alias: &str, owner: &str, carrier: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            for (file, text) in [("ifalias", alias), ("owner", owner), ("carrier", carrier)] {
                fs::write(path.join(file), format!("{text}\n")).unwrap();
            }
        };
        add("bt00000a-0", "banger:00000a", "1000", "0");
        add("bt00000a-1", "banger:00000a", "1000", "");
        add("bt00000b-0", "banger:00000b", "1000", "0");
        add("bt00000b-1", "banger:00000b", "1000", "1");
        add("bt00000c-0", "banger:00000c", "1001", "0");
        add("bt00000d-0", "somebody's", "1000", "0");
        add("bb00000e", "banger:00000e", "", "0");
        add("eth0", "", "", "1");
        assert_eq!(idle_below(dir.path(), 1000), [InstanceId([0, 0, 0xa])]);
    }
}
