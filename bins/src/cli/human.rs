//! Sizes, ages and times as people read them. Pure.

use std::time::Duration;

/// `512 MiB`, `1.5 GiB`: at most one decimal, none where it would be zero.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    // In tenths, rounded, so that 1023.96 KiB becomes 1 MiB and not 1024 KiB.
    let mut tenths = u64::try_from((u128::from(bytes) * 10 + 512) >> 10).unwrap_or(u64::MAX);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths = (tenths + 512) >> 10;
        unit += 1;
    }
    // Put together by hand: a list of a thousand VMs has two thousand of them.
    let mut text = (tenths / 10).to_string();
    if tenths % 10 != 0 && tenths < 1000 {
        text.push('.');
        text.push_str(&(tenths % 10).to_string());
    }
    text.push(' ');
    text.push_str(UNITS[unit]);
    text
}

/// `5 s`, `3 min`, `2 h`, `4 d`: one unit, for tables.
pub(super) fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `0.42 s`, `12.3 s`, `2 min 5 s`: how long something took.
pub(super) fn took(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    match milliseconds {
        0..10_000 => format!("{}.{:02} s", milliseconds / 1000, milliseconds % 1000 / 10),
        10_000..60_000 => format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100),
        _ => format!("{} min {} s", milliseconds / 60_000, milliseconds % 60_000 / 1000),
    }
}

/// `12 %`.
pub(super) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{} %", u128::from(part) * 100 / u128::from(whole)) }
}

/// A time in milliseconds since the Unix epoch, in the form of RFC 3339.
pub(super) fn timestamp(unix_ms: u64) -> String {
    let time = std::time::UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    // humantime panics past the year 9999, and a peer may say anything.
    time.filter(|_| unix_ms < 253_402_300_800_000)
        .map_or_else(|| "unknown".to_owned(), |time| humantime::format_rfc3339_seconds(time).to_string())
}

/// The time since the Unix epoch.
pub(super) fn now() -> Duration {
    std::time::UNIX_EPOCH.elapsed().unwrap_or_default()
}

/// How long ago that was; a clock that ran backwards is no time at all.
pub(super) fn since(unix_ms: u64) -> Duration {
    now().saturating_sub(Duration::from_millis(unix_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1 MiB"),
            ((1 << 20) - 1, "1 MiB"),
            (512 << 20, "512 MiB"),
            (8 << 30, "8 GiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times() {
        assert_eq!(age(Duration::from_secs(59)), "59 s");
        assert_eq!(age(Duration::from_secs(7200)), "2 h");
        assert_eq!(took(Duration::from_millis(420)), "0.42 s");
        assert_eq!(took(Duration::from_millis(12_345)), "12.3 s");
        assert_eq!(took(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(u64::MAX), "unknown");
        assert_eq!(percent(1, 0), "-");
    }
}
