//! A kernel's modules: what each says of itself in `.modinfo`, and in which order they are to be loaded. Pure.

use super::KernelError;
use super::elf::Elf;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

/// No module is larger unpacked, in bytes.
pub(super) const MODULE_MAX: u64 = 64 << 20;
/// No kernel has more modules: Debian's has 4,000, one with everything that can be a module twice as many.
pub(super) const MODULES_MAX: usize = 20_000;
/// No module needs more others, and theirs: of Debian's none needs more than 30.
const NEEDED_MAX: usize = 256;
/// The most that is kept of what all modules say of themselves, in bytes: Debian's say 4 MiB.
const INFO_MAX: u64 = 64 << 20;
/// What is kept of a string beside its bytes.
const STRING: usize = 48;
/// No module says more of itself, in bytes; the longest of Debian's has 60 KiB.
const SECTION_MAX: usize = 4 << 20;

/// Loaded from the initramfs where the kernel has them as modules: what reaches the root file system and the host. What of it a
/// guest cannot do without is for `requirements` to say.
const EARLY: [&str; 14] = [
    "failover",
    "net_failover",
    "virtio_net",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "virtio_rng",
    "libcrc32c",
    // Asked for by name when ext4 mounts, which nothing in the initramfs could answer.
    "crc32c_generic",
    "virtio_console",
    "virtio_mmio",
    "virtio_blk",
    "ext4",
    "overlay",
];

/// What a module says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Below the directory of the kernel's version, `kernel/drivers/block/virtio_blk.ko.xz`.
    pub path: String,
    /// Names, normalised, of the modules that it needs.
    pub depends: Vec<String>,
    pub aliases: Vec<String>,
    /// `pre: a b post: c`, as modprobe takes it.
    pub soft_dependencies: Vec<String>,
    /// `uname -r` of the kernel that it was built for, where it says.
    pub built_for: Option<String>,
}

impl ModuleInfo {
    /// About how many bytes it takes.
    fn size(&self) -> u64 {
        let lists = [&self.depends, &self.aliases, &self.soft_dependencies];
        let strings = lists.into_iter().flatten().map(|text| STRING + text.len()).sum::<usize>();
        (self.path.len() + strings) as u64
    }
}

/// Every module of a kernel by its normalised name, and what is built in.
#[derive(Debug, Default)]
pub struct Modules {
    by_name: BTreeMap<String, ModuleInfo>,
    built_in: BTreeSet<String>,
    /// Bytes of all that was read, also of what another module of the same name has replaced.
    info: u64,
}

impl Modules {
    /// Reads a module; `path` is below the directory of the kernel's version.
    ///
    /// # Errors
    /// When it cannot be unpacked or is no module.
    pub fn add(&mut self, path: &str, packed: &[u8]) -> Result<(), KernelError> {
        let bytes = unpack(path, packed)?;
        let info = read_info(path, &bytes)?;
        self.info += info.size();
        if self.info > INFO_MAX {
            return Err(KernelError::TooMuch { what: "bytes that describe them", limit: INFO_MAX });
        }
        self.by_name.insert(module_name(path), info);
        Ok(())
    }

    /// Takes note of `modules.builtin`.
    pub fn add_built_in(&mut self, list: &str) {
        self.built_in.extend(list.lines().filter(|line| !line.is_empty()).map(module_name));
    }

    /// All modules, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ModuleInfo)> {
        self.by_name.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// What is built into the kernel, by name.
    pub fn built_in(&self) -> impl Iterator<Item = &str> {
        self.built_in.iter().map(String::as_str)
    }

    /// True if there is a module of that normalised name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// True if it is known to be built in.
    #[must_use]
    pub fn is_built_in(&self, name: &str) -> bool {
        self.built_in.contains(name)
    }

    /// True if what is built in is known: no kernel has nothing built in that could be a module.
    #[must_use]
    pub fn knows_built_in(&self) -> bool {
        !self.built_in.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The modules that a guest loads from its initramfs, each after what it needs.
    ///
    /// # Errors
    /// When they go in a circle, or are too many.
    pub fn initramfs_order(&self) -> Result<Vec<&ModuleInfo>, KernelError> {
        let mut order = Order::new(self);
        for name in EARLY {
            order.visit(name)?;
        }
        Ok(order.done)
    }

    /// Everything that a module needs, in the order in which it is to be loaded, itself left out.
    ///
    /// # Errors
    /// When they go in a circle, or are too many.
    pub fn needed_by(&self, name: &str) -> Result<Vec<&ModuleInfo>, KernelError> {
        let mut order = Order::new(self);
        order.visit(name)?;
        order.done.pop();
        Ok(order.done)
    }
}

/// A depth-first walk: a module is done after all that it needs.
struct Order<'a> {
    modules: &'a Modules,
    done: Vec<&'a ModuleInfo>,
    known: BTreeSet<&'a str>,
}

