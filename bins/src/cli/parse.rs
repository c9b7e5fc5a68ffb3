//! Turns the text of one flag into a value, or into one sentence. Knows no other flag.

use super::args::VmFilter;
use actors::config::parse_size;
use messages::limits::{VM_DISK_MAX_BYTES, VM_DISK_MIN_BYTES, VM_MEMORY_MAX_MIB, VM_MEMORY_MIN_MIB, VM_VCPUS_MAX};
use messages::vm::{NetworkMode, RestartPolicy, VmState};
use std::time::{Duration, SystemTime};

/// A label or a variable.
pub(super) type KeyValue = (String, String);

/// `--memory`, rounded up to whole MiB.
pub(super) fn memory_mib(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text)?;
    let mib = bytes.div_ceil(1 << 20);
    let hint =
        if bytes < 1 << 20 && bytes > 0 { format!("; a bare number is bytes: `{text}M`?") } else { String::new() };
    let small = || format!("a VM needs at least {VM_MEMORY_MIN_MIB} MiB of memory, not {text}{hint}");
    match u32::try_from(mib) {
        Ok(mib) if mib < VM_MEMORY_MIN_MIB => Err(small()),
        Ok(mib) if mib <= VM_MEMORY_MAX_MIB => Ok(mib),
        _ => Err(format!("a VM can have {} GiB of memory at most, not {text}", VM_MEMORY_MAX_MIB >> 10)),
    }
}

/// `--disk-size`.
pub(super) fn disk_bytes(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes < VM_DISK_MIN_BYTES {
        Err(format!("a disk needs at least {} MiB, not {text}", VM_DISK_MIN_BYTES >> 20))
    } else if bytes > VM_DISK_MAX_BYTES {
        Err(format!("a disk can have {} TiB at most, not {text}", VM_DISK_MAX_BYTES >> 40))
    } else {
        Ok(bytes)
    }
}

/// `--vcpu`.
pub(super) fn vcpus(text: &str) -> Result<u8, String> {
    match text.parse::<u64>() {
        Ok(0) => Err("a VM needs at least 1 vCPU, not 0".to_owned()),
        Ok(count) if count > u64::from(VM_VCPUS_MAX) => {
            Err(format!("a VM can have {VM_VCPUS_MAX} vCPUs at most, not {count}"))
        }
        Ok(count) => Ok(u8::try_from(count).expect("at most VM_VCPUS_MAX, a u8")),
        Err(_) => Err(format!("`{text}` is not a number of vCPUs")),
    }
}

/// `90s`, `5m`, or seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    // A day, so that no sum of deadlines overflows.
    parsed
        .filter(|duration| !duration.is_zero() && *duration <= Duration::from_secs(86_400))
        .ok_or_else(|| format!("`{text}` is not a time up to a day: write `30s`, `5m` or seconds"))
}

/// `--since`: a time that has passed, or how long ago it was.
pub(super) fn since(text: &str) -> Result<SystemTime, String> {
    let now = SystemTime::now();
    let ago = text.parse::<u64>().ok().map(Duration::from_secs).or_else(|| humantime::parse_duration(text).ok());
    let time = match ago {
        // Longer ago than the epoch is the beginning of time.
        Some(ago) => Some(now.checked_sub(ago).map_or(SystemTime::UNIX_EPOCH, |then| then.max(SystemTime::UNIX_EPOCH))),
        None => humantime::parse_rfc3339_weak(text).ok(),
    };
    match time {
        Some(time) if time <= now => Ok(time),
        Some(_) => Err(format!("`{text}` has not come yet")),
        None => Err(format!("`{text}` is not a time: write `90s`, `2h`, or `2026-01-31T12:00:00Z`")),
    }
}

/// `K=V`, the key not empty.
pub(super) fn key_value(text: &str) -> Result<KeyValue, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not of the form K=V")),
    }
}

/// `K=V`, or `K` for the value it has here.
pub(super) fn environment(text: &str) -> Result<KeyValue, String> {
    if text.contains('=') || text.is_empty() {
        return key_value(text);
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(_) => Err(format!("`{text}` is not of the form K=V, and not a variable that is set here")),
    }
}

