//! What a kernel must have for a guest of ours to boot on it, and how that is found out before one hangs. Pure.
//!
//! `docs/kernel-catalog.md` lists the same options; a test compares the two.

use super::modules::Modules;
use std::collections::BTreeMap;
use std::fmt;

/// No configuration is longer, in bytes: one of everything that there is has a third of a megabyte.
pub(super) const CONFIG_MAX: u64 = 4 << 20;

/// How guest and host talk, which depends on the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestLink {
    /// banger-emu: a port of virtio-serial.
    SerialPort,
    /// Firecracker.
    Vsock,
}

/// One option of the kernel's configuration.
#[derive(Debug, Clone, Copy)]
struct KernelOption {
    /// Without `CONFIG_`.
    name: &'static str,
    /// The module that does as well, by its normalised name; none where it must be built in.
    module: Option<&'static str>,
}

/// Something that a guest does not boot without.
#[derive(Debug, Clone, Copy)]
struct Requirement {
    /// Any of them will do.
    options: &'static [KernelOption],
    what_for: &'static str,
    /// The only link that needs it; none for all.
    link: Option<GuestLink>,
}

const fn built_in(name: &'static str) -> KernelOption {
    KernelOption { name, module: None }
}

const fn or_module(name: &'static str, module: &'static str) -> KernelOption {
    KernelOption { name, module: Some(module) }
}

const fn always(options: &'static [KernelOption], what_for: &'static str) -> Requirement {
    Requirement { options, what_for, link: None }
}

const fn over(link: GuestLink, options: &'static [KernelOption], what_for: &'static str) -> Requirement {
    Requirement { options, what_for, link: Some(link) }
}

/// Modules are only taken for what is needed after the initramfs has loaded them: see `modules::EARLY`.
const REQUIREMENTS: [Requirement; 19] = [
    always(&[built_in("BLK_DEV_INITRD")], "its initramfs"),
    always(&[built_in("BINFMT_ELF")], "programs"),
    always(&[built_in("EPOLL")], "the agent's event loop"),
    always(&[built_in("EVENTFD")], "the agent's event loop"),
    always(&[built_in("PROC_FS")], "/proc"),
    always(&[built_in("SYSFS")], "/sys"),
    always(&[built_in("DEVTMPFS")], "/dev"),
    always(&[built_in("TMPFS")], "/run"),
    always(&[built_in("SERIAL_8250_CONSOLE")], "its console"),
    always(&[or_module("VIRTIO_MMIO", "virtio_mmio")], "the bus of its devices"),
    always(&[or_module("VIRTIO_BLK", "virtio_blk")], "its disks"),
    always(&[or_module("EXT4_FS", "ext4")], "its file systems"),
    always(&[or_module("OVERLAY_FS", "overlay")], "its root"),
    always(&[built_in("INET")], "its network"),
    always(&[or_module("VIRTIO_NET", "virtio_net")], "its network"),
    // QEMU's microvm tells of its devices by ACPI alone, Firecracker on the command line too.
    over(GuestLink::SerialPort, &[built_in("ACPI")], "finding its devices"),
    over(GuestLink::Vsock, &[built_in("ACPI"), built_in("VIRTIO_MMIO_CMDLINE_DEVICES")], "finding its devices"),
    over(GuestLink::SerialPort, &[or_module("VIRTIO_CONSOLE", "virtio_console")], "the link to its host"),
    over(GuestLink::Vsock, &[or_module("VIRTIO_VSOCKETS", "vmw_vsock_virtio_transport")], "the link to its host"),
];

/// How an option is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    BuiltIn,
    Module,
}

/// A kernel's configuration, as far as it says `y` or `m`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelConfig(BTreeMap<String, Setting>);

impl KernelConfig {
    /// Reads a `.config`; `None` where the text is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut options = BTreeMap::new();
        let mut any = false;
        for line in text.lines() {
            let Some((name, value)) = line.strip_prefix("CONFIG_").and_then(|rest| rest.split_once('=')) else {
                continue;
            };
            any = true;
            let setting = match value.trim_end() {
                "y" => Setting::BuiltIn,
                "m" => Setting::Module,
                _ => continue,
            };
            options.insert(name.to_owned(), setting);
        }
        any.then_some(Self(options))
    }
}

