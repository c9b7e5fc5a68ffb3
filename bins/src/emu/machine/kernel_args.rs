//! The kernel command line: what the caller gave, as an emulated microvm needs it. Pure.

use crate::emu::api::bodies::{BootSource, Drive};
use crate::emu::resources::DEFAULT_BOOT_ARGS;

/// The arguments for a microvm: `reboot=t`, because there is no i8042 to reset by; under emulation also the TSC's rate and no
/// timer check, because both are measured wrongly on a loaded host.
#[must_use]
pub fn for_qemu(source: &BootSource, root: Option<&Drive>, emulated_tsc_khz: Option<u64>) -> String {
    let given = source.boot_args.as_deref().unwrap_or(DEFAULT_BOOT_ARGS);
    // What follows a lone `--` is for init and stays behind everything else.
    let (kernel, init) = match given.split_once(" -- ") {
        Some((kernel, init)) => (kernel, Some(init)),
        None => (given, None),
    };
    let mut words: Vec<String> =
        kernel.split_ascii_whitespace().filter(|word| !word.starts_with("reboot=")).map(str::to_owned).collect();
    if let Some(drive) = root {
        words.push(match &drive.partuuid {
            Some(uuid) => format!("root=PARTUUID={uuid}"),
            None => "root=/dev/vda".to_owned(),
        });
        words.push(if drive.is_read_only() { "ro" } else { "rw" }.to_owned());
    }
    words.push("reboot=t".to_owned());
    let clock = emulated_tsc_khz.map(|khz| {
        [
            ("tsc_early_khz=", format!("tsc_early_khz={khz}")),
            ("no_timer_check", "no_timer_check".to_owned()),
            ("tsc=", "tsc=reliable".to_owned()),
        ]
    });
    for (key, added) in clock.into_iter().flatten() {
        if !words.iter().any(|word| word.starts_with(key)) {
            words.push(added);
        }
    }
    if let Some(init) = init {
        words.push("--".to_owned());
        words.push(init.to_owned());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(arguments: Option<&str>) -> BootSource {
        BootSource { kernel_image_path: "k".into(), initrd_path: None, boot_args: arguments.map(str::to_owned) }
    }

    #[test]
    fn reboot_is_rewritten_and_the_clock_given() {
        let line = for_qemu(&source(Some("console=ttyS0 reboot=k panic=1  quiet")), None, Some(2_596_144));
        assert_eq!(line, "console=ttyS0 panic=1 quiet reboot=t tsc_early_khz=2596144 no_timer_check tsc=reliable");
    }

    #[test]
    fn inits_own_arguments_stay_last_and_the_callers_clock_wins() {
        let line = for_qemu(&source(Some("tsc=unstable reboot=k -- single reboot=x")), None, Some(7));
        assert_eq!(line, "tsc=unstable reboot=t tsc_early_khz=7 no_timer_check -- single reboot=x");
    }

    #[test]
    fn kvm_needs_no_clock() {
        assert_eq!(for_qemu(&source(Some("reboot=k quiet")), None, None), "quiet reboot=t");
    }

    #[test]
    fn a_root_device_is_named() {
        let drive: Drive =
            serde_json::from_str(r#"{"drive_id":"r","is_root_device":true,"is_read_only":true,"path_on_host":"p"}"#)
                .unwrap();
        assert!(for_qemu(&source(None), Some(&drive), Some(7)).contains(" root=/dev/vda ro reboot=t "));
    }
}