/// `--net`.
pub(super) fn network(text: &str) -> Result<NetworkMode, String> {
    match text {
        "nat" => Ok(NetworkMode::Nat),
        "none" => Ok(NetworkMode::None),
        _ => Err(format!("`{text}` is not a network: use `nat` or `none`")),
    }
}

/// `--restart`.
pub(super) fn restart(text: &str) -> Result<RestartPolicy, String> {
    match text {
        "no" => Ok(RestartPolicy::No),
        "always" => Ok(RestartPolicy::Always),
        _ => Err(format!("`{text}` is not a restart policy: use `no` or `always`")),
    }
}

const STATES: [VmState; 6] =
    [VmState::Stopped, VmState::Starting, VmState::Running, VmState::Stopping, VmState::Failed, VmState::Deleting];

/// `--filter`.
pub(super) fn vm_filter(text: &str) -> Result<VmFilter, String> {
    let (key, value) = key_value(text)?;
    match key.as_str() {
        "label" => {
            let (key, value) = match value.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (value, None),
            };
            Ok(VmFilter::Label { key, value })
        }
        "image" => Ok(VmFilter::Image(value)),
        "state" => STATES.into_iter().find(|state| state.as_str() == value).map(VmFilter::State).ok_or_else(|| {
            let known: Vec<&str> = STATES.iter().map(|state| state.as_str()).collect();
            format!("`{value}` is not a state: use one of {}", known.join(", "))
        }),
        _ => Err(format!("`{key}` cannot be filtered by: use `label`, `state` or `image`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn absurd_sizes_say_what_would_do() {
        assert_eq!(memory_mib("1M").unwrap_err(), "a VM needs at least 128 MiB of memory, not 1M");
        assert_eq!(
            memory_mib("512").unwrap_err(),
            "a VM needs at least 128 MiB of memory, not 512; a bare number is bytes: `512M`?"
        );
        assert_eq!(memory_mib("2G"), Ok(2048));
        assert!(memory_mib("999999T").is_err());
        assert_eq!(disk_bytes("3").unwrap_err(), "a disk needs at least 64 MiB, not 3");
        assert!(disk_bytes("9T").is_err());
        assert_eq!(vcpus("0").unwrap_err(), "a VM needs at least 1 vCPU, not 0");
        assert_eq!(vcpus("999").unwrap_err(), "a VM can have 32 vCPUs at most, not 999");
        assert!(vcpus("two").is_err());
    }

    #[test]
    fn filters() {
        assert_eq!(vm_filter("label=a=b"), Ok(VmFilter::Label { key: "a".to_owned(), value: Some("b".to_owned()) }));
        assert_eq!(vm_filter("label=a"), Ok(VmFilter::Label { key: "a".to_owned(), value: None }));
        assert_eq!(vm_filter("state=running"), Ok(VmFilter::State(VmState::Running)));
        assert!(vm_filter("state=happy").is_err());
        assert!(vm_filter("name=x").is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["0", "", "soon", "-1", "2 days", "99999999999999999999"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_since() {
        let ago = |text| {
            let then = since(text).unwrap();
            SystemTime::now().duration_since(then).unwrap().as_secs()
        };
        assert_eq!((ago("90"), ago("2h"), ago("3days")), (90, 7200, 3 * 86_400));
        let at = |seconds| Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(since("2001-09-09T01:46:40Z"), at(1_000_000_000));
        assert_eq!(since("2001-09-09 01:46:40"), at(1_000_000_000));
        assert_eq!(since("99999999999999"), at(0));
        assert_eq!(since("9999-01-01T00:00:00Z").unwrap_err(), "`9999-01-01T00:00:00Z` has not come yet");
        for bad in ["", "yesterday", "-5s", "12:00", "2001-13-01T00:00:00Z"] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let results = (memory_mib(&text), disk_bytes(&text), vcpus(&text), duration(&text));
            drop((results, vm_filter(&text), key_value(&text), since(&text)));
        }
    }
}