/// How a check went that found nothing missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// Every option is there.
    ByConfig,
    /// Without a configuration: what may be a module is there, what can only be built in is unknown.
    ByModules,
    /// There is nothing that says.
    Unknown,
}

/// A kernel on which no guest would boot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Unfit {
    missing: Vec<String>,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no guest would boot on this kernel, it lacks {}", self.missing.join(", "))
    }
}

/// What is known of one option.
enum Found {
    Yes,
    Unknown,
    No,
    /// It is a module, and that will not do or is not there.
    ModuleOnly,
}

/// Compares a kernel with what a guest over `link` needs.
///
/// # Errors
/// When something is known to be missing.
pub fn check(link: GuestLink, config: Option<&KernelConfig>, modules: &Modules) -> Result<Checked, Unfit> {
    let mut missing = Vec::new();
    let (mut seen, mut unknown) = (0, 0);
    for requirement in REQUIREMENTS.iter().filter(|needed| needed.link.is_none_or(|only| only == link)) {
        let found: Vec<Found> = requirement.options.iter().map(|option| look(*option, config, modules)).collect();
        if found.iter().any(|found| matches!(found, Found::Yes)) {
            seen += 1;
        } else if found.iter().any(|found| matches!(found, Found::Unknown)) {
            unknown += 1;
        } else {
            let options = requirement.options.iter().zip(&found).map(|(option, found)| sentence(*option, found));
            missing.push(format!("{} for {}", options.collect::<Vec<_>>().join(" or "), requirement.what_for));
        }
    }
    match (missing.is_empty(), seen, unknown) {
        (false, ..) => Err(Unfit { missing }),
        (true, _, 0) => Ok(Checked::ByConfig),
        (true, 0, _) => Ok(Checked::Unknown),
        (true, ..) if modules.knows_built_in() => Ok(Checked::ByModules),
        (true, ..) => Ok(Checked::Unknown),
    }
}

fn look(option: KernelOption, config: Option<&KernelConfig>, modules: &Modules) -> Found {
    let present = option.module.is_some_and(|module| modules.contains(module));
    match (config, option.module) {
        (Some(config), _) => match config.0.get(option.name) {
            Some(Setting::BuiltIn) => Found::Yes,
            Some(Setting::Module) if present => Found::Yes,
            Some(Setting::Module) => Found::ModuleOnly,
            None => Found::No,
        },
        (None, Some(_)) if present => Found::Yes,
        (None, Some(module)) if modules.is_built_in(module) => Found::Yes,
        (None, Some(_)) if modules.knows_built_in() => Found::No,
        (None, _) => Found::Unknown,
    }
}

fn sentence(option: KernelOption, found: &Found) -> String {
    let KernelOption { name, module } = option;
    match (module, found) {
        (Some(module), Found::ModuleOnly) => {
            format!("CONFIG_{name} (a module, and `{module}.ko` is not among the modules; built in would do)")
        }
        (Some(_), _) => format!("CONFIG_{name} (built in or as a module)"),
        (None, Found::ModuleOnly) => format!("CONFIG_{name} (built in, not as a module)"),
        (None, _) => format!("CONFIG_{name} (built in)"),
    }
}

