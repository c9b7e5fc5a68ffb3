//! Who we are to a registry: docker's own settings, so that `docker login` is all that is needed. Keeps nothing.

use super::OciError;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

/// Docker's own name for its hub (docker/cli, `IndexServer`).
const HUB: &str = "https://index.docker.io/v1/";

/// What a helper says that has none (docker/docker-credential-helpers, `errCredentialsNotFoundMessage`).
const NONE_KEPT: &str = "credentials not found in native keychain";

/// Who we are to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// Nobody in particular.
    Anonymous,
    Password {
        user: String,
        password: String,
    },
    /// Docker's name for an OAuth refresh token: no proof by itself, but worth a token where the registry sends us for one.
    IdentityToken(String),
}

impl std::fmt::Debug for Login {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Password { user, .. } => f.debug_struct("Password").field("user", user).finish_non_exhaustive(),
            Self::IdentityToken(_) => f.write_str("IdentityToken"),
        }
    }
}

/// The directory of docker's settings: `$DOCKER_CONFIG`, or `.docker` in the home.
#[must_use]
pub fn docker_directory() -> Option<PathBuf> {
    let set = std::env::var_os("DOCKER_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    set.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker")))
}

/// What `config.json` in that directory, or a helper that it names, has for a registry; nobody in particular where there is
/// nothing. Blocks: a helper is a program.
///
/// # Errors
/// When there is something that cannot be read.
pub fn credentials(directory: Option<&Path>, registry: &str) -> Result<Login, OciError> {
    let failed = |source| OciError::Credentials { registry: registry.to_owned(), source };
    let Some(path) = directory.map(|directory| directory.join("config.json")) else {
        return Ok(Login::Anonymous);
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Login::Anonymous),
        Err(_) => return Err(failed(CredentialRetrievalError::ConfigReadError)),
    };
    let hub = matches!(registry, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    match docker_credential::get_credential_from_reader(BufReader::new(file), if hub { HUB } else { registry }) {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(Login::Password { user, password }),
        Ok(DockerCredential::IdentityToken(token)) => Ok(Login::IdentityToken(token)),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(Login::Anonymous),
        Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains(NONE_KEPT) => {
            Ok(Login::Anonymous)
        }
        Err(source) => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_own_settings_are_read_as_docker_reads_them() {
        let directory = tempfile::tempdir().unwrap();
        let of = |registry: &str| credentials(Some(directory.path()), registry);
        assert_eq!(credentials(None, "ghcr.io").unwrap(), Login::Anonymous);
        assert_eq!(of("ghcr.io").unwrap(), Login::Anonymous);
        let config =
            r#"{"auths":{"ghcr.io":{"auth":"bWU6c2VjcmV0"},"https://index.docker.io/v1/":{"auth":"aHViOnB3"}}}"#;
        std::fs::write(directory.path().join("config.json"), config).unwrap();
        assert_eq!(of("ghcr.io").unwrap(), Login::Password { user: "me".into(), password: "secret".into() });
        assert_eq!(of("docker.io").unwrap(), Login::Password { user: "hub".into(), password: "pw".into() });
        assert_eq!(of("quay.io").unwrap(), Login::Anonymous);
        let config = r#"{"auths":{"ghcr.io":{"auth":"bWU6c2VjcmV0","identitytoken":"t0ken"}}}"#;
        std::fs::write(directory.path().join("config.json"), config).unwrap();
        assert_eq!(of("ghcr.io").unwrap(), Login::IdentityToken("t0ken".into()));
        assert!(!format!("{:?}", of("ghcr.io")).contains("t0ken"));
        std::fs::write(directory.path().join("config.json"), "{").unwrap();
        assert!(of("ghcr.io").is_err());
    }

    #[test]
    fn a_helper_that_is_not_there_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), r#"{"credsStore":"no-such-helper"}"#).unwrap();
        let error = messages::WireError::from(&credentials(Some(directory.path()), "ghcr.io").unwrap_err());
        assert!(error.to_string().contains("ghcr.io") && error.hints[0].contains("config.json"), "{error:?}");
    }
}
