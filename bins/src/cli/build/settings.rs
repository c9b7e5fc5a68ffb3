//! How programs of the image will be run, as a Containerfile's instructions change it one after the other. Pure.

use super::containerfile::assignments;
use super::words::{self, WordError};
use messages::image::ImageConfig;
use std::path::Path;

/// Why an ENV makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum EnvError {
    #[error(transparent)]
    Words(#[from] WordError),
    #[error("a variable has no name")]
    NoName,
}

/// The image's config so far.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) config: ImageConfig,
    /// The command is of this Containerfile, not of the image that it begins with.
    has_own_cmd: bool,
}

impl Settings {
    /// Those of the image that it begins with.
    pub(super) fn of_base(config: ImageConfig) -> Self {
        Self { config, has_own_cmd: false }
    }

    /// CMD.
    pub(super) fn cmd(&mut self, argv: &[String]) {
        self.config.cmd = argv.to_vec();
        self.has_own_cmd = true;
    }

    /// ENTRYPOINT. What was the command of the base's program is not the new one's.
    pub(super) fn entrypoint(&mut self, argv: &[String]) {
        self.config.entrypoint = argv.to_vec();
        if !self.has_own_cmd {
            self.config.cmd.clear();
        }
    }

    /// ENV.
    pub(super) fn env(&mut self, text: &str) -> Result<(), EnvError> {
        for (name, value) in assignments(text, &|name| self.variable(name))? {
            if name.is_empty() {
                return Err(EnvError::NoName);
            }
            let prefix = format!("{name}=");
            self.config.env.retain(|old| !old.starts_with(&prefix));
            self.config.env.push(format!("{prefix}{value}"));
        }
        Ok(())
    }

    /// All variables.
    pub(super) fn variables(&self) -> Vec<(String, String)> {
        let pair = |entry: &String| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        self.config.env.iter().filter_map(pair).collect()
    }

    /// An operand with its variables.
    pub(super) fn expand(&self, text: &str) -> Result<String, WordError> {
        words::expand(text, &|name| self.variable(name))
    }

    /// From the working directory.
    pub(super) fn absolute(&self, path: &str) -> String {
        let workdir = self.config.workdir.as_deref().unwrap_or("/");
        Path::new("/").join(workdir).join(path).to_string_lossy().into_owned()
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.config.env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn an_entrypoint_clears_the_bases_command_and_no_other() {
        let base = || Settings::of_base(ImageConfig { cmd: list(&["bash"]), ..ImageConfig::default() });
        let mut settings = base();
        settings.entrypoint(&list(&["/app"]));
        assert_eq!(settings.config.cmd, list(&[]));
        settings.cmd(&list(&["serve"]));
        assert_eq!((settings.config.entrypoint, settings.config.cmd), (list(&["/app"]), list(&["serve"])));

        let mut settings = base();
        settings.cmd(&list(&["serve"]));
        settings.entrypoint(&list(&["/app"]));
        assert_eq!((settings.config.entrypoint, settings.config.cmd), (list(&["/app"]), list(&["serve"])));
    }

    #[test]
    fn a_variable_is_replaced_and_needs_a_name() {
        let mut settings = Settings::of_base(ImageConfig { env: list(&["A=1", "AB=2"]), ..ImageConfig::default() });
        settings.env("A=x$A B=\"$AB y\"").unwrap();
        assert_eq!(settings.config.env, list(&["AB=2", "A=x1", "B=2 y"]));
        assert_eq!(settings.expand("$A/${B}").unwrap(), "x1/2 y");
        assert_eq!(settings.env("=x"), Err(EnvError::NoName));
    }
}
