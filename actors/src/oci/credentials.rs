//! Who we are to a registry: docker's own settings, so that `docker login` is all that is needed. Keeps nothing.

use super::OciError;
use crate::artifacts::Cancel;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{fs, io};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::runtime::Handle;

/// Docker's own name for its hub (docker/cli, `IndexServer`).
const HUB: &str = "https://index.docker.io/v1/";

/// How long a helper may take. Some ask their user for a password in a window; a daemon's may be seen by nobody.
const HELPER_PATIENCE: Duration = Duration::from_secs(60);
/// No answer is longer, in bytes: tokens have a few kilobytes.
const ANSWER_MAX: u64 = 256 << 10;

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
/// nothing. Blocks, within a runtime: a helper is a program. `cancel` ends it.
///
/// # Errors
/// When there is something that cannot be read, or a helper does not answer.
pub fn credentials(directory: Option<&Path>, registry: &str, cancel: &Cancel) -> Result<Login, OciError> {
    look_up(directory, registry, cancel, HELPER_PATIENCE)
}

fn look_up(directory: Option<&Path>, registry: &str, cancel: &Cancel, patience: Duration) -> Result<Login, OciError> {
    let failed = |source| OciError::Credentials { registry: registry.to_owned(), source };
    let Some(path) = directory.map(|directory| directory.join("config.json")) else {
        return Ok(Login::Anonymous);
    };
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Login::Anonymous),
        Err(_) => return Err(failed(CredentialRetrievalError::ConfigReadError)),
    };
    let mut config: Value =
        serde_json::from_slice(&text).map_err(|_| failed(CredentialRetrievalError::ConfigReadError))?;
    let hub = matches!(registry, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    let server = if hub { HUB } else { registry };
    let named = |helper: &Value| helper.as_str().filter(|name| !name.is_empty()).map(str::to_owned);
    let (helper, store) = (named(&config["credHelpers"][server]), named(&config["credsStore"]));
    let ask = |helper: &str| {
        let program = format!("docker-credential-{helper}");
        let said = Handle::current().block_on(run(&program, server, registry, cancel, patience))?;
        understand(&program, &said).map_err(failed)
    };
    if let Some(helper) = helper {
        return ask(&helper);
    }
    // The library would run helpers itself, and wait for them for ever: it is shown none.
    if let Some(config) = config.as_object_mut() {
        config.remove("credHelpers");
        config.remove("credsStore");
    }
    match docker_credential::get_credential_from_reader(config.to_string().as_bytes(), server) {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(Login::Password { user, password }),
        Ok(DockerCredential::IdentityToken(token)) => Ok(Login::IdentityToken(token)),
        Err(CredentialRetrievalError::NoCredentialConfigured) => {
            store.map_or(Ok(Login::Anonymous), |store| ask(&store))
        }
        Err(source) => Err(failed(source)),
    }
}

/// A helper's answer (docker/docker-credential-helpers, `credentials.Credentials`).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// What a program has said at its end.
struct Said {
    well: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Runs a helper, which is killed with all that it has started where it takes too long or nobody waits any more.
async fn run(
    program: &str,
    server: &str,
    registry: &str,
    cancel: &Cancel,
    patience: Duration,
) -> Result<Said, OciError> {
    let broken = || OciError::Credentials {
        registry: registry.to_owned(),
        source: CredentialRetrievalError::HelperCommunicationError,
    };
    let mut command = Command::new(program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.process_group(0).kill_on_drop(true).spawn().map_err(|_| broken())?;
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(broken());
    };
    let said = async {
        // One that does not want to know says in its own words what is wrong.
        drop(stdin.write_all(server.as_bytes()).await);
        drop(stdin);
        let (mut answer, mut complaint) = (Vec::new(), Vec::new());
        let (mut stdout, mut stderr) = (stdout.take(ANSWER_MAX), stderr.take(ANSWER_MAX));
        tokio::try_join!(stdout.read_to_end(&mut answer), stderr.read_to_end(&mut complaint))?;
        drop((stdout, stderr));
        Ok::<_, io::Error>(Said { well: child.wait().await?.success(), stdout: answer, stderr: complaint })
    };
    let token = cancel.token();
    let why = tokio::select! {
        said = said => return said.map_err(|_| broken()),
        () = token.cancelled() => OciError::Cancelled,
        () = tokio::time::sleep(patience) => OciError::HelperSilent { program: program.to_owned(), seconds: patience.as_secs() },
    };
    // It has not been waited for, so the id is still its own.
    if let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()) {
        if let Err(error) = killpg(Pid::from_raw(group), Signal::SIGKILL) {
            tracing::debug!(%error, program, "the helper had ended already");
        }
        drop(child.wait().await);
    }
    Err(why)
}

