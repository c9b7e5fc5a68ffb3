//! Which scenarios there are. The names, classes and lines live in `scenarios.txt`, so that `make smoke-list` needs no build;
//! a test holds that list against the code.

use crate::case::Code;
use crate::scenarios;

/// The list, as `make smoke-list` prints it.
pub(crate) const LIST: &str = include_str!("../scenarios.txt");

/// What may run beside a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Others, of any class but `Global`.
    Pure,
    /// `Pure` ones; those of this class are one chain on one fixture.
    RepoDir,
    /// Nothing.
    Global,
}

impl Class {
    fn parse(word: &str) -> Option<Self> {
        match word {
            "pure" => Some(Self::Pure),
            "repodir" => Some(Self::RepoDir),
            "global" => Some(Self::Global),
            _ => None,
        }
    }
}

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) class: Class,
    pub(crate) line: &'static str,
    pub(crate) run: Code,
}

/// Says why a selection cannot be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("no scenario is named `{0}`: `make smoke-list` shows them all")]
    Unknown(String),
    #[error("no scenario was named")]
    Empty,
    #[error("scenarios.txt: `{0}` is not `name class line`, or has no code")]
    Line(String),
}

/// Every scenario, in the order of the list.
///
/// # Errors
/// A line that does not parse, or names no code.
pub(crate) fn all() -> Result<Vec<Scenario>, RegistryError> {
    LIST.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(parse_line).collect()
}

fn parse_line(line: &'static str) -> Result<Scenario, RegistryError> {
    let bad = || RegistryError::Line(line.to_owned());
    let (name, rest) = line.split_once(' ').ok_or_else(bad)?;
    let (class, about) = rest.trim_start().split_once(' ').ok_or_else(bad)?;
    let run = scenarios::ALL.iter().find(|(known, _)| *known == name).map(|(_, run)| *run).ok_or_else(bad)?;
    Ok(Scenario { name, class: Class::parse(class).ok_or_else(bad)?, line: about.trim(), run })
}

/// The scenarios named in a comma-separated list, each once, in the order of the registry.
///
/// # Errors
/// An unknown name, or none at all.
pub(crate) fn select(names: &str) -> Result<Vec<Scenario>, RegistryError> {
    let all = all()?;
    let wanted: Vec<&str> = names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if wanted.is_empty() {
        return Err(RegistryError::Empty);
    }
    if let Some(unknown) = wanted.iter().find(|name| all.iter().all(|scenario| scenario.name != **name)) {
        return Err(RegistryError::Unknown((*unknown).to_owned()));
    }
    Ok(all.into_iter().filter(|scenario| wanted.contains(&scenario.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_and_code_name_the_same_scenarios() {
        let listed: Vec<&str> = all().unwrap().iter().map(|scenario| scenario.name).collect();
        for (name, _) in scenarios::ALL {
            assert_eq!(listed.iter().filter(|listed| *listed == name).count(), 1, "{name} in scenarios.txt");
        }
        assert_eq!(listed.len(), scenarios::ALL.len());
    }

    #[test]
    fn names_are_short_enough_for_a_vm_name() {
        for scenario in all().unwrap() {
            assert!(scenario.name.len() <= 24, "{}", scenario.name);
            assert!(!scenario.line.is_empty(), "{}", scenario.name);
        }
    }

    #[test]
    fn a_selection_keeps_the_order_and_refuses_the_unknown() {
        let names: Vec<&str> = select("kill, bare-run,kill").unwrap().iter().map(|scenario| scenario.name).collect();
        assert_eq!(names, ["bare-run", "kill"]);
        assert_eq!(select("bare-run,nope").unwrap_err(), RegistryError::Unknown("nope".to_owned()));
        assert_eq!(select(" ,").unwrap_err(), RegistryError::Empty);
    }
}
