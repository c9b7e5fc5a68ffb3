//! What `depmod` would write beside the modules. A package does not carry it, and the host need not have depmod.
//!
//! Left out: which module exports which symbol (`modules.symbols` is empty). Only `modprobe symbol:…` asks for it;
//! dependencies are taken from the modules' own `depends=`, which the kernel's build computed from the symbols.

use super::KernelError;
use super::index::Index;
use super::modules::{Modules, entries};
use std::fmt::Write;

/// No kernel's `modules.dep` is longer, in bytes; Debian's has half a megabyte.
const DEPENDENCIES_MAX: usize = 64 << 20;

/// One file of the modules' directory.
pub type Generated = (&'static str, Vec<u8>);

/// Every file, by name. `order` is `modules.order`, which decides between modules that claim the same device; `built_in_info` is
/// `modules.builtin.modinfo`.
///
/// # Errors
/// When the modules need each other in a circle, or too many of them.
pub fn generate(modules: &Modules, order: &str, built_in_info: &[u8]) -> Result<Vec<Generated>, KernelError> {
    let priorities = Priorities::read(order);
    let mut files = dependencies(modules, &priorities)?;
    files.extend(aliases(modules, &priorities));
    files.extend(built_in(modules, built_in_info));
    files.push(("modules.softdep", soft_dependencies(modules)));
    files.push(("modules.devname", device_names(modules)));
    files.push(("modules.symbols", b"# Not generated.\n".to_vec()));
    files.push(("modules.symbols.bin", Index::default().to_bytes()));
    Ok(files)
}

struct Priorities(std::collections::HashMap<String, u32>);

impl Priorities {
    fn read(order: &str) -> Self {
        let names = order.lines().map(super::modules::module_name);
        Self(names.zip(1..).collect())
    }

    /// Modules that `modules.order` does not know come last.
    fn of(&self, name: &str) -> u32 {
        self.0.get(name).copied().unwrap_or(u32::MAX)
    }
}

fn dependencies(modules: &Modules, priorities: &Priorities) -> Result<Vec<Generated>, KernelError> {
    let mut text = String::new();
    let mut index = Index::default();
    for (name, info) in modules.iter() {
        let mut line = format!("{}:", info.path);
        // modprobe loads from the last to the first.
        for needed in modules.needed_by(name)?.iter().rev() {
            put(&mut line, format_args!(" {}", needed.path));
        }
        put(&mut text, format_args!("{line}\n"));
        if text.len() > DEPENDENCIES_MAX {
            return Err(KernelError::TooMuch { what: "bytes of dependencies", limit: DEPENDENCIES_MAX as u64 });
        }
        index.add(name, &line, priorities.of(name));
    }
    Ok(vec![("modules.dep", text.into_bytes()), ("modules.dep.bin", index.to_bytes())])
}

fn aliases(modules: &Modules, priorities: &Priorities) -> Vec<Generated> {
    let mut text = String::from("# Aliases extracted from modules themselves.\n");
    let mut index = Index::default();
    for (name, info) in modules.iter() {
        for alias in info.aliases.iter().filter(|alias| !alias.starts_with("devname:")) {
            put(&mut text, format_args!("alias {alias} {name}\n"));
            index.add(&normalised(alias), name, priorities.of(name));
        }
    }
    vec![("modules.alias", text.into_bytes()), ("modules.alias.bin", index.to_bytes())]
}

fn built_in(modules: &Modules, info: &[u8]) -> Vec<Generated> {
    let mut names = Index::default();
    for name in modules.built_in() {
        names.add(name, "", 0);
    }
    let mut index = Index::default();
    // `module.key=value` strings, each ended by a NUL.
    for (key, alias) in entries(info) {
        if let Some((module, "alias")) = key.split_once('.') {
            index.add(&normalised(alias), &module.replace('-', "_"), 0);
        }
    }
    vec![("modules.builtin.bin", names.to_bytes()), ("modules.builtin.alias.bin", index.to_bytes())]
}

fn soft_dependencies(modules: &Modules) -> Vec<u8> {
    let mut text = String::from("# Soft dependencies extracted from modules themselves.\n");
    for (name, info) in modules.iter() {
        for dependency in &info.soft_dependencies {
            put(&mut text, format_args!("softdep {name} {dependency}\n"));
        }
    }
    text.into_bytes()
}

/// Nodes that exist before their module is loaded: systemd makes them, and opening one loads the module.
fn device_names(modules: &Modules) -> Vec<u8> {
    let mut text = String::from("# Device nodes to trigger on-demand module loading.\n");
    for (name, info) in modules.iter() {
        let node = info.aliases.iter().find_map(|alias| alias.strip_prefix("devname:"));
        let number = info.aliases.iter().find_map(|alias| device_number(alias));
        if let (Some(node), Some(number)) = (node, number) {
            put(&mut text, format_args!("{name} {node} {number}\n"));
        }
    }
    text.into_bytes()
}

/// `char-major-10-200` is `c10:200`; one with a wildcard names no node.
fn device_number(alias: &str) -> Option<String> {
    let (kind, numbers) = match (alias.strip_prefix("char-major-"), alias.strip_prefix("block-major-")) {
        (Some(numbers), _) => ('c', numbers),
        (None, Some(numbers)) => ('b', numbers),
        (None, None) => return None,
    };
    let (major, minor) = numbers.split_once('-')?;
    Some(format!("{kind}{}:{}", major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
}

/// kmod's `alias_normalize`: `-` is `_`, but not inside brackets, where it is a range.
fn normalised(alias: &str) -> String {
    let mut inside = false;
    alias
        .chars()
        .map(|character| {
            match character {
                '[' => inside = true,
                ']' => inside = false,
                _ => {}
            }
            if character == '-' && !inside { '_' } else { character }
        })
        .collect()
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_normalised_outside_brackets() {
        assert_eq!(normalised("net-pf-10-[a-z]-x"), "net_pf_10_[a-z]_x");
    }

    #[test]
    fn device_numbers_are_read() {
        assert_eq!(device_number("char-major-10-200").as_deref(), Some("c10:200"));
        assert_eq!(device_number("block-major-7-0").as_deref(), Some("b7:0"));
        assert_eq!(device_number("char-major-10-*"), None);
        assert_eq!(device_number("fs-fuse"), None);
    }
}