fn understand(program: &str, said: &Said) -> Result<Login, CredentialRetrievalError> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !said.well {
        let (stdout, stderr) = (text(&said.stdout), text(&said.stderr));
        if stdout.contains(NONE_KEPT) {
            return Ok(Login::Anonymous);
        }
        return Err(CredentialRetrievalError::HelperFailure { helper: program.to_owned(), stdout, stderr });
    }
    let Answer { username, secret } =
        serde_json::from_slice(&said.stdout).map_err(|_| CredentialRetrievalError::MalformedHelperResponse)?;
    // docker's sign for an identity token (docker/cli, `tokenUsername`).
    Ok(match username.as_str() {
        "<token>" => Login::IdentityToken(secret),
        _ => Login::Password { user: username, password: secret },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_own_settings_are_read_as_docker_reads_them() {
        let directory = tempfile::tempdir().unwrap();
        let of = |registry: &str| credentials(Some(directory.path()), registry, &Cancel::new());
        assert_eq!(credentials(None, "ghcr.io", &Cancel::new()).unwrap(), Login::Anonymous);
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
        let (directory, runtime) = (tempfile::tempdir().unwrap(), runtime());
        let _within = runtime.enter();
        std::fs::write(directory.path().join("config.json"), r#"{"credsStore":"no-such-helper"}"#).unwrap();
        let refused = credentials(Some(directory.path()), "ghcr.io", &Cancel::new()).unwrap_err();
        let error = messages::WireError::from(&refused);
        assert!(error.to_string().contains("ghcr.io") && error.hints[0].contains("config.json"), "{error:?}");
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    }

    #[test]
    fn a_helper_that_does_not_answer_is_killed_with_all_that_it_started() {
        use std::io::Read as _;
        use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
        let (directory, runtime) = (tempfile::tempdir().unwrap(), runtime());
        let (script, alive) = (directory.path().join("helper"), directory.path().join("alive"));
        nix::unistd::mkfifo(&alive, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let nonblocking = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let mut reader = fs::File::options().read(true).custom_flags(nonblocking).open(&alive).unwrap();
        // Both it and its child hold the pipe open.
        let text = format!("#!/bin/sh\nexec 3>'{}'\nsleep 1000 &\nwait\n", alive.display());
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
        let cancel = Cancel::new();
        let silent = run(script.to_str().unwrap(), "ghcr.io", "ghcr.io", &cancel, Duration::from_millis(300));
        let error = runtime.block_on(silent).err().unwrap();
        assert!(matches!(error, OciError::HelperSilent { .. }), "{error}");
        assert_eq!(messages::WireError::from(&error).kind, messages::ErrorKind::Timeout);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        // The end comes with the last of them; until then there is nothing to read.
        while reader.read(&mut [0; 8]).is_err() {
            assert!(std::time::Instant::now() < deadline, "something of the helper still runs");
            std::thread::yield_now();
        }
        cancel.cancel();
        let stopped = run(script.to_str().unwrap(), "ghcr.io", "ghcr.io", &cancel, HELPER_PATIENCE);
        assert!(matches!(runtime.block_on(stopped), Err(OciError::Cancelled)));
        fs::write(
            &script,
            "#!/bin/sh\nread -r server\necho \"{\\\"Username\\\":\\\"of $server\\\",\\\"Secret\\\":\\\"s\\\"}\"\n",
        )
        .unwrap();
        let said = runtime.block_on(run(script.to_str().unwrap(), "ghcr.io", "x", &Cancel::new(), HELPER_PATIENCE));
        let login = understand("h", &said.unwrap()).unwrap();
        assert_eq!(login, Login::Password { user: "of ghcr.io".into(), password: "s".into() });
    }

    #[test]
    fn what_a_helper_says_is_understood() {
        let said = |well, stdout: &str| Said { well, stdout: stdout.into(), stderr: b"why".to_vec() };
        let login = understand("h", &said(true, r#"{"ServerURL":"x","Username":"me","Secret":"s"}"#)).unwrap();
        assert_eq!(login, Login::Password { user: "me".into(), password: "s".into() });
        let login = understand("h", &said(true, r#"{"Username":"<token>","Secret":"s"}"#)).unwrap();
        assert_eq!(login, Login::IdentityToken("s".into()));
        assert_eq!(understand("h", &said(false, NONE_KEPT)).unwrap(), Login::Anonymous);
        let error = understand("h", &said(false, "")).unwrap_err().to_string();
        assert!(error.contains("`h`") && error.contains("why"), "{error}");
        assert!(understand("h", &said(true, "?")).is_err());
    }
}
