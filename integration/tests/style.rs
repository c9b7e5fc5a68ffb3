//! The rules of the house that a compiler does not check: file headers, sizes, who may depend on whom, where versions live.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of code in one file, tests apart, above which it has to be taken apart.
const LINES_MAX: usize = 600;
const MEMBERS: [&str; 9] =
    ["messages", "messages/fixtures", "messages/link", "actors", "actors/sys", "bins", "guest", "integration", "smoke"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && name != "fuzz" && !name.starts_with('.') {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
    found
}

fn sources() -> Vec<(PathBuf, String)> {
    ["messages", "actors", "bins", "guest", "integration", "smoke"]
        .iter()
        .flat_map(|member| files(&root().join(member), "rs"))
        .map(|path| (path.clone(), std::fs::read_to_string(&path).unwrap()))
        .collect()
}

fn depends(member: &str, on: &str) -> bool {
    let manifest = std::fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
    let start = manifest.find("[dependencies]").unwrap();
    let section = manifest[start..].split("\n[dev-dependencies]").next().unwrap();
    section.contains(&format!("\n{on}.workspace")) || section.contains(&format!("\n{on} ="))
}

#[test]
fn every_file_says_what_it_owns() {
    let silent: Vec<_> =
        sources().into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(path, _)| path).collect();
    assert!(silent.is_empty(), "no `//!` in the first line of {silent:?}");
}

#[test]
fn no_file_is_too_long_to_read() {
    let long: Vec<_> = sources()
        .into_iter()
        .filter(|(path, _)| !path.components().any(|part| part.as_os_str() == "tests"))
        .map(|(path, text)| (path, text.split("\n#[cfg(test)]\nmod tests {").next().unwrap().lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "take apart: {long:?}");
}

#[test]
fn dependencies_point_one_way() {
    for (member, forbidden) in [
        ("messages", &["link", "actors", "actors-sys", "bins", "guest", "integration", "smoke", "tokio"][..]),
        ("messages/fixtures", &["link", "actors", "actors-sys", "bins", "guest", "integration", "smoke", "tokio"][..]),
        ("messages/link", &["actors", "actors-sys", "bins", "guest", "integration", "smoke", "actix"][..]),
        ("guest", &["actors", "actors-sys", "bins", "integration", "smoke", "actix"][..]),
        ("actors/sys", &["actors", "bins", "guest", "integration", "smoke", "actix"][..]),
        ("actors", &["bins", "guest", "integration", "smoke"][..]),
        ("bins", &["guest", "integration", "smoke"][..]),
    ] {
        for on in forbidden {
            assert!(!depends(member, on), "{member} must not depend on {on}");
        }
    }
    // What is only made for tests is in nothing that is shipped.
    for member in MEMBERS {
        assert!(!depends(member, "fixtures"), "{member} may have fixtures as a dev-dependency only");
    }
}

#[test]
fn versions_live_in_the_workspace_only() {
    for member in MEMBERS {
        let manifest: toml::Table =
            std::fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap().parse().unwrap();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
            for (name, value) in table {
                assert!(value.get("workspace").is_some(), "{member}: {name} has a version of its own");
            }
        }
    }
}

/// Dependencies of packages, each with the features that it is built with.
fn built_for(packages: &[&str]) -> BTreeSet<String> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["tree", "--locked", "--offline", "--edges", "normal,build", "--prefix", "none", "--no-dedupe"]);
    cargo.args(["--format", "{p}|{f}"]).args(packages.iter().flat_map(|package| ["--package", package]));
    let output = cargo.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.replace(" (*)", "").replace(" (proc-macro)", "")).collect()
}

/// What is built with other features is built again: that would be a third of everything (docs/adr/0005).
#[test]
fn the_agent_is_built_of_what_is_built_for_the_host() {
    let (host, agent) = (built_for(&["bins", "smoke"]), built_for(&["guest"]));
    assert!(host.len() > 300 && agent.len() > 100, "{} and {}", host.len(), agent.len());
    let its_own = ["guest ", "messages ", "banger-link ", "tokio-vsock ", "vsock "];
    let twice: Vec<_> =
        agent.difference(&host).filter(|built| !its_own.iter().any(|name| built.starts_with(name))).collect();
    assert!(twice.is_empty(), "give `guest` the features that the host's programs have, of {twice:#?}");
}

#[test]
fn privileged_code_uses_messages_only() {
    let strays: Vec<_> = sources()
        .into_iter()
        .filter(|(path, _)| path.starts_with(root().join("bins/src/privileged")))
        // Its tests hold it against the daemon's own client.
        .filter(|(path, _)| !path.components().any(|part| part.as_os_str() == "tests"))
        .filter(|(_, text)| text.contains("actors::"))
        .map(|(path, _)| path)
        .collect();
    assert!(strays.is_empty(), "{strays:?}");
}

#[test]
fn unsafe_code_stays_in_its_files() {
    let marker = concat!("uns", "afe {");
    let strays: Vec<_> = sources()
        .into_iter()
        .filter(|(_, text)| text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(marker)))
        .map(|(path, _)| path)
        .filter(|path| !path.starts_with(root().join("actors/sys")) && !path.ends_with("sys.rs"))
        .collect();
    assert!(strays.is_empty(), "{strays:?}");
}
