//! `banger doctor`: looks at this host without changing it, and says in one sentence each what is missing and how to get it.

mod builds;
mod machine;
mod names;
mod network;

use super::failure::{Failure, Outcome};
use super::output::Output;
use super::printable::printable;
use actors::config::Config;
use actors::paths::Paths;
use messages::error::{ErrorKind, WireError};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// How well one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Ok,
    /// Something works less well, or not at all but is not always needed.
    Warn,
    /// VMs cannot be run.
    Fail,
}

impl Level {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What was found out about one thing.
#[derive(Debug)]
struct Check {
    name: &'static str,
    level: Level,
    text: String,
    fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, text: text.into(), fix: None }
    }

    fn warn(name: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, level: Level::Warn, text: text.into(), fix: Some(fix.into()) }
    }

    fn fail(name: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, level: Level::Fail, text: text.into(), fix: Some(fix.into()) }
    }
}

/// Runs every check and prints what it found.
pub(super) fn run(output: Output) -> Outcome {
    let paths = Paths::from_env().map_err(|error| Failure::io_only(ErrorKind::Usage, &error))?;
    let (config, read) = config(&paths.config_file);
    let mut checks = vec![read];
    checks.extend(machine::checks(&paths, &config));
    checks.extend(builds::checks());
    checks.extend(network::checks(&paths, &config));
    checks.extend(names::checks(&paths, output));
    if output.json {
        output.value(&Value::Array(checks.iter().map(value).collect()))?;
    } else {
        output.data(&text(&checks))?;
    }
    let failed = checks.iter().any(|check| check.level == Level::Fail);
    Ok(if failed { ErrorKind::Host.exit_code() } else { 0 })
}

/// The settings, or what is built in where they cannot be read: then no daemon starts.
fn config(file: &Path) -> (Config, Check) {
    match Config::load(file) {
        Ok(loaded) if file.exists() => (loaded.config, Check::ok("config", file.display().to_string())),
        Ok(loaded) => (loaded.config, Check::ok("config", "none, which is fine")),
        Err(error) => {
            let said = WireError::from_error(ErrorKind::Usage, &error).to_string();
            // toml's message goes on with the line and an arrow, which `config check` shows.
            let text = said.lines().next().unwrap_or_default().to_owned();
            (Config::default(), Check::fail("config", text, "`banger config check` shows the place"))
        }
    }
}

/// Whose checks these are, as `usermod` and `--owner` take it.
fn user() -> String {
    let uid = nix::unistd::Uid::effective();
    nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

fn value(check: &Check) -> Value {
    json!({ "check": check.name, "level": check.level.as_str(), "text": check.text, "fix": check.fix })
}

fn text(checks: &[Check]) -> String {
    let widest = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    checks.iter().fold(String::new(), |mut text, check| {
        text.push_str(&format!("{:4}  {:widest$}  {}\n", check.level.as_str(), check.name, printable(&check.text)));
        if let Some(fix) = &check.fix {
            text.push_str(&format!("{:4}  {:widest$}  fix: {}\n", "", "", printable(fix)));
        }
        text
    })
}

/// Finds a program as a shell would, and where administrators' programs are.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|path| executable(path))
}

fn executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

fn read_trimmed(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_is_a_line_and_its_fix_another() {
        let checks = [Check::ok("kvm", "works"), Check::fail("qemu", "is not installed", "`sudo apt install qemu`")];
        assert_eq!(
            text(&checks),
            "ok    kvm   works\nfail  qemu  is not installed\n            fix: `sudo apt install qemu`\n"
        );
    }

    #[test]
    fn a_config_that_no_daemon_starts_with_fails() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        assert_eq!(config(&file).1.level, Level::Ok);
        std::fs::write(&file, "colour = 1\n").unwrap();
        let check = config(&file).1;
        assert_eq!((check.level, check.text.lines().count()), (Level::Fail, 1), "{check:?}");
    }

    #[test]
    fn programs_are_found() {
        assert!(program("sh").is_some());
        assert!(program("no-such-program-anywhere").is_none());
    }
}