/// The least configuration on which every guest boots, without a module.
#[cfg(test)]
pub(super) fn all_built_in() -> String {
    REQUIREMENTS.iter().map(|needed| format!("CONFIG_{}=y\n", needed.options[0].name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: [GuestLink; 2] = [GuestLink::SerialPort, GuestLink::Vsock];

    fn config(text: &str) -> KernelConfig {
        KernelConfig::parse(text).unwrap()
    }

    #[test]
    fn a_whole_kernel_is_fit_and_each_missing_option_is_named() {
        let none = Modules::default();
        for link in LINKS {
            assert_eq!(check(link, Some(&config(&all_built_in())), &none), Ok(Checked::ByConfig));
            for needed in &REQUIREMENTS {
                let name = needed.options[0].name;
                let text = all_built_in().replace(&format!("CONFIG_{name}=y"), &format!("# CONFIG_{name} is not set"));
                let checked = check(link, Some(&config(&text)), &none);
                if needed.link.is_some_and(|only| only != link) && name != "ACPI" {
                    assert_eq!(checked, Ok(Checked::ByConfig), "{name} is for the other link");
                    continue;
                }
                let said = checked.unwrap_err().to_string();
                assert!(said.contains(&format!("CONFIG_{name} (built in")), "{said}");
                assert_eq!(said.matches(" for ").count(), 1, "{said}");
            }
        }
    }

    #[test]
    fn a_module_does_where_it_is_there_and_may_be_one() {
        let mut modules = Modules::default();
        let text = all_built_in().replace("CONFIG_VIRTIO_BLK=y", "CONFIG_VIRTIO_BLK=m");
        let error = check(GuestLink::Vsock, Some(&config(&text)), &modules).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no guest would boot on this kernel, it lacks CONFIG_VIRTIO_BLK (a module, and `virtio_blk.ko` is not among the \
             modules; built in would do) for its disks"
        );
        modules.insert_bare("virtio_blk");
        assert_eq!(check(GuestLink::Vsock, Some(&config(&text)), &modules), Ok(Checked::ByConfig));
        let text = all_built_in().replace("CONFIG_DEVTMPFS=y", "CONFIG_DEVTMPFS=m");
        let error = check(GuestLink::Vsock, Some(&config(&text)), &modules).unwrap_err();
        assert!(error.to_string().contains("CONFIG_DEVTMPFS (built in, not as a module) for /dev"), "{error}");
    }

    #[test]
    fn without_a_configuration_the_lists_of_modules_say_what_they_can() {
        let mut modules = Modules::default();
        assert_eq!(check(GuestLink::Vsock, None, &modules), Ok(Checked::Unknown));
        let needed = ["virtio_mmio", "virtio_blk", "overlay", "virtio_net", "vmw_vsock_virtio_transport"];
        needed.iter().for_each(|name| modules.insert_bare(name));
        assert_eq!(check(GuestLink::Vsock, None, &modules), Ok(Checked::Unknown), "ext4 may be built in");
        modules.add_built_in("kernel/fs/fat/fat.ko\n");
        let error = check(GuestLink::Vsock, None, &modules).unwrap_err();
        assert!(
            error.to_string().ends_with("CONFIG_EXT4_FS (built in or as a module) for its file systems"),
            "{error}"
        );
        modules.add_built_in("kernel/fs/ext4/ext4.ko\n");
        assert_eq!(check(GuestLink::Vsock, None, &modules), Ok(Checked::ByModules));
        let error = check(GuestLink::SerialPort, None, &modules).unwrap_err();
        assert!(error.to_string().contains("CONFIG_VIRTIO_CONSOLE"), "{error}");
    }

    #[test]
    fn a_text_without_options_is_no_configuration() {
        assert_eq!(KernelConfig::parse("# CONFIG_X is not set\nhello\n"), None);
        assert_eq!(KernelConfig::parse(""), None);
        assert_eq!(config("CONFIG_A=m\nCONFIG_B=\"y\"\nCONFIG_C=7\n").0.len(), 1);
    }

    #[test]
    fn the_documentation_lists_exactly_these() {
        let page = include_str!("../../../docs/kernel-catalog.md");
        let listed: Vec<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `CONFIG_")?.split_once('`'))
            .map(|(name, _)| name)
            .collect();
        let needed: Vec<&str> = REQUIREMENTS.iter().map(|needed| needed.options[0].name).collect();
        assert_eq!(listed, needed);
        for needed in &REQUIREMENTS {
            let how = if needed.options[0].module.is_some() { "| y or m |" } else { "| y |" };
            let line = page.lines().find(|line| line.starts_with(&format!("| `CONFIG_{}`", needed.options[0].name)));
            assert!(line.is_some_and(|line| line.contains(how)), "{line:?}");
        }
    }
}