impl<'a> Order<'a> {
    const fn new(modules: &'a Modules) -> Self {
        Self { modules, done: Vec::new(), known: BTreeSet::new() }
    }

    /// Without recursion: how deep it goes is for whoever made the modules to say, and a stack that overflows ends the daemon.
    fn visit(&mut self, name: &str) -> Result<(), KernelError> {
        let by_name = &self.modules.by_name;
        // Each with what it needs and was not looked at yet.
        let mut open: Vec<(&'a str, &'a ModuleInfo, std::slice::Iter<'a, String>)> = Vec::new();
        let mut next = Some(name);
        loop {
            // A dependency that is no module is built in; were it missing, the kernel would say so.
            if let Some((name, info)) = next.and_then(|name| by_name.get_key_value(name))
                && !self.known.contains(name.as_str())
            {
                if let Some(at) = open.iter().position(|(open, ..)| open == name) {
                    let circle = open[at..].iter().map(|(open, ..)| (*open).to_owned()).chain([name.clone()]);
                    return Err(KernelError::Circle(circle.collect()));
                }
                if self.done.len() + open.len() >= NEEDED_MAX {
                    return Err(KernelError::Needs { name: name.clone(), limit: NEEDED_MAX });
                }
                open.push((name, info, info.depends.iter()));
            }
            let Some((name, info, needs)) = open.last_mut() else { return Ok(()) };
            next = needs.next().map(String::as_str);
            if next.is_none() {
                self.done.push(*info);
                self.known.insert(*name);
                open.pop();
            }
        }
    }
}

/// True for the path of a module, packed or not.
#[must_use]
pub fn is_module(path: &str) -> bool {
    [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().any(|end| path.ends_with(end))
}

/// `kernel/net/nf_tables.ko.xz` is `nf_tables`; the kernel holds `-` and `_` for the same.
#[must_use]
pub fn module_name(path: &str) -> String {
    file_name(path).replace('-', "_").trim_end_matches(".ko").to_owned()
}

/// `kernel/net/a-b.ko.xz` unpacked is `a-b.ko`.
#[must_use]
pub fn file_name(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    [".xz", ".zst", ".gz"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// A module without its compression.
///
/// # Errors
/// When it is damaged.
pub fn unpack(path: &str, packed: &[u8]) -> Result<Vec<u8>, KernelError> {
    let mut unpacked = Vec::new();
    let bounded = |reader: &mut dyn Read, unpacked: &mut Vec<u8>| reader.take(MODULE_MAX).read_to_end(unpacked);
    let outcome: io::Result<usize> = if path.ends_with(".xz") {
        bounded(&mut liblzma::read::XzDecoder::new(packed), &mut unpacked)
    } else if path.ends_with(".zst") {
        zstd::stream::Decoder::new(packed).and_then(|mut decoder| bounded(&mut decoder, &mut unpacked))
    } else if path.ends_with(".gz") {
        bounded(&mut flate2::read::GzDecoder::new(packed), &mut unpacked)
    } else {
        bounded(&mut &*packed, &mut unpacked)
    };
    outcome.map_err(|error| KernelError::Module { name: path.to_owned(), why: error.to_string() })?;
    Ok(unpacked)
}

fn read_info(path: &str, bytes: &[u8]) -> Result<ModuleInfo, KernelError> {
    let failed = |why: String| KernelError::Module { name: path.to_owned(), why };
    let elf = Elf::parse(bytes).map_err(|error| failed(error.to_string()))?;
    let section = elf.section(".modinfo").ok_or_else(|| failed("it has no .modinfo section".to_owned()))?;
    if section.len() > SECTION_MAX {
        return Err(failed(format!("its .modinfo section is larger than {} MiB", SECTION_MAX >> 20)));
    }
    let mut info = ModuleInfo { path: path.to_owned(), ..ModuleInfo::default() };
    for (key, value) in entries(section) {
        match key {
            "depends" => {
                let names = value.split(',').filter(|name| !name.is_empty());
                info.depends.extend(names.map(|name| name.replace('-', "_")));
            }
            "alias" => info.aliases.push(value.to_owned()),
            "softdep" => info.soft_dependencies.push(value.to_owned()),
            "vermagic" => info.built_for = value.split(' ').next().map(str::to_owned),
            _ => {}
        }
    }
    Ok(info)
}

/// `key=value` strings, each ended by a NUL.
pub(super) fn entries(section: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    section.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::fixtures::module;

    fn modules(list: &[(&str, &[&str])]) -> Modules {
        let mut modules = Modules::default();
        for (name, depends) in list {
            let info = ModuleInfo {
                path: format!("kernel/{name}.ko.xz"),
                depends: depends.iter().map(|name| (*name).to_owned()).collect(),
                ..ModuleInfo::default()
            };
            modules.by_name.insert((*name).to_owned(), info);
        }
        modules
    }

    impl Modules {
        /// A module of which nothing but its name matters.
        pub(in crate::kernels) fn insert_bare(&mut self, name: &str) {
            self.by_name.insert(name.to_owned(), ModuleInfo::default());
        }
    }

    fn paths(order: &[&ModuleInfo]) -> Vec<String> {
        order.iter().map(|info| module_name(&info.path)).collect()
    }

    #[test]
    fn what_is_needed_comes_first() {
        let modules = modules(&[
            ("virtio_net", &["net_failover", "failover"]),
            ("net_failover", &["failover"]),
            ("failover", &[]),
            ("virtio_blk", &[]),
            ("virtio_mmio", &["virtio_ring", "virtio"]),
            ("overlay", &[]),
            ("unrelated", &[]),
        ]);
        let order = paths(&modules.initramfs_order().unwrap());
        assert_eq!(order, ["failover", "net_failover", "virtio_net", "virtio_mmio", "virtio_blk", "overlay"]);
    }

    #[test]
    fn only_what_is_a_module_is_loaded_early() {
        let mut kernel =
            modules(&[("virtio_blk", &[]), ("virtio_mmio", &[]), ("ext4", &["mbcache"]), ("mbcache", &[])]);
        kernel.add_built_in("kernel/fs/overlayfs/overlay.ko\n");
        assert_eq!(paths(&kernel.initramfs_order().unwrap()), ["virtio_mmio", "virtio_blk", "mbcache", "ext4"]);
    }

    #[test]
    fn circles_are_named() {
        let modules = modules(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]);
        let Err(KernelError::Circle(circle)) = modules.needed_by("a") else { panic!("no circle") };
        assert_eq!(circle, ["b", "c", "b"]);
    }

    #[test]
    fn a_chain_of_any_length_is_an_error_and_no_end_of_the_stack() {
        let names: Vec<String> = (0..100_000).map(|number| format!("m{number}")).collect();
        let chain = |length: usize| {
            let mut modules = Modules::default();
            for pair in names[..=length].windows(2) {
                let info = ModuleInfo { depends: vec![pair[1].clone()], ..ModuleInfo::default() };
                modules.by_name.insert(pair[0].clone(), info);
            }
            modules
        };
        let fits = chain(NEEDED_MAX);
        assert_eq!(fits.needed_by("m0").unwrap().len(), NEEDED_MAX - 1);
        let long = chain(names.len() - 1);
        // Work that blocks has stacks of this size in the daemon.
        let small = std::thread::Builder::new().stack_size(1 << 20);
        let refused = small.spawn(move || long.needed_by("m0").map(|needed| needed.len())).unwrap().join().unwrap();
        assert!(matches!(refused, Err(KernelError::Needs { limit: NEEDED_MAX, .. })), "{refused:?}");
    }

    #[test]
    fn what_modules_say_of_themselves_is_bounded() {
        let mut modules = Modules::default();
        let aliases: Vec<String> = (0..60_000).map(|number| format!("alias={number}")).collect();
        let aliases: Vec<&str> = aliases.iter().map(String::as_str).collect();
        let bytes = module(&aliases);
        let mut outcome = Ok(());
        // The same module again and again would be no more to keep; others are.
        for number in 0..100 {
            outcome = modules.add(&format!("kernel/m{number}.ko"), &bytes);
            if outcome.is_err() {
                break;
            }
        }
        assert!(matches!(outcome, Err(KernelError::TooMuch { limit: INFO_MAX, .. })), "{outcome:?}");
        assert!((5..60).contains(&modules.len()), "{}", modules.len());
        let long = format!("alias={}", "x".repeat(SECTION_MAX));
        assert!(matches!(modules.add("kernel/long.ko", &module(&[&long])), Err(KernelError::Module { .. })));
    }

    #[test]
    fn names_are_normalised() {
        assert_eq!(module_name("kernel/fs/nls/nls-iso.ko.xz"), "nls_iso");
        assert_eq!(file_name("kernel/a-b.ko.zst"), "a-b.ko");
        assert!(is_module("x/y.ko.xz") && is_module("y.ko") && !is_module("modules.order"));
    }
}
