//! Networks that no VM uses, as `daemon root stop` finds them: read from `/sys`, asks nobody and changes nothing.

use messages::ids::InstanceId;
use messages::privileged::{TapNumber, interface_alias, tap_name};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Where the kernel describes interfaces.
const INTERFACES: &str = "/sys/class/net";

/// The instances of this owner that have taps, none of which a VMM holds open. The helper removes nothing of others'.
pub(super) fn idle_instances(owner_uid: u32) -> Vec<InstanceId> {
    idle_below(Path::new(INTERFACES), owner_uid)
}

fn idle_below(interfaces: &Path, owner_uid: u32) -> Vec<InstanceId> {
    let mut used: BTreeMap<InstanceId, bool> = BTreeMap::new();
    for entry in fs::read_dir(interfaces).into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default().trim().to_owned();
        let name = entry.file_name();
        let instance = instance_of(&name.to_string_lossy(), &read("ifalias"), owner_uid);
        let Some(instance) = instance.filter(|_| read("owner") == owner_uid.to_string()) else { continue };
        // Reading it fails where the interface is down.
        *used.entry(instance).or_default() |= read("carrier") == "1";
    }
    used.into_iter().filter_map(|(instance, used)| (!used).then_some(instance)).collect()
}

/// The instance of a tap of the owner's.
fn instance_of(name: &str, alias: &str, owner_uid: u32) -> Option<InstanceId> {
    let (id, number) = name.strip_prefix("bt")?.split_once('-')?;
    let (instance, tap) = (id.parse().ok()?, TapNumber(number.parse().ok()?));
    (tap_name(instance, tap).as_str() == name && alias == interface_alias(owner_uid, instance)).then_some(instance)
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
        add("bt00000a-0", "banger:1000:00000a", "1000", "0");
        add("bt00000a-1", "banger:1000:00000a", "1000", "");
        // Another user's, even of an instance of the same name, is neither ours to remove nor a reason to keep ours.
        add("bt00000a-2", "banger:1001:00000a", "1001", "1");
        add("bt00000b-0", "banger:1000:00000b", "1000", "0");
        add("bt00000b-1", "banger:1000:00000b", "1000", "1");
        add("bt00000c-0", "banger:1001:00000c", "1001", "0");
        add("bt00000d-0", "somebody's", "1000", "0");
        add("bb00000e", "banger:1000:00000e", "", "0");
        add("bt00000f-0", "banger:00000f", "1000", "0");
        add("eth0", "", "", "1");
        assert_eq!(idle_below(dir.path(), 1000), [InstanceId([0, 0, 0xa])]);
    }
}
